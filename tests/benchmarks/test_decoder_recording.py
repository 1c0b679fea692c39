"""How recordings of decoders are told apart and compared: up to near ties, and by what rounding explains."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.decoder_recording import _steps_until_stop, _sure_steps, _worst_log
from benchmarks.difference import Difference
from benchmarks.vocabulary_recording import is_vocabulary
from export.checkpoint import CheckpointError
from export.readers import read_checkpoint
from export.readers.recorded_decoders import RecordedDecoder, kind_of


@pytest.mark.parametrize(
    ("contents", "kind"),
    [
        ({"entities_file": [], "settings": {}}, "viecap"),
        ({"memory_captions": [], "parser_output": [], "settings": {}, "eos_gain": [1, 1]}, "meacap"),
        ({"eos_gain": -2.0, "settings": {}}, "clipcap"),
        ({"clip_width": 512, "prefix_size": 512}, "inversion"),
        ({"arch": "dinov2_vits14_reg", "settings": {}}, None),
    ],
)
def test_a_recording_is_of_the_decoder_whose_entries_it_has(contents: dict[str, object], kind: str | None) -> None:
    assert kind_of(contents) == kind
    assert not is_vocabulary(contents)
    assert is_vocabulary({"cases": [], "file": "x.pickle"})


def test_variants_are_the_settings_that_a_recording_changes(tmp_path: Path) -> None:
    contents = {
        "settings": {"top_k": 3, "threshold": 0.4},
        "variant.low.settings": {"threshold": 0.2},
        "variant.low": {"texts": []},
    }
    recorded = RecordedDecoder(tmp_path / "x.json", contents, "low")
    assert recorded.variants == ["low"]
    assert recorded.settings == {"top_k": 3, "threshold": 0.2}
    assert RecordedDecoder(tmp_path / "x.json", contents).settings == {"top_k": 3, "threshold": 0.4}


def test_a_variant_that_was_not_recorded_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"entities_file": ["dog"], "settings": {}, "variant.low.settings": {}}))
    with pytest.raises(CheckpointError, match="expected a variant of low, got 'high'"):
        read_checkpoint(f"recording:{path},variant=high")


def test_tokens_are_compared_up_to_the_first_near_tie() -> None:
    assert _sure_steps(np.array([1.0, 0.5, 0.009, 2.0])) == 2
    assert _sure_steps(np.array([1.0, 0.5])) == 2
    assert _sure_steps(np.array([0.001])) == 0


def test_sampled_captions_are_compared_up_to_their_stop() -> None:
    contents = {"stop": [None, 0, 3]}
    assert [_steps_until_stop(contents, np.zeros((3, 9)), row) for row in range(3)] == [9, 1, 4]


def test_scores_differ_by_their_logarithms_and_none_is_only_none() -> None:
    assert _worst_log([2.0, math.nan], [2.0 * math.exp(0.25), None]) == pytest.approx(0.25)
    assert _worst_log([math.nan], [1.0]) == math.inf
    assert _worst_log([1.0], [None]) == math.inf


def test_a_caption_too_few_or_a_score_too_far_is_a_fault() -> None:
    assert Difference("greedy", 4, 4, scores=9e-4).faults == []
    assert Difference("greedy", 4, 3, scores=9e-4).faults == ["greedy: 3 of 4 texts"]
    assert Difference("greedy", 4, 4, scores=2e-3).faults == ["greedy: scores differ by 2.0e-03"]
    assert Difference("greedy", 4, 4, scores=math.inf).faults
