"""The parts of `benchmarks/latency.py`: what is timed, what it is held against, and what is written."""
