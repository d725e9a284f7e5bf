"""HTTP clients of the services. An error body becomes the exception that the service raised, a broken connection `Unavailable`."""

from ifed.clients.aggregator import AggregatorClient
from ifed.clients.blocking import BlockingInferenceClient
from ifed.clients.inference import InferenceClient
from ifed.clients.transport import raise_refusal

__all__ = ["AggregatorClient", "BlockingInferenceClient", "InferenceClient", "raise_refusal"]
