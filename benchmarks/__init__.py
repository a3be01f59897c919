"""What the balancing costs, each figure against its baseline: ``python -m benchmarks``."""
