"""Speed of the modelling core beside the published procedure (I2CL, arXiv 2405.14660): `python -m benchmarks.modeling`."""
