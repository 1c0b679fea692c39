"""The parts of `benchmarks/quality.py`: ground truth, captions, metrics, rows, and held-out demo scenes."""
