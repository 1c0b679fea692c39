"""A process that is forked after a captioner was loaded is told so, and ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime import Captioner, PatchcaptionError
from runtime.system import forks
from tests.children import run_child

FORKED = """
import os, signal, sys
import numpy as np
from runtime import Captioner, PatchcaptionError, WholeImage

image = np.zeros((50, 50, 3), np.uint8)
captioner = Captioner.load(sys.argv[1], "cpu")
batching = captioner.batching()
stream = captioner.stream([image] * 100, [WholeImage()])
features = next(stream) and captioner.encode(image)
if sys.argv[2] == "closed":
    stream.close()
    batching.close()
    captioner.close()
child = os.fork()
if child == 0:
    signal.alarm(30)
    uses = [
        lambda: Captioner.load(sys.argv[1], "cpu"),
        lambda: captioner.encode(image),
        lambda: captioner.describe(features, [WholeImage()]),
        lambda: captioner.vectors(features, [WholeImage()]),
        lambda: captioner.project(features.cls),
        lambda: captioner.decode(features.cls),
        lambda: captioner.stream([image], [WholeImage()]),
        lambda: next(stream),
        lambda: batching.describe(features, [WholeImage()]),
    ]
    for use in uses:
        try:
            use()
        except PatchcaptionError as error:
            print("refused" if 'get_context("spawn")' in str(error) else error)
    for one in (stream, batching, captioner):
        one.close()
    print("closed", flush=True)
    sys.exit(7)
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("state", ["open", "closed"])
def test_a_forked_process_is_refused_and_ends(demo_bundle: Path, state: str) -> None:
    result = run_child(FORKED, demo_bundle, state)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == ["refused"] * 9 + ["closed", "child 7"]


def test_a_process_that_was_forked_before_the_first_captioner_has_its_own(
    demo: Captioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "_engines_pid", None)
    forks.require_own_engines()
    forks.claim_engines(demo.pipeline)
    assert forks._engines_pid == os.getpid()
    monkeypatch.setattr(forks, "_engines_pid", os.getpid() + 1)
    with pytest.raises(PatchcaptionError, match=f"was forked from process {os.getpid() + 1} after .*spawn"):
        forks.claim_engines(demo.pipeline)
