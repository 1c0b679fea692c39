"""What a request may cost where each region is a pass of the backbone."""

from __future__ import annotations

import pytest

from runtime import Captioner, PoolingOptions
from runtime.serving.limits import InputLimits, OverLimitError, encodes_each_region, rows_within

BOXES = [[10, 10, 50, 50], [60, 60, 90, 90], [5, 5, 20, 20]]


@pytest.mark.parametrize("reencode", ["cls", "mean"])
def test_regions_that_are_encoded_by_themselves_count_as_crops(demo: Captioner, reencode: str) -> None:
    backbone = demo.manifest.backbone
    preprocessing = backbone.preprocessing.model_copy(update={"has_alpha": True})
    alpha = demo.manifest.model_copy(update={"backbone": backbone.model_copy(update={"preprocessing": preprocessing})})
    pooling = PoolingOptions(reencode=reencode)  # type: ignore[arg-type]
    assert encodes_each_region(alpha, pooling)
    assert not encodes_each_region(alpha, PoolingOptions())
    assert not encodes_each_region(demo.manifest, pooling), "its re-encoder is no pass of the whole backbone"
    limits = InputLimits(crops=2)
    assert len(rows_within(limits, BOXES, (100, 100), 1)) == 3
    assert len(rows_within(limits, BOXES[:2], (100, 100), 1, encodes_each=True)) == 2
    message = "expected at most 2 regions that are encoded by themselves, got 3"
    with pytest.raises(OverLimitError, match=message):
        rows_within(limits, BOXES, (100, 100), 1, encodes_each=True)
