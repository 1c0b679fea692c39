"""The program that `benchmarks.scoring.metrics` runs: pycocoevalcap's scorers, with all their output on stderr.

Reads a job from stdin, {"candidates": {item: caption}, "references": {item: [caption, ...]}, "spice": bool}, and writes
{metric: score} to stdout. A job without candidates only tries what the metrics need.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.spice.spice import Spice
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

Texts: TypeAlias = dict[str, list[str]]


def main() -> None:
    """Run the job on stdin."""
    job = json.load(sys.stdin)
    with _reserve_stdout() as answer:
        if job["candidates"]:
            scores = score(job["candidates"], job["references"], job["spice"])
        else:
            scores = _try_tools(job["spice"])
        os.write(answer, json.dumps(scores).encode())


def score(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], spice: bool) -> dict[str, float]:
    """Return all metrics of captions as they were written."""
    predicted = tokenize({item: [caption] for item, caption in candidates.items()})
    expected = tokenize({item: list(references[item]) for item in candidates})
    scores = score_words(predicted, expected)
    with _open_meteor() as meteor:
        scores["METEOR"] = meteor.compute_score(expected, predicted)[0]
    if spice:
        scores["SPICE"] = Spice().compute_score(expected, predicted)[0]
    return {name: float(value) for name, value in scores.items()}


def score_words(predicted: Texts, expected: Texts) -> dict[str, float]:
    """Return the metrics that need no Java, of tokenized captions: one for each item, and its references."""
    bleu, _ = Bleu(4).compute_score(expected, predicted, verbose=0)
    scores = {f"BLEU-{length}": value for length, value in enumerate(bleu, start=1)}
    scores["ROUGE-L"] = Rouge().compute_score(expected, predicted)[0]
    scores["CIDEr"] = Cider().compute_score(expected, predicted)[0]
    return scores


def tokenize(texts: Mapping[str, Sequence[str]]) -> Texts:
    """Split captions as the Penn Treebank tokenizer does: in lower case, without punctuation.

    Raises:
        RuntimeError: the tokenizer failed; its reason is on stderr.
    """
    # It takes a caption a line, and Java ends lines at more characters than "\n".
    lines = {item: [{"caption": " ".join(text.split())} for text in own] for item, own in texts.items()}
    tokens: Texts = PTBTokenizer().tokenize(lines)
    if {item: len(own) for item, own in tokens.items()} != {item: len(own) for item, own in texts.items()}:
        raise RuntimeError("PTBTokenizer: expected a line for each caption")
    return tokens


def _try_tools(spice: bool) -> dict[str, float]:
    """Check that Java and the tokenizer work, and score one caption with SPICE if it is asked for."""
    java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
    if java.returncode:
        raise RuntimeError(f"Java does not start: {_last_line(java.stderr)}")
    tokens = tokenize({"": ["A cat."]})
    if tokens != {"": ["a cat"]}:
        raise RuntimeError(f"PTBTokenizer: expected 'a cat' of 'A cat.', got {tokens['']}")
    return {"SPICE": float(Spice().compute_score(tokens, tokens)[0])} if spice else {}


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
def _reserve_stdout() -> Iterator[int]:
    """Yield stdout for this program alone; what anything else prints there, Java too, goes to stderr."""
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        yield answer
    finally:
        os.close(answer)


if __name__ == "__main__":
    main()
