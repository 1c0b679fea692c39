"""`patchcaption tune`: what this machine gives for a bundle, in speed and in quality."""

from runtime.doctor.tuning.budget import Budget
from runtime.doctor.tuning.opened import BATCH_SIZES
from runtime.doctor.tuning.pictures import PICTURE_COUNT, draw_picture
from runtime.doctor.tuning.projection import REGIONS, KernelRow
from runtime.doctor.tuning.result import TunedRow, Tuning
from runtime.doctor.tuning.tune import tune

__all__ = [
    "BATCH_SIZES",
    "PICTURE_COUNT",
    "REGIONS",
    "Budget",
    "KernelRow",
    "TunedRow",
    "Tuning",
    "draw_picture",
    "tune",
]
