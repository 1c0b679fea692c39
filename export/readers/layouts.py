"""Published layouts of state dicts, as tables: one key decides which it is, and each name has one of ours.

Ours are those of `export.models.vit`, which are facebookresearch/dinov2's: ``blocks.I.attn.qkv.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from export.checkpoint import CheckpointError

OPENAI_BLOCK: Mapping[str, str] = {
    "ln_1": "norm1",
    "attn.in_proj_weight": "attn.qkv.weight",
    "attn.in_proj_bias": "attn.qkv.bias",
    "attn.out_proj": "attn.proj",
    "ln_2": "norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
"""Names within a block of CLIP's towers, of images and of text, as OpenAI and open_clip have them."""
TRANSFORMERS_BLOCK: Mapping[str, str] = {
    "layer_norm1": "norm1",
    "self_attn.out_proj": "attn.proj",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Those of CLIP and SigLIP in transformers, where `TRANSFORMERS_QKV` are apart."""
TRANSFORMERS_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
TIMM_BLOCK: Mapping[str, str] = {
    name: name for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
}
"""Those of timm's plain vision transformers."""

_QKV = "attn.qkv"


@dataclass(frozen=True)
class Layout:
    """How a library names the weights of one kind of model.

    Attributes:
        marker: a weight that every model in this layout has, and no other layout; what stands before it in a file is
            the prefix of the model's weights.
        names: ours for its names outside blocks; each is a weight's whole name or a module's.
        block: what precedes a name within a block, with ``#`` for the block's number.
        block_names: ours for its names within a block.
        qkv: its modules of queries, keys and values, in this order, which are one for us; none where they are one.
        ignored: its weights that nothing here uses, as regular expressions of whole names.
    """

    marker: str
    names: Mapping[str, str]
    block: str
    block_names: Mapping[str, str]
    qkv: Sequence[str] = ()
    ignored: Sequence[str] = field(default=())

    def prefix_in(self, names: Iterable[str]) -> str | None:
        """Return what stands before this layout's names in a state dict; None if it is of another layout."""
        found = (name.removesuffix(self.marker) for name in names if name.endswith(self.marker))
        return next((prefix for prefix in found if not prefix or prefix.endswith(".")), None)


def find_layout(state: Mapping[str, Tensor], layouts: Iterable[Layout]) -> Layout | None:
    """Return the layout of a state dict; None for one of another model."""
    return next((layout for layout in layouts if layout.prefix_in(state) is not None), None)


def to_our_names(state: Mapping[str, Tensor], layout: Layout, source: str) -> dict[str, Tensor]:
    """Return the weights of a model by our names, a block's queries, keys and values in one.

    Weights with another prefix, those of a classifier's head or a text tower for example, are left out.

    Raises:
        CheckpointError: one is not known, or one of queries, keys and values is missing.
    """
    prefix = layout.prefix_in(state)
    assert prefix is not None  # it was found by it
    pattern = re.compile(re.escape(layout.block).replace(r"\#", r"(\d+)") + "(.+)")
    ignored = re.compile("|".join(layout.ignored)) if layout.ignored else None
    ours: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    for full_name, value in state.items():
        name = full_name.removeprefix(prefix)
        if not full_name.startswith(prefix) or (ignored and ignored.fullmatch(name)):
            continue
        block = pattern.fullmatch(name)
        if block is None:
            our_name = _rename(name, layout.names)
        elif (module := block[2].rpartition("."))[0] in layout.qkv:
            part = f"blocks.{block[1]}.{_QKV}.{module[2]}"
            parts.setdefault(part, {})[layout.qkv.index(module[0])] = value
            continue
        else:
            renamed = _rename(block[2], layout.block_names)
            our_name = None if renamed is None else f"blocks.{block[1]}.{renamed}"
        if our_name is not None:
            ours[our_name] = value
        elif prefix or _is_of_model(name, layout):
            raise CheckpointError(f"{source}: {full_name} is not a weight of this architecture")
    return ours | {name: _joined(name, found, layout, source) for name, found in parts.items()}


def _rename(name: str, names: Mapping[str, str]) -> str | None:
    if name in names:
        return names[name]
    module, _, last = name.rpartition(".")
    return f"{names[module]}.{last}" if module in names else None


def _is_of_model(name: str, layout: Layout) -> bool:
    """Return whether a name without a prefix begins as one of the layout does."""
    first = name.split(".")[0]
    return first in {known.split(".")[0] for known in (*layout.names, layout.block)}


def _joined(name: str, parts: Mapping[int, Tensor], layout: Layout, source: str) -> Tensor:
    """Return queries, keys and values in one; a bias that is missing for some of them is zero there."""
    missing = [number for number in range(3) if number not in parts]
    if missing and not name.endswith(".bias"):
        raise CheckpointError(f"{source}: {name}: {layout.qkv[missing[0]]} of that block is missing")
    zero = torch.zeros_like(next(iter(parts.values())))
    return torch.cat([parts.get(number, zero) for number in range(3)])


def depth_of(state: Mapping[str, Tensor], blocks: str = "blocks") -> int:
    """Return the number of blocks that a state dict has under a name."""
    prefix = f"{blocks}."
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def linear_shapes(name: str, inputs: int, outputs: int, bias: bool = True) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a linear layer's weights by their names."""
    return {f"{name}.weight": (outputs, inputs), **({f"{name}.bias": (outputs,)} if bias else {})}


def in_each_block(prefix: str, depth: int, block: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a block's weights for each of ``depth`` blocks, in names that begin with a prefix."""
    return {f"{prefix}{number}.{part}": shape for number in range(depth) for part, shape in block.items()}


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a norm's weights by their names."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
