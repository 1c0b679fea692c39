"""Objects that belong to one process: they hold engines, threads or open files, which no copy would have."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex, TypeVar

from runtime.errors import ProcessBoundError

BoundT = TypeVar("BoundT", bound="ProcessBound")


class ProcessBound:
    """Refuses to be pickled or copied deeply, and so to be sent to another process."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise ProcessBoundError(
            f"a {type(self).__name__} cannot be pickled, copied or sent to another process, as it holds engines, "
            "threads or open files of this one: call Captioner.load in each process, and send images, regions, feature "
            "maps and captions"
        )

    def __copy__(self: BoundT) -> BoundT:
        """Return another object that shares what this one holds."""
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied
