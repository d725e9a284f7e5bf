"""The tables of a run. Measures nothing."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import grid


def tables(found: dict[str, Any]) -> str:
    """Markdown: the machine, then a table for each part that was measured."""
    machine = found["machine"]
    parts = [
        f"Measured on {machine['at']}: {machine['cpu']}, {machine['cores']} cores, load average {machine['load_average_before']} before and "
        f"{machine['load_average_at_the_end']} at the end; {found['clients']} simulated clients, {found['repeats']} runs of each row, medians."
    ]
    if rows := found["aggregators"]:
        parts.append(
            grid(
                ["aggregators", "contributions/s", "update p50 ms", "update p99 ms", "cores: aggregators", "the callers", "in all"],
                [
                    [
                        one["replicas"],
                        f"{one['contributions_per_second']:.0f}",
                        f"{one['update_p50_ms']:.0f}",
                        f"{one['update_p99_ms']:.0f}",
                        f"{one['cores_of_aggregators']:.2f}",
                        f"{one['cores_of_the_driver']:.2f}",
                        f"{one['cores_of_the_machine']:.2f}",
                    ]
                    for one in rows
                ],
            )
        )
    if rows := found["survival"]:
        names = ["replicas", "failed_and_sent_again", "longest_silence_seconds", "longest_wait_of_a_client_seconds"]
        parts.append(
            grid(
                ["aggregators, one killed", "requests failed", "longest silence s", "longest wait of a client s", "counted / sent"],
                [[*(one[name] for name in names), f"{one['counted_in_the_round']} / {one['sent']}"] for one in rows],
            )
        )
    if rows := found["inference"]:
        names = ["replicas", "threads_each", "callers", "requests_per_second", "p50_ms", "p99_ms", "memory_mb"]
        parts.append(
            grid(
                ["inference", "threads each", "callers", "requests/s", "p50 ms", "p99 ms", "memory MB, all"],
                [[one[name] for name in names] for one in rows],
            )
        )
    return "\n\n".join(parts)
