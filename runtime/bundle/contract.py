"""The contract of one bundle's graph: the names, dtypes and sizes of its inputs and outputs, by the manifest's numbers.

An engine is held to it twice: by what it declares when it is opened, and by the outputs of every run, because a graph
may declare one shape and return another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from runtime.bundle.dtypes import NUMBER_FORMATS
from runtime.bundle.engine_io import engine_io, fixed_sizes
from runtime.bundle.graph_io import VOCABULARY, TensorDtype, TensorSpec
from runtime.bundle.manifest import EngineName, Manifest
from runtime.errors import BundleError

_FIX = "build the bundle again"
_DTYPES: Mapping[TensorDtype, torch.dtype] = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "int64": torch.int64,
    "float32": torch.float32,
}


@dataclass(frozen=True)
class DeclaredTensor:
    """An input or output as an engine declares it.

    Attributes:
        dtype: None where torch has no such type.
        sizes: None for an axis whose size the engine leaves open.
    """

    name: str
    dtype: torch.dtype | None
    sizes: tuple[int | None, ...]


@dataclass(frozen=True)
class TensorContract:
    """One input or output.

    Attributes:
        axes: the name of each axis whose size is chosen at run time, the size of each other one.
    """

    name: str
    dtype: torch.dtype
    axes: tuple[str | int, ...]

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} ({', '.join(map(str, self.axes))})"

    def admits(self, declared: DeclaredTensor) -> bool:
        """Return whether a declaration is of this dtype, rank and these sizes, as far as it names them."""
        return (
            declared.dtype == self.dtype
            and len(declared.sizes) == len(self.axes)
            and all(
                isinstance(axis, str) or size is None or size == axis
                for axis, size in zip(self.axes, declared.sizes, strict=True)
            )
        )


@dataclass(frozen=True)
class GraphContract:
    """The inputs and outputs of a graph.

    Attributes:
        max_vocabulary: the most tokens that it may choose among.
    """

    inputs: tuple[TensorContract, ...]
    outputs: tuple[TensorContract, ...]
    max_vocabulary: int

    @classmethod
    def of(cls, name: EngineName, manifest: Manifest) -> GraphContract:
        """Return the contract of an engine's graph."""
        io, sizes = engine_io(name, manifest), fixed_sizes(manifest)
        cache = NUMBER_FORMATS[manifest.decoder.cache_precision].torch

        def resolve(spec: TensorSpec) -> TensorContract:
            dtype = cache if spec.dtype == "cache" else _DTYPES[spec.dtype]
            return TensorContract(
                spec.name, dtype, tuple(axis if isinstance(axis, int) else sizes.get(axis, axis) for axis in spec.axes)
            )

        return cls(tuple(map(resolve, io.inputs)), tuple(map(resolve, io.outputs)), manifest.decoder.vocab_size)

    def check_declared(self, graph: Path, inputs: Sequence[DeclaredTensor], outputs: Sequence[DeclaredTensor]) -> None:
        """Compare what an engine declares with the contract.

        Raises:
            BundleError: names the first input or output that is missing, unknown, or of another dtype or shape.
        """
        for kind, expected, declared in (("input", self.inputs, inputs), ("output", self.outputs, outputs)):
            found = {one.name: one for one in declared}
            for contract in expected:
                one = found.pop(contract.name, None)
                if one is None:
                    raise BundleError(f"{graph}: {kind} {contract.name}: missing; {_FIX}")
                if not contract.admits(one):
                    raise BundleError(
                        f"{graph}: {kind} {contract.name}: expected {contract}, got {_describe(one)}; {_FIX}"
                    )
            if found:
                raise BundleError(f"{graph}: {kind} {next(iter(found))}: this version knows none of that name; {_FIX}")

    def check_outputs(self, graph: Path, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> None:
        """Compare the outputs of a run with the contract; sizes that are chosen at run time are those of the inputs.

        Raises:
            BundleError: names the first output of another dtype or shape.
        """
        chosen: dict[str | int, int] = {}
        for contract in self.inputs:
            sizes = zip(contract.axes, inputs[contract.name].shape, strict=True)
            chosen.update((axis, size) for axis, size in sizes if isinstance(axis, str))
        for contract in self.outputs:
            output = outputs[contract.name]
            expected = tuple(chosen.get(axis, axis) for axis in contract.axes)
            if output.dtype != contract.dtype or not self._has_shape(output, expected):
                got = f"{str(output.dtype).removeprefix('torch.')} {tuple(output.shape)}"
                raise BundleError(f"{graph}: output {contract.name}: expected {contract}, got {got}; {_FIX}")

    def _has_shape(self, output: Tensor, expected: tuple[str | int, ...]) -> bool:
        """Return whether an output has the sizes; the vocabulary, which no input has, may be smaller than its most."""
        return output.ndim == len(expected) and all(
            size == axis or (axis == VOCABULARY and 0 < size <= self.max_vocabulary)
            for size, axis in zip(output.shape, expected, strict=True)
        )


def _describe(declared: DeclaredTensor) -> str:
    dtype = "another type" if declared.dtype is None else str(declared.dtype).removeprefix("torch.")
    return f"{dtype} ({', '.join('?' if size is None else str(size) for size in declared.sizes)})"
