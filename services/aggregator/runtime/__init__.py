"""Cache, notifications, background work, group commit and rate limits; nothing here knows what a task is."""
