"""The parts of `benchmarks/latency.py`: stages, work estimates, machine limits, comparison, reports and tables."""
