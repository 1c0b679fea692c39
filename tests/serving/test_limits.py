"""What a request may cost where each region is a pass of the backbone."""

from __future__ import annotations

import pytest

from runtime import Captioner, PoolingOptions
from runtime.serving.limits import InputLimits, OverLimitError, rows_within

BOXES = [[10, 10, 50, 50], [60, 60, 90, 90], [5, 5, 20, 20]]


def test_regions_that_are_encoded_by_themselves_count_as_crops() -> None:
    limits = InputLimits(crops=2)
    assert len(rows_within(limits, BOXES, (100, 100), 1)) == 3
    assert len(rows_within(limits, BOXES[:2], (100, 100), 1, encodes_each=True)) == 2
    message = "expected at most 2 regions that are encoded by themselves, got 3"
    with pytest.raises(OverLimitError, match=message):
        rows_within(limits, BOXES, (100, 100), 1, encodes_each=True)


def test_a_re_encoder_is_no_pass_of_the_whole_backbone(demo: Captioner) -> None:
    assert not demo.pipeline.encodes_each_region(PoolingOptions(reencode="cls"))
