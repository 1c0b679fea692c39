"""The parts of `benchmarks/quality.py`: ground truth, captions and their log, metrics, rows, and held-out demo scenes."""
