"""Captions parts on a cluster of Ray, through Ray Data: processes that load the bundle once take part after part.

What a machine that fails has not answered is done again by others. Parts are small next to the time they take, and what
is done is written by the process that started the run: the machines need read the images and the bundle only.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from runtime.batch.extras import import_extra
from runtime.batch.part_captioner import CaptionerSettings, PartCaptioner
from runtime.batch.plan import PlannedPart
from runtime.batch.result_files import ResultFormat
from runtime.errors import BackendError, PatchcaptionError
from runtime.system.signals import keeping_handlers
from runtime.system.version import __version__

_MOST_CPUS = 4
"""Of an actor: more cores make a single backbone pass little faster."""
_PARTS_IN_FLIGHT = 2
"""Of an actor: one that it works on, and one that waits."""
_MOST_ATTEMPTS = 5
"""At a part: more than so many processes do not end by chance in the middle of one."""
_CONNECT_S = 10.0
_NO_PROGRESS_S = 86_400
"""Until Ray gives up a part; it would after half an hour, which a large part may take on a slow machine."""


class AttemptCounter:
    """A process of the cluster that counts how often each part was begun."""

    def __init__(self) -> None:
        self._counts = Counter[int]()

    def begin(self, number: int) -> int:
        """Count one more attempt at a part; return how many there were."""
        self._counts[number] += 1
        return self._counts[number]


class PartActor:
    """A process of the cluster that has loaded the bundle, and captions parts.

    It raises nothing that a user can mend: that comes back in place of the rows, as Ray knows no errors of ours.

    Args:
        version: of the package that the run was started with.
        example: an image that this machine has to see.
        begin: counts an attempt at a part: Ray would give one that ends all processes to another for ever.
    """

    def __init__(
        self,
        settings: CaptionerSettings,
        form: ResultFormat,
        version: str,
        example: str,
        begin: Callable[[int], int],
    ) -> None:
        self._form, self._begin, self._problem = form, begin, ""
        try:
            _check_machine(version, example)
            self._captioner = PartCaptioner(settings)
        except PatchcaptionError as error:
            self._problem = f"{socket.gethostname()}: {error}"

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Return the file of the rows of a part, and whether it is done."""
        number = int(item["number"])
        if self._problem or self._begin(number) > _MOST_ATTEMPTS:
            return {"number": number, "rows": b"", "is_done": False, "problem": self._problem}
        rows = self._captioner.rows(pickle.loads(item["images"]))
        return {"number": number, "rows": self._form.encode(rows), "is_done": True, "problem": ""}


@dataclass(frozen=True)
class RayExecutor:
    """Captions parts on a cluster.

    Attributes:
        address: HOST:PORT, "auto", or "local" for a cluster of this machine alone that ends with the run.
        actor_cpus: cores of each process that has loaded the bundle; None for those of the smallest machine, at most 4.
        actor_gpus: GPUs of each.
    """

    address: str
    actor_cpus: int | None = None
    actor_gpus: float = 0.0

    def __call__(
        self, parts: Iterable[PlannedPart], settings: CaptionerSettings, form: ResultFormat
    ) -> Generator[tuple[int, bytes], None, None]:
        """Yield the number of each part that is done, as soon as it is, and the file of its rows.

        Raises:
            BackendError: the cluster cannot be reached, has no machine that is large enough, or has one that does not
                have the bundle, the images or this version of the package.
        """
        with _connected(self.address) as ray:
            try:
                yield from self._results(ray, [_item(part) for part in parts], settings, form)
            except ray.exceptions.RayError as error:
                raise BackendError(f"--ray {self.address}: {str(error).strip().splitlines()[-1]}") from error

    def _results(
        self, ray: Any, items: list[dict[str, Any]], settings: CaptionerSettings, form: ResultFormat
    ) -> Generator[tuple[int, bytes], None, None]:
        data = import_extra("ray.data", "ray", "--ray")
        cpus, most = self._actors(ray)
        example = pickle.loads(items[0]["images"])[0].name
        counter = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(AttemptCounter).remote()
        _make_quiet(data.DataContext.get_current())
        done = data.from_items(items, override_num_blocks=len(items)).map(
            PartActor,
            fn_constructor_args=[replace(settings, threads=cpus), form, __version__, example, partial(_begin, counter)],
            compute=data.ActorPoolStrategy(
                min_size=1,  # or a run would wait for ever for what a machine had that has failed
                max_size=most,
                initial_size=min(most, len(items)),
                max_tasks_in_flight_per_actor=_PARTS_IN_FLIGHT,
            ),
            num_cpus=cpus,
            num_gpus=self.actor_gpus,
        )
        left = {item["number"]: item for item in items}
        for row in done.iter_rows():
            if row["problem"]:
                raise BackendError(f"--ray {self.address}: {row['problem']}")
            if row["is_done"]:
                del left[row["number"]]
                yield int(row["number"]), row["rows"]
        if left:
            images = [image.name for item in left.values() for image in pickle.loads(item["images"])]
            raise BackendError(
                f"--ray {self.address}: what captioned {len(images)} images was ended or failed each time, from "
                f"{images[0]} on; the others are done, and the same command tries these again"
            )

    def _actors(self, ray: Any) -> tuple[int, int]:
        """Return the cores of an actor, and how many actors the cluster has room for.

        Raises:
            BackendError: for none.
        """
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores = [int(one.get("CPU", 0)) for one in machines if one.get("CPU", 0) >= 1]
        cpus = self.actor_cpus or min([_MOST_CPUS, *cores])
        rooms = [one.get("CPU", 0) // cpus for one in machines]
        if self.actor_gpus:
            rooms = [min(room, one.get("GPU", 0) // self.actor_gpus) for room, one in zip(rooms, machines, strict=True)]
        if sum(rooms) < 1:
            raise BackendError(
                f"--ray {self.address}: no machine has the {cpus} cores and {self.actor_gpus:g} GPUs that an actor "
                "takes; give fewer with --actor-cpus and --actor-gpus"
            )
        return cpus, int(sum(rooms))


def _begin(counter: Any, number: int) -> int:
    """Count an attempt at a part, in another process; return how many there were."""
    import ray

    count: int = ray.get(counter.begin.remote(number))
    return count


def _item(part: PlannedPart) -> dict[str, Any]:
    """Return a part as Ray Data takes it: packed, as all are held at once."""
    return {"number": part.number, "images": pickle.dumps(part.images)}


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Connect this process with a cluster, unless it is already, and yield Ray.

    Raises:
        PatchcaptionError: Ray is not installed.
        BackendError: there is no cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that is started here reports to nobody
    ray = import_extra("ray", "ray", "--ray")
    if ray.is_initialized():
        yield ray
        return
    _check_reachable(address)
    try:
        own = {"include_dashboard": False} if address == "local" else {}
        with keeping_handlers():  # SIGTERM would end the program with no word, and another code
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise BackendError(f"--ray {address}: cannot be reached: {' '.join(str(error).split())}") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise BackendError where nothing answers at HOST:PORT, which Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise BackendError(f"--ray {address}: cannot be reached: {error}") from None


def _make_quiet(context: Any) -> None:
    """Let Ray Data say nothing about its own progress, and go on after a part that cannot be done."""
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1
    context.execution_no_progress_timeout_s = _NO_PROGRESS_S
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _check_machine(version: str, example: str) -> None:
    """Raise BackendError if this machine would not do what the one does that has started the run."""
    if version != __version__:
        raise BackendError(f"expected patchcaption {version}, which the run was started with, got {__version__}")
    if not Path(example).exists():
        raise BackendError(f"{example}: no such file here; images have to be at the same place on all machines")
