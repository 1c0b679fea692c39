"""Runs `patchcaption batch`, ends it at random points, and lets it go on. Run by test_killed_batch.py.

Usage: killed_batch.py ENDINGS POINTS BUNDLE FOLDER, with commas between endings, each of which comes at so many points.
Fails where the run that went on does not give what a run gives that was not ended. Prints how many were ended before
their results were there.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch
from PIL import Image

from tests.conftest import SAMPLE
from tests.robustness.killed_outputs import Prepare, count_calls, end_at, limit_file_size, run

IMAGES, A_PART = 5, 2


def main() -> None:
    endings, points, bundle, folder = sys.argv[1].split(","), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    torch.set_num_threads(1)
    arguments = command_line(bundle, folder)
    first_call, calls = count_calls(arguments)
    expected = (folder / "out.jsonl").read_bytes()
    assert len(expected.splitlines()) == 2 * IMAGES + 1
    ended = 0
    for ending in endings:
        chance = random.Random(ending)
        for _ in range(points):
            clear(folder)
            run(arguments, ends(ending, chance, first_call, calls, len(expected)))
            ended += not (folder / "out.jsonl").exists()
            check_parts(folder, expected)
            run(arguments, lambda *_: None)
            assert (folder / "out.jsonl").read_bytes() == expected, ending
            left = {path.name for path in folder.iterdir() if path.name.startswith("out")}
            leftovers = {name for name in left if name.startswith("out.part-")}
            assert left - leftovers == {"out.jsonl", "out.jsonl.run.json"}, left
            assert not leftovers or ending == "kill", leftovers
    print(ended)


def command_line(bundle: str, folder: Path) -> list[str]:
    (folder / "images").mkdir()
    with Image.open(SAMPLE / "scene.jpg") as scene:
        for number in range(IMAGES):
            scene.rotate(40 * number).resize((96, 96)).save(folder / "images" / f"{number}.jpg")
    (folder / "images" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    regions = folder / "regions.json"
    regions.write_text(json.dumps([{"kind": "whole_image"}, [10, 10, 60, 80]]))
    out = ["--out", str(folder / "out.jsonl"), "--part-images", str(A_PART)]
    return ["batch", str(folder / "images"), "--bundle", bundle, "--regions", str(regions), *out]


def ends(ending: str, chance: random.Random, first_call: int, calls: int, size: int) -> Prepare:
    if ending == "full":
        return limit_file_size(chance.randrange(100, size))
    return end_at(chance.randrange(first_call, calls), ending)


def check_parts(folder: Path, expected: bytes) -> None:
    """Fail if a part that others may read meanwhile is not whole."""
    for part in (folder / "out.jsonl.parts").glob("part-*.jsonl"):
        assert part.read_bytes() in expected, part


def clear(folder: Path) -> None:
    for file in folder.glob("out*"):
        file.unlink()


if __name__ == "__main__":
    main()
