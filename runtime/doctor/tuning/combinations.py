"""What can be combined on this machine for a bundle: backends, precisions and numbers of threads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from runtime.backends import BACKENDS, Backend, BackendName, open_backend
from runtime.bundle import Bundle
from runtime.errors import BackendError, OptionError
from runtime.options import Precision
from runtime.system.machine import usable_cores


@dataclass(frozen=True)
class Combination:
    """One way to run a bundle.

    Attributes:
        bundle: as the user names it.
        threads: of an engine; None for as many as the backend takes by itself.
    """

    bundle: str
    backend: BackendName
    precision: Precision
    threads: int | None = None

    def __str__(self) -> str:
        return f"{self.bundle} on {self.backend} in {self.precision}{self.threads_text}"

    @property
    def threads_text(self) -> str:
        """The threads in words, if the backend does not choose them."""
        return "" if self.threads is None else f" with {self.threads} thread{'s' * (self.threads > 1)}"

    def open_backend(self, bundle: Bundle) -> Backend:
        """Open the backend.

        Raises:
            BackendError: it cannot be used here, or not for this bundle.
        """
        return open_backend(self.backend, self.threads, self.precision, bundle)

    def with_fewer_threads(self) -> list[Combination]:
        """Return the same with half of the cores and with one; none on a GPU."""
        if BACKENDS[self.backend].device != "cpu":
            return []
        cores = usable_cores()
        return [replace(self, threads=count) for count in dict.fromkeys((cores // 2, 1)) if 0 < count < cores]


def candidates(bundle: Bundle) -> list[BackendName]:
    """Return the backends of the device that a bundle was built for; those that need plans only if it has such."""
    device = BACKENDS[bundle.manifest.backend].device
    of_device = [spec for spec in BACKENDS.values() if spec.device == device]
    products = {plan.product for plan in bundle.manifest.plans}
    return [spec.name for spec in of_device if not spec.needs_plans or spec.name in products]


def find_combinations(
    bundles: Mapping[str, Bundle], precisions: Sequence[Precision]
) -> tuple[list[Combination], list[str]]:
    """Return what can be used here, each with the backend's own number of threads, and why the rest cannot.

    The first is the one that the others are compared with: the bundle in float32 on the backend that "auto" stands for
    where nothing was measured, in the least rounding.

    Raises:
        BackendError: none can be used.
    """
    usable: list[Combination] = []
    refused: dict[str, None] = {}
    for label in sorted(bundles, key=lambda label: _graph_precision(bundles[label]) != "fp32"):
        for backend in _default_first(bundles[label]):
            for precision in precisions:
                if precision not in BACKENDS[backend].compute_precisions:
                    continue
                combination = Combination(label, backend, precision)
                try:
                    combination.open_backend(bundles[label])
                except BackendError as error:
                    refused[str(error)] = None
                else:
                    usable.append(combination)
    if not usable:
        raise BackendError("no backend can be used: " + "; ".join(refused or ["none has the precision"]))
    return usable, list(refused)


def check_comparable(bundles: Mapping[str, Bundle]) -> None:
    """Refuse bundles whose captions may differ by more than their precision.

    Raises:
        OptionError: names two of them and what differs.
    """
    (first, reference), *others = bundles.items()
    for label, bundle in others:
        for what, value in _identity(bundle).items():
            expected = _identity(reference)[what]
            if value != expected:
                raise OptionError(
                    f"{label}: its {what} is {value}, and that of {first} {expected}; only bundles of one checkpoint "
                    "in several precisions can be compared: measure others by themselves"
                )


def _identity(bundle: Bundle) -> dict[str, object]:
    """Return what bundles of one checkpoint have in common, whatever their precision, by words for users."""
    manifest = bundle.manifest
    backbone, decoder, memory = manifest.backbone, manifest.decoder, manifest.memory
    return {
        "backbone": f"{backbone.name} at {backbone.preprocessing.image_size} px",
        "decoder": f"{decoder.kind}, {decoder.num_layers} layers of width {decoder.embed_dim}",
        "memory": "none" if memory is None else f"{memory.num_rows} captions",
        "checkpoint": manifest.build.checkpoint,
        "device": BACKENDS[manifest.backend].device,
    }


def _default_first(bundle: Bundle) -> list[BackendName]:
    return sorted(candidates(bundle), key=lambda name: name != bundle.manifest.backend)


def _graph_precision(bundle: Bundle) -> str:
    return bundle.manifest.engines["backbone"].precision
