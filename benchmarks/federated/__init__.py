"""A federation in one process: the clients' modelling code and the aggregator's arithmetic, without HTTP between them."""
