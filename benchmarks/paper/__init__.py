"""The experiment of arXiv 2511.06757 on this stack, beside FedAvg-LoRA and prompting: `python -m benchmarks.paper`."""
