"""A recording of the published training of DeCap and CapDec: a few steps on made-up embeddings, without dropout.

See published-system.md, section 24. Shapes: S steps, B captions of a batch, D width of the embeddings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import eq
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.difference import ALLOWED, Difference, relative_difference
from export.checkpoint import CheckpointError
from export.readers.clip_bpe import read_clip_bpe
from export.readers.seeded_weights import normal
from export.training.batches import Batch
from export.training.data import CaptionTokens
from export.training.decoder import DecoderSize, TrainableDecap
from export.training.noise import add_noise
from export.training.objective import IGNORED
from export.training.processes import Processes
from export.training.schedule import rate_factor
from export.training.trainer import Optimization, StepResult, Trainer

_LOGITS_STRIDE = 97
_INITIAL_SCALE = np.float32(0.02)
_HEAD = "decoder.lm_head.weight"
_EMBEDDING = "decoder.transformer.wte.weight"
_ALLOWED = 1e-5
"""Sums of float32 numbers in another order."""
_CORNER = re.compile(r"(.+)_(\d+)x(\d+)")
_ROWS = re.compile(r"(.+)_rows((?:_\d+)+)")
_AFTER = "after."
_RECORDED_WEIGHTS = {
    "clip_project": "clip_project.model.0.weight",
    "wte": _EMBEDDING,
    "ln_f": "decoder.transformer.ln_f.weight",
    "c_attn": "decoder.transformer.h.0.attn.c_attn.weight",
}
"""The weights of which something was recorded after the last step."""


@dataclass(frozen=True, eq=False)
class _TakenSteps:
    """What training as recorded gave: the first logits (B, L, V), and for every step its result and gradient's norm."""

    batches: Sequence[Batch]
    first_logits: Tensor
    results: Sequence[StepResult]
    gradient_norms: Sequence[float]
    weights: Mapping[str, Tensor]


def is_training(contents: Mapping[str, Any]) -> bool:
    """Return whether a .json is such a recording."""
    return {"training_steps", "loss", "lr_used"} <= contents.keys()


def compare_training(contents: Mapping[str, Any], path: Path) -> Iterator[Difference]:
    """Train as recorded, and compare tokens, inputs, first logits, losses, accuracies, gradients and weights.

    Args:
        path: of the recording; its .npz is read.

    Raises:
        CheckpointError: CLIP's vocabulary is nowhere, or the .npz cannot be read.
    """
    try:
        arrays = dict(np.load(path.with_suffix(".npz")))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.with_suffix('.npz')}: cannot be read: {error}") from None
    run = _train(contents)
    tokens = arrays["tokens"]
    same = int((run.batches[0].token_ids.numpy() == tokens).all(axis=1).sum())
    yield Difference("training: token ids", len(tokens), same)
    named = {name: tuple(value.shape) for name, value in run.weights.items()}
    keys = {name: tuple(shape) for name, shape in contents["state_dict_keys"]}
    yield Difference("training: names and shapes", len(keys), sum(named.get(name) == keys[name] for name in keys))
    dropout = _dropout(contents["width"])
    recorded = contents.get("dropout_in_training", dropout)
    yield Difference("training: dropout", len(dropout), sum(map(eq, dropout, recorded)))
    yield _row("inputs", run.batches[0].inputs, arrays["first_inputs"])
    recorded = arrays["first_logits_97"]
    yield _row("first logits", run.first_logits[: len(recorded), :, ::_LOGITS_STRIDE], recorded)
    steps, warmup = contents["training_steps"], contents["warmup_steps"]
    rates = [contents["lr"] * rate_factor(step, warmup, steps) for step in range(steps)]
    yield _numbers("rates", rates, contents["lr_used"])
    yield _numbers("losses", [result.loss for result in run.results], contents["loss"])
    yield _numbers("accuracies", [result.accuracy for result in run.results], contents["accuracy"])
    yield _numbers("gradient norms", run.gradient_norms, contents["grad_norm"])
    for name in filter(lambda name: name.startswith(_AFTER), arrays):
        found = _part(run.weights, name.removeprefix(_AFTER))
        task = f"training: weights {name.replace('.', ', ')}"
        yield Difference(task, is_made=False) if found is None else replace(_row("", found, arrays[name]), task=task)


def _part(weights: Mapping[str, Tensor], name: str) -> Tensor | None:
    """Return what a name says of a weight: "ln_f", "wte_rows_0_320" or "c_attn_8x8"; None for one that is not known."""
    corner, rows = _CORNER.fullmatch(name), _ROWS.fullmatch(name)
    matched = corner or rows
    key = _RECORDED_WEIGHTS.get(matched[1] if matched else name)
    if key is None:
        return None
    if corner:
        return weights[key][: int(corner[2]), : int(corner[3])]
    return weights[key][[int(row) for row in rows[2].split("_")[1:]]] if rows else weights[key]


def _train(contents: Mapping[str, Any]) -> _TakenSteps:
    batches = _batches(contents)
    model = _initial_model(contents["salt"], contents["width"])
    with torch.no_grad():
        first_logits = model(batches[0].inputs, batches[0].token_ids)
    optimization = Optimization(
        contents["training_steps"],
        contents["lr"],
        contents["warmup_steps"],
        contents["weight_decay"],
        contents.get("label_smoothing", Optimization.label_smoothing),
    )
    alone = Processes(0, 1, torch.device("cpu"))
    trainer = Trainer(model, lambda step, _rank, _processes: batches[step], optimization, alone, seed=0)
    results, norms = [], []
    for _ in batches:
        results.append(trainer.step())
        norms.append(_gradient_norm(model))
    return _TakenSteps(batches, first_logits, results, norms, model.state_dict())


def _batches(contents: Mapping[str, Any]) -> list[Batch]:
    """Return the batch of each step: the same captions, other embeddings."""
    shape = (contents["training_steps"], contents["batch"], contents["width"])
    embeddings = F.normalize(torch.from_numpy(normal(contents["salt"] + "train_features", shape)), dim=-1)
    if contents["gaussian_noise"]:
        noise = torch.from_numpy(normal(contents["salt"] + "train_noise", shape))
        embeddings = add_noise(embeddings, noise, contents["gaussian_noise"])
    token_ids, targets = CaptionTokens(read_clip_bpe(), length=20).of(contents["texts"])
    published = targets.masked_fill(targets == 0, IGNORED)  # which leaves out the token 0 wherever it is
    return [Batch(inputs, token_ids, published) for inputs in embeddings]


def _initial_model(salt: str, width: int) -> TrainableDecap:
    model = TrainableDecap(DecoderSize(width, dropout=0.0)).eval()
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}  # the tied head is not among them
    state = {name: _initial_weight(salt, name, shape) for name, shape in shapes.items()}
    model.load_state_dict(state | {_HEAD: state[_EMBEDDING]})
    return model


def _dropout(width: int) -> list[float]:
    """Return the dropout of embeddings, attention and residuals that decoders are trained with."""
    with torch.device("meta"):
        config = TrainableDecap(DecoderSize(width)).decoder.config
    return [config.embd_pdrop, config.attn_pdrop, config.resid_pdrop]


def _initial_weight(salt: str, name: str, shape: tuple[int, ...]) -> Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape)
    if ".ln_" in name:
        return torch.ones(shape)
    return torch.from_numpy(_INITIAL_SCALE * normal(f"{salt}decap_init/{name}", shape))


def _gradient_norm(model: nn.Module) -> float:
    """Return the norm of the last step's gradient, added up in float64, as it was recorded."""
    gradients = [one.grad for one in model.parameters() if one.grad is not None]
    norms = [float(torch.linalg.vector_norm(one, dtype=torch.float64)) for one in gradients]
    return float(np.linalg.norm(norms))


def _row(what: str, found: Tensor, recorded: npt.NDArray[np.float32]) -> Difference:
    difference = relative_difference(found.detach().contiguous(), recorded)
    return Difference(f"training: {what}", spread=_ALLOWED / ALLOWED["vectors"], vectors=difference)


def _numbers(what: str, found: Sequence[float], recorded: Sequence[float]) -> Difference:
    if len(found) != len(recorded):
        return Difference(f"training: {what}", len(recorded), len(found))
    worst = max(abs(got - want) / max(1e-6, abs(want)) for got, want in zip(found, recorded, strict=True))
    return Difference(f"training: {what}", spread=_ALLOWED / ALLOWED["scores"], scores=worst)
