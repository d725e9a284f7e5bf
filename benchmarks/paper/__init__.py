"""The experiment of arXiv 2511.06757 with this software, beside FedAvg-LoRA and prompting: `python -m benchmarks.paper`."""
