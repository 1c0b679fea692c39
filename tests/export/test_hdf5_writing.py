"""HDF5 files: a disk that is full, or a signal, is an error and not the end of the process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest

from export.hdf5_writing import new_hdf5_file
from tests.children import run_child

FULL = """
import gc, resource, sys
from pathlib import Path
import h5py
import numpy as np
from export.hdf5_writing import new_hdf5_file
from runtime.errors import PatchcaptionError

path, rows = Path(sys.argv[1]), np.arange(60_000.0).reshape(-1, 6)

def begin(file):
    file.create_dataset("rows", rows.shape, np.float64)
    file.create_dataset("texts", (len(rows),), h5py.string_dtype())

def put(file):
    file["rows"][:] = rows
    file["texts"][:] = [f"text {number}" for number in range(len(rows))]

def write(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with new_hdf5_file(path) as writer:
            writer.write(begin)
            writer.write(put)
        return "whole"
    except PatchcaptionError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

print(write(resource.RLIM_INFINITY))
size = path.stat().st_size
for limit in (0, 1, 95, 96, 800, 2048, 4000, size // 3, size // 2, size - 5000, size - 1):
    print(write(limit))
gc.collect()
print(write(size))
"""


def test_a_full_disk_is_one_line_wherever_it_is_full(tmp_path: Path) -> None:
    done = run_child(FULL, tmp_path / "bank.h5")
    assert done.returncode == 0, done.stderr
    first, *failed, last = done.stdout.splitlines()
    assert (first, last) == ("whole", "whole")
    assert failed == [f"{tmp_path}/bank.h5: cannot be written: File too large"] * 11


def test_a_signal_waits_for_the_end_of_a_part(tmp_path: Path) -> None:
    written = []

    def put(file: h5py.File) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        file["rows"] = np.arange(5)
        written.append(len(file["rows"]))

    def write() -> None:
        with new_hdf5_file(tmp_path / "bank.h5") as writer:
            writer.write(put)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            write()
    finally:
        signal.signal(signal.SIGINT, before)
    assert written == [5]
    with h5py.File(tmp_path / "bank.h5") as file:
        assert file["rows"][:].tolist() == [0, 1, 2, 3, 4]
