"""The program that `benchmarks.scoring.metrics` runs: pycocoevalcap's scorers, with all they print sent to stderr.

Reads a job from stdin, {"candidates": {item: caption}, "references": {item: [caption, ...]}, "spice": bool}, and writes
{metric: score} to stdout. A job without candidates only tries out what the metrics need.
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
    job = json.load(sys.stdin)
    with _own_stdout() as answer:
        if job["candidates"]:
            scores = score(job["candidates"], job["references"], job["spice"])
        else:
            scores = _try_out(job["spice"])
        os.write(answer, json.dumps(scores).encode())


def score(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], spice: bool) -> dict[str, float]:
    """All metrics, of captions as they were written."""
    said = tokenized({item: [caption] for item, caption in candidates.items()})
    wanted = tokenized({item: list(references[item]) for item in candidates})
    scores = score_words(said, wanted)
    with _meteor() as meteor:
        scores["METEOR"] = meteor.compute_score(wanted, said)[0]
    if spice:
        scores["SPICE"] = Spice().compute_score(wanted, said)[0]
    return {name: float(value) for name, value in scores.items()}


def score_words(said: Texts, wanted: Texts) -> dict[str, float]:
    """The metrics that compare words and need no Java, of tokenized captions: one of each item, and its references."""
    bleu, _ = Bleu(4).compute_score(wanted, said, verbose=0)
    scores = {f"BLEU-{length}": value for length, value in enumerate(bleu, start=1)}
    scores["ROUGE-L"] = Rouge().compute_score(wanted, said)[0]
    scores["CIDEr"] = Cider().compute_score(wanted, said)[0]
    return scores


def tokenized(texts: Mapping[str, Sequence[str]]) -> Texts:
    """Captions as the Penn Treebank tokenizer splits them: in lower case, without punctuation.

    Raises:
        RuntimeError: the tokenizer failed; it has said why on stderr.
    """
    # It takes a caption a line; Java ends lines at more signs than "\n".
    lines = {item: [{"caption": " ".join(text.split())} for text in own] for item, own in texts.items()}
    tokens: Texts = PTBTokenizer().tokenize(lines)
    if {item: len(own) for item, own in tokens.items()} != {item: len(own) for item, own in texts.items()}:
        raise RuntimeError("PTBTokenizer: expected a line for each caption")
    return tokens


def _try_out(spice: bool) -> dict[str, float]:
    java = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
    if java.returncode:
        raise RuntimeError(f"Java does not start: {_last_line(java.stderr)}")
    tokens = tokenized({"": ["A cat."]})
    if tokens != {"": ["a cat"]}:
        raise RuntimeError(f"PTBTokenizer: expected 'a cat' of 'A cat.', got {tokens['']}")
    return {"SPICE": float(Spice().compute_score(tokens, tokens)[0])} if spice else {}


@contextmanager
def _meteor() -> Iterator[Any]:
    """METEOR with its Java process, which is gone afterwards whatever happens."""
    meteor = Meteor()
    try:
        yield meteor
    except (OSError, ValueError) as error:  # a broken pipe, or no number where one was expected
        meteor.meteor_p.kill()
        raise RuntimeError(f"METEOR: {error}; {_last_line(meteor.meteor_p.stderr.read().decode())}") from None
    finally:
        meteor.meteor_p.kill()
        meteor.meteor_p.wait()
        with suppress(OSError):  # of what could not be written to it
            meteor.meteor_p.stdin.close()
        if meteor.lock.locked():  # left so by an error; its destructor would wait for it forever
            meteor.lock.release()


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


@contextmanager
def _own_stdout() -> Iterator[int]:
    """A way to stdout for this program alone: what anything else prints there, Java's too, goes to stderr."""
    answer = os.dup(1)
    os.dup2(2, 1)
    try:
        yield answer
    finally:
        os.close(answer)


if __name__ == "__main__":
    main()
