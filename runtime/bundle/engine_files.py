"""What a backend opens: the files of one engine, and what its graph must take and return."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from runtime.bundle.contract import GraphContract
from runtime.bundle.held_file import HeldFile
from runtime.bundle.manifest import GraphPrecision, PlanRecord


@dataclass(frozen=True)
class EngineFiles:
    """The files that a backend opens: a graph, and the TensorRT plan that was built of it, if one was.

    Attributes:
        graph: the ONNX file; its weights may lie beside it.
        precision: of its matrix products.
        plan: the plan's record and file.
        sha256: of the contents of the graph and its weights; "" where nothing records them.
        held: the graph and the files that its weights are in, as the bundle holds them; none outside of a bundle.
        held_plan: the plan, likewise.
        contract: what the graph takes and returns; None outside of a bundle.
    """

    graph: Path
    precision: GraphPrecision = "fp32"
    plan: tuple[PlanRecord, Path] | None = None
    sha256: str = ""
    held: tuple[HeldFile, ...] = field(default=(), compare=False)
    held_plan: HeldFile | None = field(default=None, compare=False)
    contract: GraphContract | None = field(default=None, compare=False)

    def read_plan(self) -> bytes:
        """Return the contents of the plan, as it was when the bundle was opened.

        Raises:
            BundleError: it was written to since.
        """
        assert self.plan is not None
        return self.plan[1].read_bytes() if self.held_plan is None else bytes(self.held_plan.read())

    @contextmanager
    def opened_by_path(self) -> Iterator[None]:
        """Hold a block that opens the files by their paths to those that the bundle holds.

        Raises:
            BundleError: at its beginning or its end another file is there, or one was written to.
        """
        for file in self.held:
            file.check_in_place()
        try:
            yield
        finally:
            for file in self.held:
                file.check_in_place()
