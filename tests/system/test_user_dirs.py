"""What is executed when it is read again is used only where nobody else can have written it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from runtime import BackendError
from runtime.bundle.trust import is_trusted, trust
from runtime.system.files import write_cache
from runtime.system.user_dirs import cache_file, data_folder, private_cache_folder

SHA256 = 64 * "a"
NOBODY = 65534


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that holds this user's folders."""
    for name in ("DATA", "CACHE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def open_to_all(path: Path) -> None:
    path.chmod(0o777)


def open_to_the_group(path: Path) -> None:
    path.chmod(0o770)


def belongs_to_another(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def is_link_of_another(path: Path) -> None:
    real = path.rename(path.with_name("real"))
    path.symlink_to(real)
    belongs_to_another(path)


SPOILERS = [open_to_all, open_to_the_group, belongs_to_another, is_link_of_another]
PLACES = ["patchcaption", "patchcaption/trusted-plans", f"patchcaption/trusted-plans/{SHA256}"]


def test_a_mark_counts_where_only_this_user_can_have_put_it(base: Path) -> None:
    assert not is_trusted(SHA256)
    trust(SHA256)
    assert is_trusted(SHA256)
    for place, mode in zip(PLACES, (0o700, 0o700, 0o600), strict=True):
        assert stat.S_IMODE((base / place).stat().st_mode) == mode


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_mark_that_somebody_else_can_have_put_there_does_not_count(
    base: Path, spoil: Callable[[Path], None], place: str
) -> None:
    trust(SHA256)
    spoil(base / place)
    assert not is_trusted(SHA256)
    if place != PLACES[-1]:
        with pytest.raises(BackendError, match="others can write to .*trusted-plans, or own a part of it"):
            trust("b" * 64)


def test_a_folder_around_them_that_everybody_can_write_to_needs_the_sticky_bit(base: Path) -> None:
    trust(SHA256)
    base.chmod(0o1777)
    assert is_trusted(SHA256)
    base.chmod(0o777)
    assert not is_trusted(SHA256)


@pytest.mark.parametrize("home", [".", "home", "./home"])
def test_a_home_that_depends_on_where_the_program_runs_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "here")
    monkeypatch.setenv("HOME", home)
    mark = tmp_path / home / ".local/share" / PLACES[-1]
    mark.parent.mkdir(parents=True)
    mark.touch()
    assert not is_trusted(SHA256)
    assert cache_file("timing.cache") is None
    with pytest.raises(RuntimeError, match=f"the home folder '{Path(home)}' is no absolute path"):
        data_folder()
    with pytest.raises(BackendError, match="cannot be remembered: .* set XDG_DATA_HOME to a folder"):
        trust(SHA256)


@pytest.mark.parametrize("spoil", SPOILERS)
def test_a_cache_that_somebody_else_can_have_written_is_not_used(base: Path, spoil: Callable[[Path], None]) -> None:
    file = cache_file("tensorrt-rtx", "plan.cache")
    assert file is not None
    assert write_cache(file, b"compiled")
    assert cache_file("tensorrt-rtx", "plan.cache") == file
    spoil(base / "patchcaption" / "tensorrt-rtx")
    assert cache_file("tensorrt-rtx", "plan.cache") is None


def test_engines_of_others_are_not_executed(base: Path) -> None:
    folder = private_cache_folder("ort-tensorrt")
    assert folder == base / "patchcaption" / "ort-tensorrt"
    (folder / "backbone.engine").touch(0o664)  # as a library may write it
    assert private_cache_folder("ort-tensorrt") == folder
    belongs_to_another(folder / "backbone.engine")
    assert private_cache_folder("ort-tensorrt") is None
