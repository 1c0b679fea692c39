"""`python -m runtime doctor`: what this machine has, and whether it works, with the fix for what does not."""

from runtime.doctor.examination import examine
from runtime.doctor.finding import Finding

__all__ = ["Finding", "examine"]
