"""Pickles of others are read without running code in them, and without taking more memory than they hold."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from export.checkpoint import CheckpointError
from export.readers.restricted_pickle import read_container_pickle, read_tensor_pickle
from tests.children import run_child


class Call:
    """Is a call of a function when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def storage(count: int, dtype: torch.dtype = torch.float32) -> bytes:
    """The torch file that a pickled storage is."""
    bare = torch.zeros(count, dtype=dtype).untyped_storage()
    return legacy(torch.storage.TypedStorage(wrap_storage=bare, dtype=dtype, _internal=True))


def tensor(data: bytes, size: Any, stride: Any, offset: Any = 0) -> Call:
    rebuild, load = torch._utils._rebuild_tensor_v2, torch.storage._load_from_bytes
    return Call(rebuild, Call(load, data), offset, size, stride, False, OrderedDict())


def legacy(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int64])
def test_tensors_are_read_as_they_were_stored(protocol: int, dtype: torch.dtype, tmp_path: Path) -> None:
    stored = torch.arange(24).reshape(4, 6).to(dtype)
    for value in (stored, stored.T, stored[1:3, ::2], stored[0, 0], torch.empty(0, 3)):
        (tmp_path / "a.pickle").write_bytes(pickle.dumps(value, protocol=protocol))
        read = read_tensor_pickle(tmp_path / "a.pickle")
        assert torch.equal(read, value)
        assert read.dtype == value.dtype


@pytest.mark.parametrize("protocol", range(6))
def test_containers_are_read_as_they_were_stored(protocol: int, tmp_path: Path) -> None:
    names = ["a", "b c", "żółw", "漢"]
    value = {"objects": {"joint": set(names), "gqa": set(names[:2])}, "counts": {"a": [1, 2.5, None, True, (1, -3)]}}
    (tmp_path / "a.pickle").write_bytes(pickle.dumps(value, protocol=protocol))
    assert read_container_pickle(tmp_path / "a.pickle") == value


def hostile(marker: str) -> dict[str, bytes]:
    """Files that would run a command, or that ask for what a file of data has no need of."""
    command = f"touch {marker}"
    return {
        "posix.system": pickle.dumps(Call(os.system, command), protocol=4),
        "posix.system in protocol 0": pickle.dumps(Call(os.system, command), protocol=0),
        "posix.system in protocol 2": pickle.dumps(Call(os.system, command), protocol=2),
        "builtins.eval": pickle.dumps(Call(eval, f"__import__('os').system({command!r})")),
        "builtins.getattr": pickle.dumps(Call(getattr, {}, "keys")),
        "os.system": f"(S'{command}'\nios\nsystem\n.".encode(),
        "posix.system in a set": pickle.dumps({"objects": {"joint": {"a": Call(os.system, command)}}}),
        "posix.system in a storage": pickle.dumps(tensor(legacy(Call(os.system, command)), (1,), (1,))),
        "posix.system in the version of a storage": pickle.dumps(
            tensor(storage(1)[:15] + pickle.dumps(Call(os.system, command), protocol=2), (1,), (1,))
        ),
        "torch._utils._rebuild_parameter": pickle.dumps(torch.nn.Parameter(torch.ones(2, 2))),
        "torch._utils._rebuild_sparse_tensor": pickle.dumps(torch.ones(2, 2).to_sparse()),
        "operation BUILD": pickle.dumps(Call(OrderedDict), protocol=4)[:-1] + b"}b.",
        "operation NEWOBJ": b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        "operation PERSID": b"Pmodule\n.",
        "operation EXT1": b"\x80\x02\x82\x01.",
        "storage as torch pickles it": pickle.dumps(tensor(zipped(Call(os.system, command)), (1,), (1,))),
        "storage as torch pickles it, got dict": pickle.dumps(tensor(legacy({}), (1,), (1,))),
    }


def zipped(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_no_code_in_a_file_is_run_and_what_it_asks_for_is_named(tmp_path: Path) -> None:
    marker = tmp_path / "it_ran"
    for name, content in hostile(str(marker)).items():
        path = tmp_path / "a.pickle"
        path.write_bytes(content)
        for read in (read_tensor_pickle, read_container_pickle):
            with pytest.raises(CheckpointError) as caught:
                read(path)
            assert str(path) in str(caught.value), name
            if read is read_tensor_pickle:
                assert name.split(" in ")[0] in str(caught.value), name
        assert not marker.exists(), name


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1]}, "expected a tensor, got dict"),
        (tensor(storage(4), (2, 4), (4, 1)), "not a pickle: .*out of bounds"),
        (tensor(storage(4), (2, 2), (2, 1), 3), "not a pickle: .*out of bounds"),
        (tensor(storage(4), (10**12, 10**6), (0, 0)), r"expected at most 4 numbers, got the shape \(1000000000000"),
        (tensor(storage(4), (2, 4), (0, 1)), r"expected at most 4 numbers, got the shape \(2, 4\)"),
        (tensor(storage(4), (-1, 2), (1, 1)), "not a pickle: "),
        (tensor(storage(4), ("a",), (1,)), "not a pickle: "),
        (tensor(storage(4), (1,), (1, 1)), "not a pickle: "),
        (tensor(storage(4)[:-5], (4,), (1,)), "its storage cannot be read: "),
        ([torch.ones(2), torch.ones(3)], "expected a tensor with one storage, got several"),
    ],
)
def test_a_tensor_that_its_numbers_do_not_make_is_refused(value: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.pickle").write_bytes(pickle.dumps(value))
    with pytest.raises(CheckpointError, match=f"a.pickle: .*{message}"):
        read_tensor_pickle(tmp_path / "a.pickle")


def declaring(count: int) -> bytes:
    """A storage that declares to be of so many numbers, and holds 7."""
    honest = storage(7)
    return honest.replace(b"K\x07", b"\x8a\x08" + struct.pack("<q", count))


def huge_files() -> dict[str, bytes]:
    """Small files that declare to be large, or that nest deeply."""
    numbers = pickle.dumps(list(range(10**5)), protocol=2)
    again = b"h\x00cbuiltins\nset\nq\x01h\x00\x85R" + b"h\x01h\x00\x85R" * 10**5
    return {
        "memo": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
        "memo in protocol 0": b"I1\np999999999\n.",
        "memo below 0": b"I1\np-1\n.",
        "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
        "array": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
        "text": b"\x80\x04X\xff\xff\xff\xff abc.",
        "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
        "sets of one list": numbers[:-1] + again + b".",
        "deep tuples": b"\x80\x02})" + b"\x85" * 2 * 10**5 + b"K\x01s.",
        "deep lists": b"\x80\x02" + b"]" * 2 * 10**5 + b"a" * (2 * 10**5 - 1) + b".",
        "storage of 4 TB": pickle.dumps(tensor(declaring(2**40), (7,), (1,))),
        "storage of 32 GB": pickle.dumps(tensor(declaring(2**33), (7,), (1,))),
        "storage of less than 0": pickle.dumps(tensor(declaring(-1), (7,), (1,))),
        "shape": pickle.dumps(tensor(storage(7), (2**31, 2**31), (0, 0))),
        "empty": b"",
        "no pickle": b"\xff\xfe" * 100,
        "cut short": pickle.dumps(torch.ones(100))[:-50],
    }


@pytest.mark.slow
def test_files_that_declare_to_be_large_take_neither_memory_nor_time(tmp_path: Path) -> None:
    for number, (name, content) in enumerate(huge_files().items()):
        (tmp_path / f"{number} {name}").write_bytes(content)
    code = """
        import json, resource, sys
        from pathlib import Path
        from export.checkpoint import CheckpointError
        from export.readers.restricted_pickle import read_container_pickle, read_tensor_pickle

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answers = {}
        for path in sorted(Path(sys.argv[1]).iterdir()):
            for read in (read_tensor_pickle, read_container_pickle):
                try:
                    answers[f"{path.name} {read.__name__}"] = type(read(path)).__name__
                except CheckpointError as error:
                    answers[f"{path.name} {read.__name__}"] = str(error)
        print(json.dumps({"mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, "all": answers}))
    """
    done = run_child(code, tmp_path, memory_mib=8192)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert answers["mib"] < 500
    fine = {name for name, answer in answers["all"].items() if answer in ("list", "dict", "Tensor")}
    assert {name.split(" ", 1)[1] for name in fine} <= {"deep lists read_container_pickle"}
    assert len(answers["all"]) == 2 * len(huge_files())
