"""What clients do to a context vector after its round: join late, add demonstrations, withdraw. Knows no HTTP and no SQL.

The change is written into the ledger here; `revising` makes the next version of the vector of it.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from ifed.contracts import Receipt
from ifed.errors import NotJoined, WrongState
from ifed.history import Withdrawal
from ifed.states import RoundKind, TaskState
from services.aggregator import views
from services.aggregator.backstage import Backstage
from services.aggregator.contribution import Contribution
from services.aggregator.intake import read_context_body
from services.aggregator.leaving import stop_waiting
from services.aggregator.participation import form_of, refuse_withdrawn
from services.aggregator.ports import Work
from services.aggregator.records import FederatedTask

log = structlog.get_logger(__name__)


class Additions:
    """For clients, and for admins who withdraw one."""

    def __init__(self, backstage: Backstage) -> None:
        self._backstage = backstage

    async def add(self, name: str, client: str, body: bytes) -> Receipt:
        """Keep more of a client's demonstrations, or its first ones if it comes late; the same bytes again give the same receipt.

        Raises:
            NotJoined, Withdrawn: the client takes no part in the task.
            WrongState: the context round has not closed, or the task has failed.
            IFedError: whatever makes it no part of the task's context vector; nothing is stored then.
        """
        contribution = read_context_body(body, client, self._backstage.clock())
        async with self._backstage.store.work() as work:
            task = await work.tasks.get(name, for_update=True)
            number = await self._checked(work, task, contribution)
            if (earlier := await work.parts.find(name, client, contribution.entry.digest)) is not None:
                self._backstage.metrics.repeats.labels(name).inc()
                return views.receipt(name, number, earlier)
            task.context_changes += 1
            await work.parts.add(name, number, task.context_changes, contribution)
            await work.tasks.save(task)
            await work.commit()
        self._backstage.metrics.contributions.labels(name, RoundKind.CONTEXT.value).inc()
        self._backstage.metrics.contribution_bytes.labels(name).inc(contribution.entry.size)
        await log.ainfo("addition", task=name, client=client, change=task.context_changes, bytes=contribution.entry.size)
        self._backstage.nudge()
        return views.receipt(name, number, contribution.entry)

    async def _checked(self, work: Work, task: FederatedTask, contribution: Contribution) -> int:
        """The number of the context round, if the contribution may follow it."""
        client = contribution.entry.client
        member = await work.memberships.find(task.name, client)
        if member is None:
            raise NotJoined(f"{client} has not joined task {task.name!r}")
        refuse_withdrawn(member)
        task.must_not_be("take additions", TaskState.FAILED)
        if task.version is None:
            raise WrongState(
                f"task {task.name!r} has no context vector to add to before its context round closes; contribute to that"
            )
        contribution.check(RoundKind.CONTEXT, form_of(task.spec, member))
        return (await work.aggregates.context(task.name)).round

    async def withdraw(self, name: str, client: str) -> Withdrawal:
        """Take a client out of a task for good: its parts of the context vector are taken away and it is asked no more.

        What it did to coefficients of rounds that closed stays in them. A second time changes nothing.

        Raises:
            NotJoined: it has no part in the task.
        """
        now = self._backstage.clock()
        async with self._backstage.store.work() as work:
            task = await work.tasks.get(name, for_update=True)
            member = await work.memberships.find(name, client)
            if member is not None and member.withdrawn_at is not None:
                return Withdrawal(task=name, client=client, withdrawn_at=member.withdrawn_at)
            changed = await stop_waiting(work, task, client, now, takes_back=True)
            removed = await work.parts.withdraw(name, client, task.context_changes + 1)
            if member is None and not removed:
                raise NotJoined(f"{client} has no part in task {name!r}")
            task.context_changes += removed > 0
            if member is not None:
                await work.memberships.put(replace(member, withdrawn_at=now))
            await work.tasks.save(task)
            await work.commit()
        await log.ainfo("withdrawn", task=name, client=client, parts=removed)
        await self._backstage.tell(name, changed)
        return Withdrawal(task=name, client=client, withdrawn_at=now)
