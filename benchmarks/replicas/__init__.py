"""What one replica more buys: speed where there are cores for it, and going on where one is lost. Prints tables; never part of the tests."""
