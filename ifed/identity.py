"""Who a loaded language model is, as the services tell each other. Imports the torch room's value, never torch itself."""

from __future__ import annotations

from ifed.modeling.language_model import LanguageModel
from ifed.tasks import ModelIdentity


def identity_of(model: LanguageModel) -> ModelIdentity:
    """The identity under which a party joins a task or checks an adapter."""
    return ModelIdentity(
        name=model.name,
        fingerprint=model.fingerprint,
        family=model.family.name,
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
    )
