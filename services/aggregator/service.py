"""The aggregator as one object: its parts, put together on one backstage. Knows no HTTP, no SQL and no redis."""

from __future__ import annotations

from services.aggregator.additions import Additions
from services.aggregator.administration import Administration
from services.aggregator.auditing import Auditing
from services.aggregator.backstage import Backstage
from services.aggregator.closing import Closing
from services.aggregator.enrolment import Parties
from services.aggregator.history import History
from services.aggregator.matching import Matching
from services.aggregator.participation import Participation
from services.aggregator.rates import Rates
from services.aggregator.revising import Revising
from services.aggregator.serving import Serving
from services.aggregator.watching import Watching
from services.aggregator.webhooks import Webhooks


class Aggregator:
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
        backstage: Backstage,
        rates: Rates,
        *,
        admin_token: str,
        claim_seconds: float,
        private_webhooks: bool = False,
    ) -> None:
        self._backstage = backstage
        self.watching = Watching(backstage)
        self.webhooks = Webhooks(backstage, private=private_webhooks)
        self.administration = Administration(backstage)
        self.parties = Parties(backstage, admin_token=admin_token)
        self.auditing = Auditing(backstage)
        self.rates = rates
        self.participation = Participation(backstage)
        self.additions = Additions(backstage)
        self.serving = Serving(backstage)
        self.history = History(backstage)
        self.matching = Matching(backstage)
        self.closing = Closing(backstage, claim_seconds=claim_seconds)
        self.revising = Revising(backstage, claim_seconds=claim_seconds)

    async def run_due(self) -> None:
        """The background work of one tick."""
        await self.closing.run_due()
        await self.revising.run_due()
        await self.parties.presence.write()

    async def readiness(self) -> dict[str, str]:
        """What this service needs, by name."""
        return {"database": await self._backstage.store.state(), "cache": await self._backstage.cache.state()}

    async def release(self) -> None:
        """Answer every held request now, before the process stops."""
        await self._backstage.polls.close()
