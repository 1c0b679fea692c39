from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from runtime.batch.image_names import find_images
from runtime.errors import ImageError


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def names(*arguments: str) -> list[str]:
    return [found.name for found in sorted(find_images(arguments))]


def test_a_folder_is_its_images_in_all_folders_but_hidden_ones(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("b.JPG", "a/c.png", "a/d/e.webp", "notes.md", ".hidden.jpg", ".git/f.jpg")))
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "again").symlink_to(tmp_path)  # which would be gone through for ever
    assert names(str(tmp_path)) == [str(tmp_path / name) for name in ("a/c.png", "a/d/e.webp", "b.JPG")]


def test_patterns_lists_and_files_keep_the_order_of_the_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    touch(*map(Path, ("z/1.jpg", "z/y/2.jpg", "a.bin", "b.jpg")))
    Path("list.txt").write_text("b.jpg\n\n./a.bin\r\n")
    assert names("list.txt", "z/**/*.jpg", "a.bin", "lost.jpg") == [
        "b.jpg", "a.bin", "z/1.jpg", "z/y/2.jpg", "a.bin", "lost.jpg"
    ]  # fmt: skip


def test_a_list_may_come_from_stdin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "list"
    given.write_bytes(b"one.jpg\n\xff.jpg\n")
    with given.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert names("-") == ["one.jpg", os.fsdecode(b"\xff.jpg")]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("", "'': no such file"),
        ("empty", "empty: no images in it"),
        ("nothing/*.jpg", "nothing/\\*.jpg: no such file, and none that the pattern matches"),
        ("empty.txt", "empty.txt: no images in it"),
        ("lost.txt", "lost.txt: cannot be read: No such file"),
        ("image.txt", "image.txt: line 1: expected the name of a file, got bytes"),
    ],
)
def test_an_argument_that_stands_for_no_image_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("empty.txt").touch()
    Path("image.txt").write_bytes(io.BytesIO(b"\x89PNG\0\0").getvalue())
    with pytest.raises(ImageError, match=message):
        names(argument)


def test_a_name_with_a_zero_is_left_to_whoever_opens_it() -> None:
    assert names("a\0b.jpg") == ["a\0b.jpg"]
