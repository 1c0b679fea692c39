"""The parts of `benchmarks/quality.py`: ground truth, predictions, metrics, and held-out demo scenes."""
