"""The results of a run as Markdown tables."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import markdown_table


def markdown(results: dict[str, Any]) -> str:
    """Return the machine, then a table for each part that was measured."""
    machine = results["machine"]
    parts = [
        f"Measured on {machine['at']}: {machine['cpu']}, {machine['cores']} cores, load average {machine['load_average_before']} before and "
        f"{machine['load_average_at_the_end']} at the end; {results['clients']} simulated clients, {results['repeats']} runs of each row, medians."
    ]
    if rows := results["aggregators"]:
        parts.append(
            markdown_table(
                ["aggregators", "contributions/s", "update p50 ms", "update p99 ms", "cores: aggregators", "the callers", "in all"],
                [
                    [
                        row["replicas"],
                        f"{row['contributions_per_second']:.0f}",
                        f"{row['update_p50_ms']:.0f}",
                        f"{row['update_p99_ms']:.0f}",
                        f"{row['cores_of_aggregators']:.2f}",
                        f"{row['cores_of_the_driver']:.2f}",
                        f"{row['cores_of_the_machine']:.2f}",
                    ]
                    for row in rows
                ],
            )
        )
    if rows := results["survival"]:
        names = ["replicas", "failed_and_sent_again", "longest_silence_seconds", "longest_wait_of_a_client_seconds"]
        parts.append(
            markdown_table(
                ["aggregators, one killed", "requests failed", "longest outage s", "longest wait of a client s", "counted / sent"],
                [[*(row[name] for name in names), f"{row['counted_in_the_round']} / {row['sent']}"] for row in rows],
            )
        )
    if rows := results["inference"]:
        names = ["replicas", "threads_each", "callers", "requests_per_second", "p50_ms", "p99_ms", "memory_mb"]
        parts.append(
            markdown_table(
                ["inference", "threads each", "callers", "requests/s", "p50 ms", "p99 ms", "memory MB, all"],
                [[row[name] for name in names] for row in rows],
            )
        )
    return "\n\n".join(parts)
