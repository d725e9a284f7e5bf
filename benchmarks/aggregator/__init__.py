"""How fast the aggregator runs whole rounds, beside the same federation on Flower. Prints a table; never part of the tests."""
