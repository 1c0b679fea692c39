"""TensorRT's Python package, 10.3 to 11: importing it, hearing what it says, and who may load what it built.

It tells of failures by False or None, and says why to a logger: `checked` makes both one exception.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from runtime.errors import BackendError

if TYPE_CHECKING:
    import tensorrt

OLDEST = (10, 3)
"""JetPack 6's. From here on networks can be strongly typed, so that one way of building serves all."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class TensorRt:
    """Which TensorRT is here, and a logger that remembers. Having one, `import tensorrt` succeeds.

    Attributes:
        version: all of its numbers.
        logger: lives as long as anything made with it.
        said: its last errors.
    """

    version: str
    logger: tensorrt.ILogger
    said: deque[str] = field(default_factory=deque)

    @property
    def release(self) -> tuple[int, int]:
        """Its first two numbers."""
        major, minor = _numbers(self.version)[:2]
        return major, minor

    def checked(self, result: T | None, what: str) -> T:
        """``result``, unless it is None or False.

        Args:
            what: was done, and to what, for the message.

        Raises:
            BackendError: with what TensorRT said since the last error.
        """
        if result is None or result is False:
            reasons = "; ".join(self.said) or "it gave no reason"
            self.said.clear()
            raise BackendError(f"{what}: TensorRT {self.version} refused: {reasons}")
        return result


def open_tensorrt() -> TensorRt:
    """Imports TensorRT.

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
    if _numbers(version)[:2] < OLDEST:
        raise BackendError(f"TensorRT {version}: expected {'.'.join(map(str, OLDEST))} or newer")
    said: deque[str] = deque(maxlen=8)
    return TensorRt(version, _remembering_logger(said), said)


def may_load(built_with: str, here: str, version_compatible: bool) -> bool:
    """Whether a plan of one version of TensorRT can be loaded by another: of the same alone, or if it was built to be
    compatible, by newer ones of the same major."""
    if not version_compatible:
        return built_with == here
    built, now = _numbers(built_with), _numbers(here)
    return built[0] == now[0] and built <= now


def _remembering_logger(said: deque[str]) -> tensorrt.ILogger:
    import tensorrt

    class Logger(tensorrt.ILogger):
        def __init__(self) -> None:
            tensorrt.ILogger.__init__(self)

        def log(self, severity: tensorrt.ILogger.Severity, msg: str) -> None:
            if severity in (tensorrt.ILogger.Severity.INTERNAL_ERROR, tensorrt.ILogger.Severity.ERROR):
                said.append(" ".join(msg.split()))

    return Logger()


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
