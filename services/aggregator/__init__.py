"""The aggregator: tasks, clients, rounds and their aggregates. No torch."""
