"""Damaged images of every format that is opened, some thousands of them; `image_mutants.py` tries more."""

from __future__ import annotations

from runtime.image.formats import FORMATS
from tests.children import run_child
from tests.robustness import image_mutants

COUNT = 4000


def test_there_is_an_image_of_every_format() -> None:
    assert {name.split()[0] for name, _ in image_mutants.seeds()} >= set(FORMATS) - {"AVIF", "QOI"}
    assert {image_mutants.check(data) for _, data in image_mutants.seeds()} == {"image"}


def test_damaged_images_are_images_or_refused_in_one_line() -> None:
    code = f"import sys; from tests.robustness import image_mutants; sys.exit(image_mutants.main({COUNT}, 0) > 0)"
    done = run_child(code, timeout_s=100, memory_mib=8192)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "", "nothing of what decoders print"
