"""The program that `benchmarks.scoring.metrics` runs: pycocoevalcap's scorers, with all their output on stderr.

Reads a job from stdin and writes its answer to stdout, both JSON:

| job | answer |
|---|---|
| {"candidates": {item: caption}, "references": {item: [caption, ...]}, "spice": bool} | {metric: [value, std]} |
| the same without candidates: what the metrics need is tried | {} |
| {"meteor": [[caption, [reference, ...]], ...]} | [score, ...] |
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.spice import spice as spice_module
from pycocoevalcap.spice.spice import Spice
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

Texts: TypeAlias = dict[str, list[str]]
Scores: TypeAlias = dict[str, tuple[float, float]]
"""The value of each metric over all items, and the population standard deviation of the items' own values."""

CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
"""What SPICE needs and pycocoevalcap does not bring."""

_METEOR_AT_ONCE = 1000
"""Captions whose METEOR is asked for in one line."""


def main() -> None:
    """Run the job on stdin."""
    job = json.load(sys.stdin)
    with _reserve_stdout() as answer:
        if job.get("corenlp"):
            _link_corenlp(Path(job["corenlp"]))
        if "meteor" in job:
            found: object = score_meteor(job["meteor"])
        elif job["candidates"]:
            found = score(job["candidates"], job["references"], job["spice"])
        else:
            found = _try_tools(job["spice"])
        answer.write(json.dumps(found))


def score(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], spice: bool) -> Scores:
    """Return all metrics of captions as they were written."""
    predicted = tokenize({item: [caption] for item, caption in candidates.items()})
    expected = tokenize({item: list(references[item]) for item in candidates})
    scores = score_words(predicted, expected)
    with _open_meteor() as meteor:
        scores["METEOR"] = _with_std(*meteor.compute_score(_meteor_lines(expected), _meteor_lines(predicted)))
    if spice:
        value, of_items = Spice().compute_score(expected, predicted)
        scores["SPICE"] = _with_std(value, [one["All"]["f"] for one in of_items])
    return scores


def score_words(predicted: Texts, expected: Texts) -> Scores:
    """Return the metrics that need no Java, of tokenized captions: one for each item, and its references."""
    bleu = zip(*Bleu(4).compute_score(expected, predicted, verbose=0), strict=True)
    scores = {f"BLEU-{length}": _with_std(*one) for length, one in enumerate(bleu, start=1)}
    scores["ROUGE-L"] = _with_std(*Rouge().compute_score(expected, predicted))
    scores["CIDEr"] = _with_std(*Cider().compute_score(expected, predicted))
    return scores


def score_meteor(pairs: Sequence[tuple[str, Sequence[str]]]) -> list[float]:
    """Return METEOR of each caption by itself against its references, as they were written.

    An empty caption has 0, as has one without references.
    """
    scores = [0.0] * len(pairs)
    asked = {}
    for index, (caption, references) in enumerate(pairs):
        line, wanted = _meteor_line(caption), [text for text in map(_meteor_line, references) if text]
        if line and wanted:
            asked[index] = line, wanted
    indices = list(asked)
    with _open_meteor() as meteor:
        for start in range(0, len(indices), _METEOR_AT_ONCE):
            block = indices[start : start + _METEOR_AT_ONCE]
            of_block = meteor.compute_score({i: asked[i][1] for i in block}, {i: [asked[i][0]] for i in block})[1]
            for index, value in zip(block, of_block, strict=True):
                scores[index] = value
    return scores


def tokenize(texts: Mapping[str, Sequence[str]]) -> Texts:
    """Split captions as the Penn Treebank tokenizer does: in lower case, without punctuation.

    Raises:
        RuntimeError: the tokenizer failed; its reason is on stderr.
    """
    # It takes a caption a line, and Java ends lines at more characters than "\n".
    lines = {item: [{"caption": _one_line(text)} for text in own] for item, own in texts.items()}
    tokens: Texts = PTBTokenizer().tokenize(lines)
    if {item: len(own) for item, own in tokens.items()} != {item: len(own) for item, own in texts.items()}:
        raise RuntimeError("PTBTokenizer: expected a line for each caption")
    return tokens


def _try_tools(spice: bool) -> Scores:
    """Check that Java and the tokenizer work, and score one caption with SPICE if it is asked for."""
    java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
    if java.returncode:
        raise RuntimeError(f"Java does not start: {_last_line(java.stderr)}")
    tokens = tokenize({"": ["A cat."]})
    if tokens != {"": ["a cat"]}:
        raise RuntimeError(f"PTBTokenizer: expected 'a cat' of 'A cat.', got {tokens['']}")
    if spice:
        Spice().compute_score(tokens, tokens)
    return {}


def _with_std(value: float, of_items: Sequence[float]) -> tuple[float, float]:
    return float(value), float(np.std(of_items))


def _one_line(text: str) -> str:
    """Return a text on one line, with "?" for what has no UTF-8."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def _meteor_line(text: str) -> str:
    """Return a text as METEOR takes it: on one line, without the bars that separate texts there."""
    return _one_line(text.replace("|||", " "))


def _meteor_lines(texts: Texts) -> Texts:
    return {item: [_meteor_line(text) for text in own] for item, own in texts.items()}


def _link_corenlp(folder: Path) -> None:
    """Put CoreNLP where SPICE looks for it, and would download it to.

    Raises:
        RuntimeError: the folder does not hold it.
        OSError: pycocoevalcap's folder cannot be written to.
    """
    library = Path(spice_module.__file__).with_name("lib")
    for name in CORENLP:
        if not (folder / name).is_file():
            raise RuntimeError(f"CoreNLP: expected {' and '.join(CORENLP)} in {folder}, got no {name}")
        if not (library / name).exists():
            (library / name).unlink(missing_ok=True)  # a link to what is gone
            (library / name).symlink_to((folder / name).resolve())


@contextmanager
def _open_meteor() -> Iterator[Any]:
    """Yield METEOR with its Java process, which is gone afterwards whatever happens."""
    meteor = Meteor()
    try:
        yield meteor
    except (OSError, ValueError) as error:  # a broken pipe, or no number where one was expected
        meteor.meteor_p.kill()
        raise RuntimeError(f"METEOR: {error}; {_last_line(meteor.meteor_p.stderr.read().decode())}") from None
    finally:
        meteor.meteor_p.kill()
        meteor.meteor_p.wait()
        with suppress(OSError):  # for input that it did not read
            meteor.meteor_p.stdin.close()
        if meteor.lock.locked():  # left so by an error; its destructor would wait for it forever
            meteor.lock.release()


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "no reason given"


@contextmanager
def _reserve_stdout() -> Iterator[TextIO]:
    """Yield stdout for this program alone; what anything else prints there, Java too, goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answer:
        os.dup2(2, 1)
        yield answer


if __name__ == "__main__":
    main()
