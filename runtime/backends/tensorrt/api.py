"""TensorRT's Python package, 10.3 to 11: import, error logging, and plan compatibility.

TensorRT returns False or None on failure and logs the reason; `TensorRtApi.require` makes both one exception.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from runtime.bundle import PlanProduct
from runtime.errors import BackendError

if TYPE_CHECKING:
    import tensorrt

PRODUCT_NAMES: dict[PlanProduct, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
OLDEST = (10, 3)
"""JetPack 6's version. From here on networks can be strongly typed, so that one way of building serves all."""

T = TypeVar("T")


class TensorRtModule(Protocol):
    """The names of the package `tensorrt` that this project uses, with the types of the stub."""

    Builder: type[tensorrt.Builder]
    BuilderFlag: type[tensorrt.BuilderFlag]
    DeviceType: type[tensorrt.DeviceType]
    ExecutionContextAllocationStrategy: type[tensorrt.ExecutionContextAllocationStrategy]
    ILogger: type[tensorrt.ILogger]
    HardwareCompatibilityLevel: type[tensorrt.HardwareCompatibilityLevel]
    IProgressMonitor: type[tensorrt.IProgressMonitor]
    LayerInformationFormat: type[tensorrt.LayerInformationFormat]
    MemoryPoolType: type[tensorrt.MemoryPoolType]
    NetworkDefinitionCreationFlag: type[tensorrt.NetworkDefinitionCreationFlag]
    OnnxParser: type[tensorrt.OnnxParser]
    ProfilingVerbosity: type[tensorrt.ProfilingVerbosity]
    Runtime: type[tensorrt.Runtime]
    TensorIOMode: type[tensorrt.TensorIOMode]
    __version__: str


@dataclass(frozen=True, eq=False)
class TensorRtApi:
    """An imported TensorRT, with a logger that keeps its errors.

    Attributes:
        module: the package.
        product: which of NVIDIA's products it is.
        version: its full version.
        release: the TensorRT whose interface and operators it has, by the first two numbers of its version.
        logger: lives as long as anything made with it.
        errors: its latest errors.
    """

    module: TensorRtModule
    product: PlanProduct
    version: str
    release: tuple[int, int]
    logger: tensorrt.ILogger
    errors: deque[str] = field(default_factory=deque)

    @property
    def name(self) -> str:
        """Product and version, for messages."""
        return f"{PRODUCT_NAMES[self.product]} {self.version}"

    def require(self, result: T | None, action: str) -> T:
        """Return ``result``, unless it is None or False.

        Args:
            action: what was done, and to what, for the message.

        Raises:
            BackendError: with the errors that TensorRT has logged since the last one.
        """
        if result is None or result is False:
            reasons = "; ".join(self.errors) or "it gave no reason"
            self.errors.clear()
            raise BackendError(f"{action}: {self.name} refused: {reasons}")
        return result


def open_tensorrt() -> TensorRtApi:
    """Import TensorRT.

    Raises:
        BackendError: it is not installed, its libraries cannot be loaded, or it is too old.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise BackendError(
            f"TensorRT cannot be imported ({error}): pip install tensorrt; on a Jetson take JetPack's own "
            "(python3 -m venv --system-site-packages)"
        ) from None
    version = str(tensorrt.__version__)
    if version_numbers(version)[:2] < OLDEST:
        raise BackendError(f"TensorRT {version}: expected {'.'.join(map(str, OLDEST))} or newer")
    major, minor = version_numbers(version)[:2]
    return new_api(cast(TensorRtModule, tensorrt), "tensorrt", (major, minor))


def new_api(module: TensorRtModule, product: PlanProduct, release: tuple[int, int]) -> TensorRtApi:
    """Return an imported package with a logger that keeps its errors."""
    errors: deque[str] = deque(maxlen=8)
    severities = module.ILogger.Severity

    class ErrorLogger(module.ILogger):  # type: ignore[name-defined, misc]  # the module is known at run time only
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: tensorrt.ILogger.Severity, msg: str) -> None:
            if severity in (severities.INTERNAL_ERROR, severities.ERROR):
                errors.append(" ".join(msg.split()))

    return TensorRtApi(module, product, module.__version__, release, ErrorLogger(), errors)


def is_compatible(built_with: str, here: str, version_compatible: bool) -> bool:
    """Return whether one version of TensorRT loads a plan of another.

    It loads its own, and of plans that were built to be version compatible those of older versions of its major.
    """
    if not version_compatible:
        return built_with == here
    built, now = version_numbers(built_with), version_numbers(here)
    return built[0] == now[0] and built <= now


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, in order."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())
