"""Changed graphs, each refused by admission or run: `python -m tests.robustness.graph_mutants BUNDLE ENGINE COUNT`.

A child process, so that a crash ends only it. It dies of what takes over 1 GiB or 60 s; its last line tells which
mutant that was, and `--first N` begins there. A mutant depends on its number alone.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import random
import re
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from onnx import ModelProto, TensorProto, numpy_helper
from torch import Tensor

from runtime.backends import Backend
from runtime.backends.onnxruntime_cpu import OrtBackend
from runtime.backends.openvino import OpenVinoBackend
from runtime.bundle import Bundle, EngineFiles, EngineName, HeldFile
from runtime.bundle.admission import EngineContract, OnnxGraph, admit, engine_contract
from runtime.bundle.admission.operators import OPERATORS
from runtime.bundle.graph_io import TensorSpec
from runtime.errors import BackendError, BundleError
from tests.export.graph_mutations import MUTATIONS
from tests.graph_reading import as_protobuf_reads

MAX_BYTES = 2**30
"""Beyond what the process has before it sees a mutant."""
MAX_SECONDS = 60
_DTYPES = {
    **{"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16},
    **{"u8": torch.uint8, "i64": torch.int64, "bool": torch.bool},
}
NEEDS_WEIGHTS = ("change_weight_dtype", "change_weight_shape")  # those of a bundle's graphs are in another file
_NUMBERS = (0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))
_SIZES = {"images": 2, "regions": 3, "region_tokens": 5, "prompt_tokens": 4}


@dataclass
class MutantCounts:
    """What became of the mutants.

    Attributes:
        alike: admitted ones that differ from one that was run in names alone.
        run: admitted ones that were given to an executor.
        refused_later: those of them that it refused.
        refused_opened: those that it lost an output of, as it is another one by another name; the contract says so.
    """

    refused: int = 0
    alike: int = 0
    run: int = 0
    refused_later: int = 0
    refused_opened: int = 0


def change_bytes(content: bytes, picks: random.Random) -> bytes:
    """Return a file with some of its bytes changed, dropped, repeated or moved."""
    changed = bytearray(content)
    for _ in range(picks.choice((1, 1, 1, 2, 4))):
        start = picks.randrange(len(changed))
        stop = start + picks.choice((1, 1, 2, 8, 64, 1024))
        kind = picks.randrange(5)
        if kind == 0:
            changed[start] ^= 1 << picks.randrange(8)
        elif kind == 1:
            changed[start] = picks.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del changed[start:stop]
        elif kind == 3:
            changed[start:start] = changed[start:stop]
        else:
            other = picks.randrange(len(changed))
            changed[start:stop] = changed[other : other + stop - start]
    return bytes(changed)


def change_number(model: ModelProto, picks: random.Random) -> None:
    """Change a number of a constant that decides on shapes, axes or places."""
    constants = [one for one in model.graph.initializer if one.data_type == TensorProto.INT64 and one.raw_data]
    if constants:
        constant = picks.choice(constants)
        values = numpy_helper.to_array(constant).copy()
        values.reshape(-1)[picks.randrange(values.size)] = picks.choice(_NUMBERS)
        constant.CopyFrom(numpy_helper.from_array(values, constant.name))


def change_admitted_operator(model: ModelProto, picks: random.Random) -> None:
    """Make a node another operator of the table."""
    picks.choice(model.graph.node).op_type = picks.choice(list(OPERATORS))[1]


def change_attribute_wildly(model: ModelProto, picks: random.Random) -> None:
    """Give an attribute of whole numbers any of them."""
    attributes = [one for node in model.graph.node for one in node.attribute if one.type in (2, 7)]
    attribute = picks.choice(attributes)
    if attribute.ints:
        attribute.ints[picks.randrange(len(attribute.ints))] = picks.choice(_NUMBERS)
    else:
        attribute.i = picks.choice(_NUMBERS)


def repeat_node(model: ModelProto, picks: random.Random) -> None:
    """Put a copy of a node between it and those that read what it makes."""
    place = picks.randrange(len(model.graph.node))
    copy = onnx.NodeProto()
    copy.CopyFrom(model.graph.node[place])
    copy.input[0], copy.output[0] = copy.output[0], "repeated"
    for node in model.graph.node[place + 1 :]:
        for index, name in enumerate(node.input):
            if name == copy.input[0]:
                node.input[index] = "repeated"
    model.graph.node.insert(place + 1, copy)


def swap_alike(model: ModelProto, picks: random.Random) -> None:
    """Let a node read another weight of the same shape and type, or another constant."""
    kinds: dict[tuple[object, ...], list[str]] = {}
    for one in model.graph.initializer:
        kinds.setdefault((one.data_type, *(one.dims if one.data_type != TensorProto.INT64 else ())), []).append(
            one.name
        )
    kind_of = {name: names for names in kinds.values() for name in names}
    uses = [(node, index) for node in model.graph.node for index, name in enumerate(node.input) if name in kind_of]
    node, index = picks.choice(uses)
    node.input[index] = picks.choice(kind_of[node.input[index]])


def drop_declarations(model: ModelProto, picks: random.Random) -> None:
    """Leave out what the graph says of tensors between nodes, and change it otherwise."""
    del model.graph.value_info[:]
    change_structure(model, picks)


def change_structure(model: ModelProto, picks: random.Random) -> None:
    """Change a graph in one way that its format allows."""
    picks.choice(_CHANGES)(model, picks)


_OWN_CHANGES: tuple[Callable[[ModelProto, random.Random], None], ...] = (
    change_number,
    change_admitted_operator,
    change_attribute_wildly,
    repeat_node,
    swap_alike,
    drop_declarations,
)
_CHANGES = (*_OWN_CHANGES * 2, *(change for name, change in MUTATIONS.items() if name not in NEEDS_WEIGHTS))


def mutant(model: ModelProto, content: bytes, number: int) -> bytes:
    """Return a changed graph: two of three by their bytes."""
    picks = random.Random(number)
    if number % 3:
        return change_bytes(content, picks)
    changed = ModelProto()
    changed.CopyFrom(model)
    with contextlib.suppress(ValueError, IndexError, OverflowError):  # a change that this graph does not allow
        change_structure(changed, picks)
    return changed.SerializeToString()


def without_names(graph: OnnxGraph) -> str:
    """Return all that decides on what a graph computes."""
    nodes = tuple(replace(node, name="") for node in graph.nodes)
    return repr((nodes, graph.weights))


def inputs_of(contract: EngineContract) -> dict[str, Tensor]:
    """Return inputs as a contract says."""
    return {spec.name: _values(contract, spec) for spec in contract.io.inputs}


def _values(contract: EngineContract, spec: TensorSpec) -> Tensor:
    facts = contract.input_facts(spec)
    shape = [size.at(_SIZES) for size in facts.shape]
    dtype = _DTYPES[facts.dtype]
    if dtype.is_floating_point:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    _, last = facts.bounds or (0, 1)
    return torch.full(shape, last).to(dtype)


def check_outputs(contract: EngineContract, outputs: Mapping[str, Tensor]) -> None:
    """Raise unless outputs are as a contract says."""
    for spec in contract.io.outputs:
        got = outputs[spec.name]
        assert got.dtype == _DTYPES[contract.element_type(spec)], spec
        sizes = {**contract.fixed, **_SIZES}
        expected = [axis if isinstance(axis, int) else sizes.get(axis) for axis in spec.axes]
        assert len(got.shape) == len(expected), (spec, got.shape)
        assert all(want in (None, size) for want, size in zip(expected, got.shape, strict=True)), (spec, got.shape)
        last = contract.last_ids.get(spec.name)
        assert last is None or (int(got.min()) >= 0 and int(got.max()) <= last), (spec, got)


class MutantRunner:
    """Admits mutants of one engine, and runs those that are admitted with one executor and the other by turns."""

    def __init__(self, bundle: Bundle, name: EngineName, folder: Path) -> None:
        self._graph = bundle.path(bundle.manifest.engines[name].file)
        self._contract = engine_contract(bundle.manifest, name)
        self._declared = bundle.engine(name).contract
        self._files = {file: bundle.file(file) for file in bundle.manifest.files}
        self._path = folder / self._graph.name
        for file in self._files:
            if file.endswith(".data"):
                shutil.copy(bundle.path(file), folder)  # a link ONNX Runtime would not follow
        self._backends: tuple[Backend, ...] = (OrtBackend(1), OpenVinoBackend(1))
        self._inputs = inputs_of(self._contract)
        self._seen = set[int]()
        self.counts = MutantCounts()
        self.content = self._graph.read_bytes()
        self.model = onnx.load(self._graph, load_external_data=False)

    def try_one(self, content: bytes) -> None:
        """Admit a graph's bytes and run them, or count them as refused."""
        self._path.unlink(missing_ok=True)  # ext4 writes a file that is written over to the disk at once
        self._path.write_bytes(content)
        try:
            graph = admit(HeldFile(self._path), self._contract, self._files)
        except BundleError:
            self.counts.refused += 1
            return
        assert graph == as_protobuf_reads(content)
        key = hash(without_names(graph))
        if key in self._seen:
            self.counts.alike += 1
            return
        self._seen.add(key)
        self.counts.run += 1
        self._run(self._backends[self.counts.run % len(self._backends)])

    def run_unchanged(self) -> None:
        """Run the engine's own graph with every executor, which loads what they load late."""
        self.try_one(self.content)
        assert self.counts == MutantCounts(run=1)
        for backend in self._backends:
            self._run(backend)

    def _run(self, backend: Backend) -> None:
        """Run the graph that was written last."""
        try:
            with contextlib.closing(backend.open(EngineFiles(self._path, contract=self._declared))) as engine:
                check_outputs(self._contract, engine.run(self._inputs))
        except BundleError as error:
            if not re.search(r": output [\w.]+: missing", str(error)):
                raise
            self.counts.refused_opened += 1
        except BackendError as error:
            self.counts.refused_later += 1
            print(error, file=sys.stderr)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("engine")
    parser.add_argument("count", type=int)
    parser.add_argument("--first", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        runner = MutantRunner(Bundle(options.bundle), options.engine, Path(folder))
        runner.run_unchanged()
        _limit_memory()
        for number in range(options.first, options.first + options.count):
            print(number, flush=True)
            faulthandler.dump_traceback_later(MAX_SECONDS, exit=True)
            runner.try_one(mutant(runner.model, runner.content, number))
        faulthandler.cancel_dump_traceback_later()
    print(json.dumps(vars(runner.counts)))


if __name__ == "__main__":
    main()
