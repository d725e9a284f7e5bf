"""What callers see when one of so many aggregators is killed in the middle of a round and comes back a while later. Prints nothing."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

from benchmarks.aggregator.http_connections import Connection, Refused
from benchmarks.aggregator.simulated_clients import Federation, Member
from benchmarks.replicas.replica_set import Fleet, connected, fleet
from benchmarks.replicas.throughput import CONNECTIONS, SMALL
from testing.factories import ADMIN_TOKEN

KILLED_AFTER, AWAY_SECONDS, PAUSE_SECONDS, PATIENCE = 3.0, 4.0, 0.25, 90.0


class Callers:
    """Clients that send at a steady rate and, like the agent, send again elsewhere what was not answered."""

    def __init__(self, running: Fleet, path: str) -> None:
        self._ports, self._path = itertools.cycle(running.ports), path
        self.failed = 0
        self.answered: list[float] = []
        self.waited: list[float] = []

    async def send(self, member: Member, body: bytes) -> None:
        """Until it is answered.

        Raises:
            TimeoutError: it was not, for longer than a replica can be away.
        """
        began = time.perf_counter()
        while not await self._answered(next(self._ports), member, body):
            self.failed += 1
            if time.perf_counter() - began > PATIENCE:
                raise TimeoutError(f"a client was not answered within {PATIENCE:.0f} s")
            await asyncio.sleep(PAUSE_SECONDS)
        self.answered.append(time.perf_counter())
        self.waited.append(self.answered[-1] - began)

    async def _answered(self, port: int, member: Member, body: bytes) -> bool:
        try:
            connection = Connection(*await asyncio.open_connection("127.0.0.1", port, limit=2**20))
        except OSError:
            return False
        try:
            await connection.request("PUT", self._path, member.token, body)
        except (OSError, EOFError, Refused):
            return False
        finally:
            connection.close()
        return True

    def longest_silence(self) -> float:
        """The longest time in which no one was answered."""
        ordered = sorted(self.answered)
        return max(later - earlier for earlier, later in itertools.pairwise(ordered))


def survival(replicas: int, clients: int, rate: float) -> dict[str, Any]:
    """One calibration round at `rate` contributions a second, in which the first replica is killed and started again."""
    with fleet(replicas) as running:

        async def work() -> dict[str, Any]:
            async with connected(running.ports, CONNECTIONS) as wire:
                task = Federation(wire, ADMIN_TOKEN, "bench", SMALL)
                await task.gather(clients, rounds=1)
                await task.start()
                asked = await task.whole_round()
            version = asked["version"]
            assert isinstance(version, int)
            callers = Callers(running, f"/v1/tasks/bench/rounds/{asked['round']}/update")
            async with asyncio.TaskGroup() as group:
                group.create_task(_lose_one(running))
                began = time.perf_counter()
                for index, member in enumerate(task.members):
                    await asyncio.sleep(max(0.0, began + index / rate - time.perf_counter()))
                    group.create_task(callers.send(member, SMALL.update(member.rank, version)))
            counted = await _counted(running, asked["round"])
            return {
                "replicas": replicas,
                "sent": clients,
                "failed_and_sent_again": callers.failed,
                "longest_silence_seconds": round(callers.longest_silence(), 2),
                "longest_wait_of_a_client_seconds": round(max(callers.waited), 2),
                "counted_in_the_round": counted,
            }

        return asyncio.run(work())


async def _lose_one(running: Fleet) -> None:
    await asyncio.sleep(KILLED_AFTER)
    await asyncio.to_thread(running.kill, 0)
    await asyncio.sleep(AWAY_SECONDS)
    await asyncio.to_thread(running.start, 0)


async def _counted(running: Fleet, number: object) -> int:
    """How many contributions the round has, as the aggregator tells an admin."""
    async with connected(running.ports[-1:], 1) as wire:
        said = await Federation(wire, ADMIN_TOKEN, "bench", SMALL).round(number)
    expected, missing = said["expected"], said["missing"]
    assert isinstance(expected, list)
    assert isinstance(missing, list)
    return len(expected) - len(missing)
