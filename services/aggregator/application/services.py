"""The use cases of the aggregator, built on the same dependencies."""

from __future__ import annotations

from dataclasses import dataclass

from ifed.server.authentication import FailedAttempts
from services.aggregator.application.access import Access, AuditLog
from services.aggregator.application.adapters import AdapterStore
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.application.evaluations import Evaluations
from services.aggregator.application.events import EventStream, Webhooks
from services.aggregator.application.participation import Participation
from services.aggregator.application.rounds import Ledger, RoundService
from services.aggregator.application.similarity import TaskSimilarity
from services.aggregator.application.tasks import TaskService
from services.aggregator.application.worker import AggregationWorker
from services.aggregator.runtime.rate_limit import RateLimiter


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes and the background tasks call."""

    dependencies: Dependencies
    rate_limiter: RateLimiter
    access: Access
    audit_log: AuditLog
    tasks: TaskService
    rounds: RoundService
    ledger: Ledger
    evaluations: Evaluations
    participation: Participation
    adapters: AdapterStore
    similarity: TaskSimilarity
    event_stream: EventStream
    webhooks: Webhooks
    worker: AggregationWorker


def build_services(
    dependencies: Dependencies,
    rate_limiter: RateLimiter,
    *,
    admin_token: str,
    failed_attempts: FailedAttempts,
    claim_seconds: float,
    max_additions: int,
    private_webhooks: bool = False,
) -> Services:
    """Return all use cases.

    Args:
        dependencies: what they share.
        rate_limiter: limits the requests of a party.
        admin_token: the admins' bearer token.
        failed_attempts: limits wrong tokens and enrolment codes.
        claim_seconds: the time for which a replica claims a piece of aggregation.
        max_additions: the additions to a task's context vector that one client may send.
        private_webhooks: whether webhooks may go to this machine and to private networks.
    """
    return Services(
        dependencies=dependencies,
        rate_limiter=rate_limiter,
        access=Access(dependencies, admin_token=admin_token, failed_attempts=failed_attempts),
        audit_log=AuditLog(dependencies),
        tasks=TaskService(dependencies),
        rounds=RoundService(dependencies),
        ledger=Ledger(dependencies),
        evaluations=Evaluations(dependencies),
        participation=Participation(dependencies, max_additions=max_additions),
        adapters=AdapterStore(dependencies),
        similarity=TaskSimilarity(dependencies),
        event_stream=EventStream(dependencies),
        webhooks=Webhooks(dependencies, private=private_webhooks),
        worker=AggregationWorker(dependencies, claim_seconds=claim_seconds),
    )
