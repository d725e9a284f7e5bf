"""A federation in one process: the clients' modelling code and the aggregator's arithmetic, on the data sets of the paper."""
