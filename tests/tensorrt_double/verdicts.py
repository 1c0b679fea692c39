"""What NVIDIA's builder says of a network, asked once a test run: a build takes it up to some seconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.tensorrt_double import bindings

_folder: Path | None = None


@dataclass
class Verdict:
    """The answer to one build.

    Attributes:
        is_built: whether it gave a plan.
        log: the numbers of severities and the messages that it logged, down to warnings.
        progress: the calls of a progress monitor: the name of the method and its arguments.
    """

    is_built: bool = False
    log: list[tuple[int, str]] = field(default_factory=list)
    progress: list[tuple[str, list[Any]]] = field(default_factory=list)


def keep_verdicts(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Keep verdicts in ``folder``, for all processes of a test run."""
    folder.mkdir(exist_ok=True)
    patch.setattr("tests.tensorrt_double.verdicts._folder", folder)


def verdict_on(parts: Sequence[object], build: Callable[[], Verdict]) -> Verdict:
    """Return the verdict on a network and configuration of these parts; ``build`` it where there is none yet."""
    if _folder is None:
        return build()
    digest = hashlib.sha256()
    for part in (bindings.real_tensorrt().__version__, *parts):
        digest.update(part if isinstance(part, bytes) else repr(part).encode())
    file = _folder / f"{digest.hexdigest()}.json"
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            file.write_text(json.dumps(asdict(build())))
        return Verdict(**json.loads(file.read_text()))


def build_and_record(builder: Any, network: Any, config: Any, log: list[tuple[int, str]]) -> Verdict:
    """Build with NVIDIA's builder.

    Args:
        log: where the builder's logger puts its messages.
    """
    monitor = _recorder()
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    return Verdict(plan is not None, list(log), monitor.calls)


def _recorder() -> Any:
    base: Any = bindings.real_tensorrt().IProgressMonitor

    class Recorder(base):  # type: ignore[misc]  # the module is known at run time only
        def __init__(self) -> None:
            base.__init__(self)
            self.calls: list[tuple[str, list[Any]]] = []

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.calls.append(("phase_start", [phase_name, parent_phase, num_steps]))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.calls.append(("step_complete", [phase_name, step]))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.calls.append(("phase_finish", [phase_name]))

    return Recorder()


def replay_progress(verdict: Verdict, monitor: Any) -> bool:
    """Report a build to a monitor, as TensorRT does; return False if it stopped it, or raised."""
    phases: list[str] = []
    for method, arguments in verdict.progress if monitor is not None else ():
        if method == "phase_start":
            phases.append(arguments[0])
        elif method == "phase_finish":
            phases.remove(arguments[0])
        try:
            answer = getattr(monitor, method)(*arguments)
        except BaseException:  # pybind lets none through
            answer = False
        if method == "step_complete" and not answer:
            for phase in reversed(phases):
                monitor.phase_finish(phase)
            return False
    return True
