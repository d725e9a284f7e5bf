"""The aggregator as one object: its parts, put together on one backstage. Knows no HTTP, no SQL and no redis."""

from __future__ import annotations

from services.aggregator.application.access import Access, AuditLog
from services.aggregator.application.adapters import AdapterStore
from services.aggregator.application.dependencies import Dependencies
from services.aggregator.application.events import EventStream, Webhooks
from services.aggregator.application.participation import Additions, Participation
from services.aggregator.application.rounds import Ledger
from services.aggregator.application.similarity import TaskSimilarity
from services.aggregator.application.tasks import TaskService
from services.aggregator.application.worker import Closing, Revising
from services.aggregator.runtime.rate_limit import RateLimiter


class Services:
    """Everything the HTTP layer and the background work call.

    Attributes:
        administration: tasks and rounds, for admins.
        parties: who may call.
        auditing: what admins asked for.
        rates: how often a party may call.
        participation: join, assignment, contributions, for clients.
        additions: what comes to and goes from the context vector after its round.
        serving: aggregates, for everyone.
        history: ledger, replay, rollback, for admins.
        matching: the task cache, for admins.
        watching: what happens, for admins.
        webhooks: who else is told.
        closing: the background work that ends rounds.
        revising: the background work that makes versions of context vectors.
    """

    def __init__(
        self,
        dependencies: Dependencies,
        rates: RateLimiter,
        *,
        admin_token: str,
        claim_seconds: float,
        private_webhooks: bool = False,
    ) -> None:
        self._dependencies = dependencies
        self.watching = EventStream(dependencies)
        self.webhooks = Webhooks(dependencies, private=private_webhooks)
        self.administration = TaskService(dependencies)
        self.parties = Access(dependencies, admin_token=admin_token)
        self.auditing = AuditLog(dependencies)
        self.rates = rates
        self.participation = Participation(dependencies)
        self.additions = Additions(dependencies)
        self.serving = AdapterStore(dependencies)
        self.history = Ledger(dependencies)
        self.matching = TaskSimilarity(dependencies)
        self.closing = Closing(dependencies, claim_seconds=claim_seconds)
        self.revising = Revising(dependencies, claim_seconds=claim_seconds)

    async def run_due(self) -> None:
        """The background work of one tick."""
        await self.closing.run_due()
        await self.revising.run_due()
        await self.parties.presence.write()

    async def readiness(self) -> dict[str, str]:
        """What this service needs, by name."""
        return {"database": await self._dependencies.database.state(), "cache": await self._dependencies.cache.state()}

    async def release(self) -> None:
        """Answer every held request now, before the process stops."""
        await self._dependencies.long_poll.close()
