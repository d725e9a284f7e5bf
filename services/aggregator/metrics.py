"""The Prometheus metrics of the aggregator."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """The metrics that /metrics shows, in a registry of one application."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.contributions = Counter("ifed_contributions", "Contributions stored", ["task", "kind"], registry=registry)
        self.contribution_bytes = Counter("ifed_contribution_bytes", "Bytes of contributions stored", ["task"], registry=registry)
        self.repeats = Counter("ifed_contributions_repeated", "Contributions sent again", ["task"], registry=registry)
        self.rounds = Counter("ifed_rounds", "Rounds that reached a state", ["task", "kind", "state"], registry=registry)
        self.aggregation_seconds = Histogram("ifed_aggregation_seconds", "Time to sum a round up", ["task"], registry=registry)
        self.long_polls = Gauge("ifed_long_polls", "Requests held now", ["task"], registry=registry)
        self.cache_reads = Counter("ifed_cache_reads", "Reads from the cache", ["task", "outcome"], registry=registry)
        self.cache_mismatches = Counter(
            "ifed_cache_mismatches", "Bodies from the cache with another digest than the database has", ["task"], registry=registry
        )
        self.events = Counter("ifed_events", "Things that happened to tasks and rounds", ["kind"], registry=registry)
        self.webhook_attempts = Counter("ifed_webhook_attempts", "Events sent to webhooks", ["outcome"], registry=registry)
        self.failed_attempts = Counter(
            "ifed_failed_authentications", "Wrong tokens and enrolment codes", ["kind", "outcome"], registry=registry
        )
        self.cache_failures = Counter("ifed_cache_failures", "Calls that Redis did not answer", ["call"], registry=registry)

    def cache_read(self, task: str, *, hit: bool) -> None:
        """Count a read from the cache."""
        self.cache_reads.labels(task, "hit" if hit else "miss").inc()
