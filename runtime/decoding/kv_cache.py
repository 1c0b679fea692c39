"""The KV cache of a decoder: allocated once, one position longer with each step.

Shapes: R captions, L layers, H heads, P positions (the most steps), d head width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from runtime.bundle import DecoderConfig
from runtime.bundle.dtypes import NUMBER_FORMATS
from runtime.bundle.graph_io import past_names, present_names


class KvCache:
    """The keys and values of up to R captions, (R, H, P, d) for each layer.

    Captions leave and change rows in place, so the cache never takes more memory than it began with.

    Args:
        rows: those in use at first.
        room: how many rows each of them may become.

    Attributes:
        positions: P.
        length: the positions that are filled.
    """

    def __init__(self, config: DecoderConfig, rows: int, device: torch.device, room: int = 1) -> None:
        self.positions = config.cache_positions
        shape = (rows * room, config.num_heads, self.positions, config.head_dim)
        dtype = NUMBER_FORMATS[config.cache_precision].torch
        # Entry by entry: in one piece it would be so large that the system takes it back and zeroes it page by page.
        self._past = {name: torch.zeros(shape, dtype=dtype, device=device) for name in past_names(config.num_layers)}
        self._present_names = present_names(config.num_layers)
        self._rows, self.length = rows, 0

    def inputs(self) -> dict[str, Tensor]:
        """Return the decoder's cache inputs, (R, H, P, d) each, for the rows in use."""
        return {name: past[: self._rows] for name, past in self._past.items()}

    def present_buffers(self) -> dict[str, Tensor]:
        """Return new memory for the cache outputs of a step, (R, H, 1, d) each."""
        pasts = zip(self._present_names, self._past.values(), strict=True)
        return {name: torch.zeros_like(past[:, :, :1]) for name, past in pasts}

    def append(self, outputs: Mapping[str, Tensor]) -> None:
        """Store the entries of a step or a prompt (r, H, Q, d), which lie among its outputs, at the next positions."""
        new = outputs[self._present_names[0]].shape[2]
        for name, past in zip(self._present_names, self._past.values(), strict=True):
            _copy(outputs[name], past[: self._rows, :, self.length : self.length + new])
        self.length += new

    def write(self, outputs: Mapping[str, Tensor], position: Tensor) -> None:
        """Store a step's entries at ``position`` (1,), which only the device needs to know."""
        for name, past in zip(self._present_names, self._past.values(), strict=True):
            past.index_copy_(2, position, outputs[name])

    def copy_from(self, other: KvCache, rows: int) -> None:
        """Take over the filled positions of the first ``rows`` rows of another cache of as many positions."""
        for own, theirs in zip(self._past.values(), other._past.values(), strict=True):
            own[:rows, :, : other.length] = theirs[:rows, :, : other.length]

    def select_rows(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, for int64 ``rows`` (R,); no other row is in use afterwards."""
        self._rows = len(rows)
        moved = torch.nonzero(rows != torch.arange(len(rows), device=rows.device))[:, 0]
        for past in self._past.values():
            filled = past[:, :, : self.length]
            filled[moved] = filled[rows[moved]]


def _copy(values: Tensor, to: Tensor) -> None:
    """Copy values, on a CPU in this thread alone.

    After a copy in several of torch's threads, those wait for more at full speed while the next step computes.
    """
    if to.device.type != "cpu":
        to.copy_(values)
        return
    bits = {2: torch.int16, 4: torch.int32}[to.element_size()]
    to.view(bits).numpy()[...] = values.view(bits).numpy()
