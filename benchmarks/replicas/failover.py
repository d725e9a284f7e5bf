"""The outage that callers see when one of several aggregators is killed during a round and started again later."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

from benchmarks.aggregator.http_connections import Connection, HttpError
from benchmarks.aggregator.simulated_clients import SimulatedClient, SimulatedTask
from benchmarks.replicas.replica_set import ReplicaSet, connect, start_replicas
from benchmarks.replicas.throughput import CONNECTIONS, SMALL
from testing.factories import ADMIN_TOKEN

KILL_AFTER_SECONDS, DOWN_SECONDS, RETRY_SECONDS, TIMEOUT_SECONDS = 3.0, 4.0, 0.25, 90.0


class RetryingClients:
    """Clients that send at a steady rate and, like the agent, retry unanswered requests on another replica."""

    def __init__(self, replicas: ReplicaSet, path: str) -> None:
        self._ports, self._path = itertools.cycle(replicas.ports), path
        self.failures = 0
        self.answered_at: list[float] = []
        self.waits: list[float] = []

    async def send(self, client: SimulatedClient, body: bytes) -> None:
        """Send until it is answered.

        Raises:
            TimeoutError: it was not answered for longer than a replica can be down.
        """
        began = time.perf_counter()
        while not await self._try(next(self._ports), client, body):
            self.failures += 1
            if time.perf_counter() - began > TIMEOUT_SECONDS:
                raise TimeoutError(f"a client was not answered within {TIMEOUT_SECONDS:.0f} s")
            await asyncio.sleep(RETRY_SECONDS)
        self.answered_at.append(time.perf_counter())
        self.waits.append(self.answered_at[-1] - began)

    async def _try(self, port: int, client: SimulatedClient, body: bytes) -> bool:
        try:
            connection = Connection(*await asyncio.open_connection("127.0.0.1", port, limit=2**20))
        except OSError:
            return False
        try:
            await connection.request("PUT", self._path, client.token, body)
        except (OSError, EOFError, HttpError):
            return False
        finally:
            connection.close()
        return True

    def longest_outage(self) -> float:
        """Return the longest time, in seconds, in which no client was answered."""
        ordered = sorted(self.answered_at)
        return max(later - earlier for earlier, later in itertools.pairwise(ordered))


def measure_failover(replicas: int, clients: int, rate: float) -> dict[str, Any]:
    """Run one calibration round at `rate` contributions a second, in which the first replica is killed and started again."""
    with start_replicas(replicas) as replica_set:

        async def run() -> dict[str, Any]:
            async with connect(replica_set.ports, CONNECTIONS) as pool:
                task = SimulatedTask(pool, ADMIN_TOKEN, "bench", SMALL)
                await task.create(clients, rounds=1)
                await task.start()
                assignment = await task.run_round()
            version = assignment["version"]
            assert isinstance(version, int)
            senders = RetryingClients(replica_set, f"/v1/tasks/bench/rounds/{assignment['round']}/update")
            async with asyncio.TaskGroup() as group:
                group.create_task(_kill_and_restart(replica_set))
                began = time.perf_counter()
                for index, client in enumerate(task.clients):
                    await asyncio.sleep(max(0.0, began + index / rate - time.perf_counter()))
                    group.create_task(senders.send(client, SMALL.update(client.rank, version)))
            counted = await _count_contributions(replica_set, assignment["round"])
            return {
                "replicas": replicas,
                "sent": clients,
                "failed_and_sent_again": senders.failures,
                "longest_silence_seconds": round(senders.longest_outage(), 2),
                "longest_wait_of_a_client_seconds": round(max(senders.waits), 2),
                "counted_in_the_round": counted,
            }

        return asyncio.run(run())


async def _kill_and_restart(replica_set: ReplicaSet) -> None:
    await asyncio.sleep(KILL_AFTER_SECONDS)
    await asyncio.to_thread(replica_set.kill, 0)
    await asyncio.sleep(DOWN_SECONDS)
    await asyncio.to_thread(replica_set.start, 0)


async def _count_contributions(replica_set: ReplicaSet, number: object) -> int:
    """Return how many contributions the round has, as an admin sees it."""
    async with connect(replica_set.ports[-1:], 1) as pool:
        round_ = await SimulatedTask(pool, ADMIN_TOKEN, "bench", SMALL).round(number)
    expected, missing = round_["expected"], round_["missing"]
    assert isinstance(expected, list)
    assert isinstance(missing, list)
    return len(expected) - len(missing)
