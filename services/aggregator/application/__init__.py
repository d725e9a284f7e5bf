"""Use cases of the aggregator; each opens its own transaction."""
