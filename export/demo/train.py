"""Trains the demo checkpoint: `python -m export.demo.train --out export/demo/checkpoint`.

Three parts, one after another, all from a seed:

1. The backbone (a small DINOv2 with registers) and the text side (a small CLIP text tower, then Talk2DINO's two linear
   layers), together: the mean of a region's patches is drawn to the embedding of its caption and pushed from those of
   other captions. Linear heads that name the attributes of patches and regions, and that trace outlines inside
   patches, teach it to see shapes much sooner; they are thrown away.
2. The memory bank: the embeddings of every caption.
3. The decoder, on text alone: it learns to say a caption from its embedding, blurred as regions will be.

The files have the published layout, halved to float16, so the readers of the published files read them.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, GPT2Config, GPT2LMHeadModel

from export.checkpoint import END_TOKEN, fill
from export.demo import scenes
from export.demo.scenes import COLOURS, RADII, SHAPES, TEXTURES, Look, Scene
from export.models.dinov2 import Attention, Backbone, BackboneConfig
from export.readers.clip_bpe import START_TOKEN, pad_tokens, token_id, with_ends
from export.readers.weight_files import read_pickle
from runtime.image import Fit, View
from runtime.regions import Box, Canvas, Mask, Region, WholeImage, weight_rows

CONFIG = BackboneConfig(width=192, depth=7, registers=4, size=scenes.SIZE)
BACKBONE_FILE = "dinov2_vitdemo14_reg4.pth"
TOKENIZER_FILE = "tokenizer.json"
TEXT_WIDTH = 128
DECODER_WIDTH = 128
DECODER_LAYERS = 4
TEMPERATURE = 0.01
ATTRIBUTES = (tuple(COLOURS), SHAPES, TEXTURES, tuple(RADII))
CELLS = 7


@dataclass(frozen=True)
class Phase:
    """A stretch of training the backbone and the text side.

    Attributes:
        first_scene: number of the first of its ``scenes``, which are gone through as often as its ``steps`` take.
        singles, pairs: regions over one and over two objects that are taken from each scene.
        temperature: of the contrast at the start.
        with_lessons: whether the heads that name attributes and trace outlines take part.
        with_swaps: whether each pair is also compared with the one whose shapes are exchanged: a red circle and a blue
            square with a blue circle and a red square, whose mean vectors only differ if colour and shape are bound.
    """

    name: str
    steps: int
    first_scene: int
    scenes: int
    singles: int
    pairs: int
    rate: float
    temperature: float
    with_lessons: bool
    with_swaps: bool


SEEING = Phase("seeing", 4600, 0, 22_400, 5, 2, 2e-3, 0.07, with_lessons=True, with_swaps=False)
BINDING = Phase("binding", 1000, 22_400, 16_000, 3, 5, 1e-3, 0.0102, with_lessons=False, with_swaps=True)


@dataclass(frozen=True)
class Plan:
    """How long to train; the defaults take under an hour on two cores."""

    seed: int = 0
    phases: tuple[Phase, ...] = (SEEING, BINDING)
    scenes_per_step: int = 16
    captions_per_step: int = 256
    decoder_steps: int = 1800
    captions_per_decoder_step: int = 256
    decoder_rate: float = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo checkpoint.")
    parser.add_argument("--out", type=Path, required=True, help="the folder that the checkpoint's files go to")
    parser.add_argument("--seed", type=int, default=Plan.seed)
    parser.add_argument(
        "--start-from", type=Path, help="a folder with the weights of an earlier run: only the last phase is trained"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "training.jsonl").open("w") as log_file:

        def log(**entry: Any) -> None:
            line = json.dumps(entry)
            print(line, flush=True)
            log_file.write(line + "\n")

        plan = Plan(seed=options.seed)
        if options.start_from:
            plan = replace(plan, phases=plan.phases[-1:])
            earlier = map(json.loads, (options.start_from / "training.jsonl").read_text().splitlines())
            for entry in (entry for entry in earlier if entry.get("part") != "decoder"):
                log(**entry)
        train(plan, options.out, options.start_from, log)


def train(plan: Plan, out: Path, start_from: Path | None, log: Any) -> None:
    """Trains everything by ``plan`` and writes the checkpoint's files to ``out``."""
    torch.manual_seed(plan.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    log(plan=asdict(plan), torch=torch.__version__, device=str(device), threads=torch.get_num_threads())
    # Training it again would number some pieces otherwise: the library's order of equals is not fixed by a seed.
    earlier = start_from / TOKENIZER_FILE if start_from else None
    tokenizer = Tokenizer.from_file(str(earlier)) if earlier else make_tokenizer(scenes.all_captions())
    tokenizer.save(str(out / TOKENIZER_FILE))
    tokens = pad_tokens(tokenizer, scenes.all_captions()).to(device)

    backbone, text_side = Backbone(CONFIG).to(device), TextSide(tokenizer).to(device)
    if start_from:
        fill(backbone, read_pickle(start_from / BACKBONE_FILE), str(start_from))
        text_side.load(start_from)
    else:
        init_backbone(backbone)
    for phase in plan.phases:
        train_vision(backbone, text_side, tokens, phase, plan, log)
    torch.save(halved(backbone.state_dict()), out / BACKBONE_FILE)
    text_side.save(out)

    with torch.no_grad():
        bank = text_side(tokens)
    write_bank(out / "memory.h5", bank)

    decoder = train_decoder(bank, tokens, tokenizer, plan, log)
    torch.save(halved(decoder.state_dict()), out / "decoder.pt")
    write_config(out / "config.yaml", len(bank))


# ---------------------------------------------------------------------------------------------------------- the words


def make_tokenizer(captions: tuple[str, ...]) -> Tokenizer:
    """A byte-pair tokenizer of CLIP's kind, its merges learnt from the captions; start and end are its last two ids."""
    tokenizer = Tokenizer(models.BPE(unk_token=None, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=320, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(captions, trainer)
    return with_ends(tokenizer)


class TextSide(nn.Module):
    """Captions to the backbone's space: a CLIP text tower, then Talk2DINO (SPEC section 5)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        config = CLIPTextConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            bos_token_id=token_id(tokenizer, START_TOKEN),
            eos_token_id=token_id(tokenizer, END_TOKEN),
            pad_token_id=token_id(tokenizer, END_TOKEN),
        )
        self.tower = CLIPTextModelWithProjection(config)
        self.linear_layer = nn.Linear(TEXT_WIDTH, CONFIG.width)
        self.hidden_layer = nn.Linear(CONFIG.width, CONFIG.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids (M, L) to embeddings (M, D), not normalised."""
        return self.hidden_layer(torch.tanh(self.linear_layer(self.tower(tokens).text_embeds)))

    def save(self, folder: Path) -> None:
        """Writes the tower as transformers does, and Talk2DINO under its published names."""
        copy.deepcopy(self.tower).half().save_pretrained(folder / "text_tower")
        layers = {"linear_layer": self.linear_layer, "hidden_layers.0": self.hidden_layer}
        state = {
            f"{name}.{part}": value for name, layer in layers.items() for part, value in layer.state_dict().items()
        }
        torch.save(halved(state), folder / "talk2dino.pth")

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote."""
        self.tower = CLIPTextModelWithProjection.from_pretrained(folder / "text_tower", dtype=torch.float32)
        state = read_pickle(folder / "talk2dino.pth")
        for prefix, layer in (("linear_layer", self.linear_layer), ("hidden_layers.0", self.hidden_layer)):
            layer.load_state_dict({part: state[f"{prefix}.{part}"] for part in ("weight", "bias")})


# ---------------------------------------------------------------------------------- part 1: seeing and naming


class SceneRegions(Dataset[dict[str, Tensor]]):
    """Scenes with regions (K rows of weights over T tokens) and the captions (K) and attributes that belong to them."""

    def __init__(self, seed: int, phase: Phase) -> None:
        self.seed, self.phase = seed, phase
        self.caption_number = {caption: number for number, caption in enumerate(scenes.all_captions())}
        view = View.of((scenes.SIZE, scenes.SIZE), CONFIG.size, Fit.STRETCH)
        self.canvas = Canvas(view, CONFIG.patch, CONFIG.registers)

    def __len__(self) -> int:
        return self.phase.scenes

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        scene_seed = (self.seed * 1_000_003 + self.phase.first_scene + index) % scenes.HELD_OUT_SEED
        scene, rng = scenes.draw_scene(scene_seed), np.random.default_rng([scene_seed, 1])
        regions, captions, looks = sample_regions(scene, self.phase, rng)
        nothing = [-1] * len(ATTRIBUTES)
        return {
            "pixels": torch.from_numpy(scene.image),
            "weights": weight_rows(regions, self.canvas),
            "captions": torch.tensor([self.caption_number[caption] for caption in captions]),
            "attributes": torch.tensor([attribute_ids(look) if look else nothing for look in looks]),
            **(patch_targets(scene, self.canvas.grid) if self.phase.with_lessons else {}),
        }


def sample_regions(
    scene: Scene, phase: Phase, rng: np.random.Generator
) -> tuple[list[Region], list[str], list[Look | None]]:
    """Some regions of a scene, their captions, and the look of those that hold one object."""
    regions: list[Region] = []
    captions: list[str] = []
    looks: list[Look | None] = []
    for _ in range(phase.singles):
        one = scene.objects[rng.integers(len(scene.objects))]
        box = one.box
        left, top, right, bottom = rng.uniform(-2, 4, 4)
        kinds: list[Region] = [
            Box(box.x1 - left, box.y1 - top, box.x2 + right, box.y2 + bottom),
            one.mask,
            one.trace(rng),
        ]
        regions.append(kinds[rng.integers(3)])
        captions.append(one.look.caption)
        looks.append(one.look)
    for _ in range(phase.pairs):
        first, second = (scene.objects[i] for i in rng.choice(len(scene.objects), 2, replace=False))
        if scenes.is_pair(first.look, second.look):
            regions.append(scenes.pair_region(first, second))
            captions.append(scenes.pair_caption(first.look, second.look))
        else:
            regions.append(first.mask)
            captions.append(first.look.caption)
        looks.append(None)
    regions += [_some_background(scene.background, rng), WholeImage(pool="mean"), WholeImage(pool="cls")]
    captions += [scene.background_caption, scene.caption, scene.caption]
    looks += [None, None, None]
    return regions, captions, looks


def _some_background(background: np.ndarray[Any, np.dtype[np.bool_]], rng: np.random.Generator) -> Region:
    for _ in range(10):
        side = rng.integers(40, 90, 2)
        x, y = rng.integers(0, scenes.SIZE - side)
        if background[y : y + side[1], x : x + side[0]].all():
            return Box.from_xywh(float(x), float(y), float(side[0]), float(side[1]))
    return Mask(background)


def attribute_ids(look: Look) -> list[int]:
    words = (look.colour, look.shape, look.texture, look.size)
    return [names.index(word) for names, word in zip(ATTRIBUTES, words, strict=True)]


def patch_targets(scene: Scene, grid: int) -> dict[str, Tensor]:
    """What each patch (N) shows of the object that fills most of it: the object's attributes (N, 4), -1 where none
    fills half of it; which of its 7 x 7 cells the object covers (N, 49); and where on the object the patch lies (N, 2),
    from -1 to 1 across the object's box, zero where there is none.
    """
    visible = np.stack([one.visible for one in scene.objects])
    cells = visible.reshape(-1, grid, CELLS, CONFIG.patch // CELLS, grid, CELLS, CONFIG.patch // CELLS).mean((3, 6))
    cells = cells.transpose(0, 1, 3, 2, 4).reshape(len(visible), grid * grid, CELLS**2)
    shares = cells.mean(2)
    owner, share = shares.argmax(0), shares.max(0)
    boxes = np.array([(one.box.x1, one.box.y1, one.box.x2, one.box.y2) for one in scene.objects])
    middle, reach = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    rows, columns = np.divmod(np.arange(grid * grid), grid)
    centres = (np.stack([columns, rows], axis=1) + 0.5) * CONFIG.patch
    place = np.where(share[:, None] > 0, (centres - middle[owner]) / reach[owner], 0).clip(-1.5, 1.5)
    attributes = np.array([attribute_ids(one.look) for one in scene.objects])
    return {
        "patch_attributes": torch.from_numpy(np.where(share[:, None] > 0.5, attributes[owner], -1)),
        "patch_cells": torch.from_numpy(cells[owner, np.arange(grid * grid)]).float(),
        "patch_place": torch.from_numpy(place).float(),
    }


def train_vision(backbone: Backbone, text_side: TextSide, tokens: Tensor, phase: Phase, plan: Plan, log: Any) -> None:
    device = tokens.device
    lessons = Lessons().to(device)
    log_scale = nn.Parameter(torch.tensor(math.log(1 / phase.temperature), device=device))
    modules = nn.ModuleList([backbone, text_side, lessons]).requires_grad_(True)
    matrices = [parameter for parameter in backbone.blocks.parameters() if parameter.ndim == 2]
    others = [parameter for parameter in modules.parameters() if all(parameter is not one for one in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, phase.rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([*others, log_scale], phase.rate, (0.9, 0.98), weight_decay=0.02),
    ]
    schedules = [warm_cosine(optimizer, warm=100, steps=phase.steps) for optimizer in optimizers]
    generator = torch.Generator().manual_seed(plan.seed)
    confusable = Confusable(device)
    started, seen = time.monotonic(), Means()
    for step, batch in enumerate(_batches(phase, plan)):
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        shown, own = confusable.shown(batch["captions"].flatten(), phase, plan.captions_per_step, generator)
        with torch.autocast(device.type, torch.bfloat16):
            out, _ = backbone(batch["pixels"])
            names = text_side(tokens[shown])
        out = out.float()
        vectors = batch["weights"] @ out
        scale = log_scale.exp().clamp(max=1 / TEMPERATURE)
        logits = scale * F.normalize(vectors.flatten(0, 1), dim=-1) @ F.normalize(names.float(), dim=-1).T
        loss = contrast = F.cross_entropy(logits, own)
        if phase.with_lessons:
            lesson, grades = lessons(out[:, 1 + CONFIG.registers :], vectors, batch)
            loss = contrast + lesson
            seen.add(**grades)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        hits = (logits.argmax(1) == own).view_as(batch["captions"]).float().mean(0)
        seen.add(
            contrast=contrast,
            single_caption=hits[: phase.singles].mean(),
            pair_caption=hits[phase.singles : -3].mean(),
            background_caption=hits[-3],
            image_caption=hits[-1],
        )
        if (step + 1) % 100 == 0 or step + 1 == phase.steps:
            seconds = round(time.monotonic() - started)
            log(part=phase.name, step=step + 1, seconds=seconds, scale=scale.item(), **seen.take())
    modules.eval()


def _batches(phase: Phase, plan: Plan) -> Iterator[dict[str, Tensor]]:
    """Batches for every step. The scenes are drawn first, by all cores, and then gone through as often as it takes:
    drawing beside the training would hold up each of its parallel loops."""
    drawn = DataLoader(SceneRegions(plan.seed, phase), plan.scenes_per_step, num_workers=2)
    batches = [{name: value.clone() for name, value in batch.items()} for batch in drawn]  # out of shared memory
    generator = torch.Generator().manual_seed(plan.seed)
    for step in range(phase.steps):
        if step % len(batches) == 0:
            order = torch.randperm(len(batches), generator=generator).tolist()
        yield batches[order[step % len(batches)]]


def init_backbone(backbone: Backbone) -> None:
    """Starting weights with which a ViT this small learns from few images.

    Position waves are as strong as what patches hold, and queries start equal to keys, so that from the first step
    patches attend to those near and like them (after "Mimetic Initialization of Self-Attention Layers", 2023).
    """
    for name, parameter in backbone.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
        elif name.endswith(("token", "tokens")) or parameter.ndim == 2:
            nn.init.trunc_normal_(parameter, std=0.02)
    with torch.no_grad():
        backbone.pos_embed[0, 1:] = 0.5 * position_waves(CONFIG.width, CONFIG.grid)
        for attention in (part for part in backbone.modules() if isinstance(part, Attention)):
            query, key, _ = attention.qkv.weight.chunk(3)
            nn.init.trunc_normal_(query, std=CONFIG.width**-0.5)
            key.copy_(query)


def position_waves(width: int, grid: int) -> Tensor:
    """Sines and cosines of each patch's column and row (N, width)."""
    frequencies = 10.0 ** -torch.linspace(0, 1, width // 4)
    angles = torch.arange(grid)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    across = waves[None].expand(grid, -1, -1)
    return torch.cat([across, across.transpose(0, 1)], dim=2).flatten(0, 1)


class Confusable:
    """For each caption, others that are hard to tell from it."""

    def __init__(self, device: torch.device) -> None:
        captions = scenes.all_captions()
        number = {caption: i for i, caption in enumerate(captions)}
        self.near = torch.tensor([near_captions(caption, number) for caption in captions], device=device)
        swapped = [number.get(scenes.swapped_pair(caption), number[caption]) for caption in captions]
        self.swapped = torch.tensor(swapped, device=device)

    def shown(self, positives: Tensor, phase: Phase, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The captions that a step compares with, and the place of each region's own among them: all the regions' own,
        one near each, in a phase with swaps the swap of each, and ``count`` of any kind."""
        column = torch.randint(self.near.shape[1], positives.shape, generator=generator).to(positives)
        others = torch.randint(len(self.near), (count,), generator=generator).to(positives)
        swapped = self.swapped[positives] if phase.with_swaps else others
        own, place = torch.unique(positives, return_inverse=True)
        rest = torch.unique(torch.cat([self.near[positives, column], swapped, others]))
        return torch.cat([own, rest[~torch.isin(rest, own)]]), place


def near_captions(caption: str, number: dict[str, int], count: int = 4) -> list[int]:
    """The numbers of some captions that differ from this one in one word."""
    alternatives = [*ATTRIBUTES, scenes.BACKDROPS, tuple(scenes.TONES), tuple(scenes.COUNTS.values())]
    rng = np.random.default_rng(number[caption])
    words = caption.split()
    near: list[int] = []
    while len(near) < count:
        place = rng.integers(len(words))
        group = next((names for names in alternatives if words[place] in names), None)
        if group is None:
            continue
        changed = " ".join([*words[:place], str(rng.choice(group)), *words[place + 1 :]])
        if changed != caption and changed in number:
            near.append(number[changed])
    return near


class Lessons(nn.Module):
    """Linear heads that make the backbone see sooner, thrown away afterwards: they name the attributes of patches and
    regions, and trace in each patch which cells its object covers and where on the object it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.attributes = nn.Linear(CONFIG.width, sum(len(names) for names in ATTRIBUTES))
        self.outline = nn.Linear(CONFIG.width, CELLS**2 + 2)

    def forward(self, patches: Tensor, vectors: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss for patches (B, N, D) and region vectors (B, K, D), and how well each lesson goes."""
        naming, _ = attribute_loss(self.attributes(patches), batch["patch_attributes"])
        region_naming, right = attribute_loss(self.attributes(vectors), batch["attributes"])
        covered, place = self.outline(patches).split([CELLS**2, 2], dim=-1)
        tracing = F.binary_cross_entropy_with_logits(covered, batch["patch_cells"])
        tracing = tracing + F.smooth_l1_loss(place, batch["patch_place"])
        grades = dict(zip(("colour", "shape", "texture", "size"), right, strict=True))
        return 0.3 * (naming + region_naming) + 3 * tracing, grades | {"naming": naming, "tracing": tracing}


def attribute_loss(logits: Tensor, attributes: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Cross entropy over the attributes (..., 4) where they are known, and the share named right of each."""
    known = attributes[..., 0] >= 0
    parts = logits[known].split([len(names) for names in ATTRIBUTES], dim=-1)
    targets = attributes[known].unbind(-1)
    losses = [F.cross_entropy(part, target) for part, target in zip(parts, targets, strict=True)]
    right = [(part.argmax(-1) == target).float().mean() for part, target in zip(parts, targets, strict=True)]
    return torch.stack(losses).sum(), right


# ---------------------------------------------------------------------------------- parts 2 and 3: remembering, saying


def write_bank(path: Path, bank: Tensor) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("coco_captions-embeddings", data=bank.cpu().half().numpy())
        file.create_dataset("coco_captions-text", data=[caption.encode() for caption in scenes.all_captions()])


class CaptionDecoder(nn.Module):
    """DeCap's decoder: GPT-2 whose first input is the projected embedding (SPEC section 6); names as published."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.decoder = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary,
                n_positions=32,
                n_embd=DECODER_WIDTH,
                n_layer=DECODER_LAYERS,
                n_head=4,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        self.clip_project = nn.ModuleDict({"model": nn.Sequential(nn.Linear(CONFIG.width, DECODER_WIDTH))})

    def forward(self, embeddings: Tensor, tokens: Tensor) -> Tensor:
        """Logits (M, 1 + L, V) for the embeddings (M, D) followed by the tokens (M, L)."""
        prefix = self.clip_project["model"](embeddings).unsqueeze(1)
        words = self.decoder.transformer.wte(tokens)
        return self.decoder(inputs_embeds=torch.cat([prefix, words], dim=1)).logits


def train_decoder(bank: Tensor, tokens: Tensor, tokenizer: Tokenizer, plan: Plan, log: Any) -> CaptionDecoder:
    device = bank.device
    decoder = CaptionDecoder(tokenizer.get_vocab_size()).to(device)
    optimizer = torch.optim.AdamW(decoder.parameters(), plan.decoder_rate, weight_decay=0.01)
    schedule = warm_cosine(optimizer, warm=100, steps=plan.decoder_steps)
    generator = torch.Generator().manual_seed(plan.seed + 1)
    said = tokens[:, 1:]  # the decoder is not given the start token: its first input is the embedding
    ended = said.eq(token_id(tokenizer, END_TOKEN)).cumsum(1) > 1  # padding after the end token is not learnt
    targets = said.masked_fill(ended, -100)
    started, seen = time.monotonic(), Means()
    for step in range(plan.decoder_steps):
        picked = torch.randint(len(bank), (plan.captions_per_decoder_step,), generator=generator).to(device)
        blurred = blur(bank, picked, generator)
        logits = decoder(blurred, said[picked, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), targets[picked].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        right = (logits.argmax(-1) == targets[picked]) | (targets[picked] < 0)
        seen.add(loss=loss, whole_caption=right.all(1).float().mean())
        if (step + 1) % 100 == 0 or step + 1 == plan.decoder_steps:
            log(part="decoder", step=step + 1, seconds=round(time.monotonic() - started), **seen.take())
    return decoder.eval()


def blur(bank: Tensor, picked: Tensor, generator: torch.Generator) -> Tensor:
    """Bank rows as the memory projection gives them for a vector near, but not at, a caption's embedding (M, D)."""
    unit = F.normalize(bank, dim=-1)
    noise = torch.randn(len(picked), bank.shape[1], generator=generator).to(bank)
    strength = torch.rand(len(picked), 1, generator=generator).to(bank)
    near = F.normalize(unit[picked] + strength * F.normalize(noise, dim=-1), dim=-1)
    return F.normalize(torch.softmax(near @ unit.T / TEMPERATURE, dim=-1) @ bank, dim=-1)


def write_config(path: Path, bank_rows: int) -> None:
    """The Patch-ioner configuration (SPEC section 7); `dino_weights` and `tokenizer` are this project's own keys."""
    settings = {
        "decap_weights": "decoder.pt",
        "prefix_size": CONFIG.width,
        "linear_talk2dino": False,
        "support_memory_size": bank_rows,
        "dino_model": "dinov2_vitdemo14_reg",
        "dino_weights": BACKBONE_FILE,
        "normalize": True,
        "kkv_attention": False,
        "projection_type": "memory.h5",
        "resize_dim": CONFIG.size,
        "crop_dim": CONFIG.size,
        "use_talk2dino_project": False,
        "talk2dino_weights": "talk2dino.pth",
        "clip_model_name": "text_tower",
        "tokenizer": TOKENIZER_FILE,
    }
    path.write_text(yaml.safe_dump(settings, sort_keys=False))


# ---------------------------------------------------------------------------------------------------------- small parts


def halved(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().half() for name, value in state.items()}


def warm_cosine(optimizer: torch.optim.Optimizer, warm: int, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    def factor(step: int) -> float:
        return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * step / steps))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class Means:
    """Running means of what a step reports, for the log."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.item())

    def take(self) -> dict[str, float]:
        means = {name: round(float(np.mean(values)), 4) for name, values in self._values.items()}
        self._values = {}
        return means


if __name__ == "__main__":
    main()
