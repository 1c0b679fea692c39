"""Contrastive training of the backbone and the text encoder.

Each region's vector is drawn to the embedding of its caption and pushed away from those of other captions.

Shapes: B images, N patches, D width, R regions of an image, C candidate captions, M captions of the demo's world,
L tokens of a caption.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.demo.auxiliary_tasks import AuxiliaryHeads
from export.demo.hard_negatives import HardNegatives
from export.demo.model_config import BACKBONE_CONFIG, MEMORY_TEMPERATURE
from export.demo.text_encoder import TextEncoder
from export.demo.training_loop import ScheduledOptimizers, StepReport, TrainingLog
from export.demo.training_plan import DemoTrainingPlan, Phase
from export.demo.training_regions import draw_batches
from export.models.dinov2 import Dinov2Backbone

_WEIGHT_DECAY = 0.02


def train_vision(
    backbone: Dinov2Backbone,
    text_encoder: TextEncoder,
    caption_tokens: Tensor,
    phase: Phase,
    plan: DemoTrainingPlan,
    log: TrainingLog,
) -> None:
    """Train the backbone and the text encoder for one phase, in place, on the token ids of all captions (M, L)."""
    trainer = VisionTrainer(backbone, text_encoder, caption_tokens, phase, plan)
    report = StepReport(phase.name, phase.steps, log)
    for batch in draw_batches(phase, plan):
        metrics, scale = trainer.step(batch)
        report.add(metrics, scale=scale)
    trainer.modules.eval()


@dataclass(frozen=True)
class Contrast:
    """The regions of a batch contrasted with candidate captions.

    Attributes:
        patches: (B, N, D) patch tokens.
        vectors: (B, R, D) region vectors.
        logits: (B * R, C) scaled cosines of regions and candidates.
        targets: (B * R) index of each region's own caption among the candidates.
        scale: () factor of the cosines, the inverse of the learnt temperature.
    """

    patches: Tensor
    vectors: Tensor
    logits: Tensor
    targets: Tensor
    scale: Tensor


class VisionTrainer:
    """The state of one phase's training: modules, learnt temperature, optimizers and random choices."""

    def __init__(
        self,
        backbone: Dinov2Backbone,
        text_encoder: TextEncoder,
        caption_tokens: Tensor,
        phase: Phase,
        plan: DemoTrainingPlan,
    ) -> None:
        self.phase = phase
        self._backbone, self._text_encoder, self._caption_tokens = backbone, text_encoder, caption_tokens
        self._device = caption_tokens.device
        self._heads = AuxiliaryHeads().to(self._device)
        self._log_scale = nn.Parameter(torch.tensor(math.log(1 / phase.temperature), device=self._device))
        self.modules = nn.ModuleList([backbone, text_encoder, self._heads]).requires_grad_(True)
        self._optimizers = ScheduledOptimizers(self._create_optimizers(), phase.steps)
        self._negatives = HardNegatives(self._device)
        self._random_captions = plan.captions_per_step
        self._generator = torch.Generator().manual_seed(plan.seed)

    def step(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Take one optimizer step; return the metrics of the batch and the scale that it was contrasted with."""
        batch = {name: value.to(self._device, non_blocking=True) for name, value in batch.items()}
        contrast = self._contrast(batch)
        loss = contrastive_loss = F.cross_entropy(contrast.logits, contrast.targets)
        metrics: dict[str, Tensor] = {}
        if self.phase.with_lessons:
            auxiliary_loss, metrics = self._heads(contrast.patches, contrast.vectors, batch)
            loss = contrastive_loss + auxiliary_loss
        self._optimizers.step(loss, self.modules.parameters())
        return metrics | {"contrast": contrastive_loss} | self._accuracy(contrast), contrast.scale

    def _contrast(self, batch: dict[str, Tensor]) -> Contrast:
        """Return the batch's regions contrasted with their own captions, hard negatives and random captions."""
        candidates, targets = self._negatives.sample_candidates(
            batch["captions"].flatten(), self._random_captions, self._generator, with_swaps=self.phase.with_swaps
        )
        with torch.autocast(self._device.type, torch.bfloat16):
            tokens, _ = self._backbone(batch["pixels"])
            embeddings = self._text_encoder(self._caption_tokens[candidates])
        tokens = tokens.float()
        vectors = batch["weights"] @ tokens
        scale = self._log_scale.exp().clamp(max=1 / MEMORY_TEMPERATURE)
        logits = scale * F.normalize(vectors.flatten(0, 1), dim=-1) @ F.normalize(embeddings.float(), dim=-1).T
        return Contrast(tokens[:, 1 + BACKBONE_CONFIG.num_registers :], vectors, logits, targets, scale)

    def _accuracy(self, contrast: Contrast) -> dict[str, Tensor]:
        """Return, for each kind of region, the share whose own caption is the nearest candidate."""
        images, regions, _ = contrast.vectors.shape
        correct = (contrast.logits.argmax(1) == contrast.targets).view(images, regions).float().mean(0)
        singles = self.phase.singles  # the order is that of `sample_regions`
        return {
            "single_caption": correct[:singles].mean(),
            "pair_caption": correct[singles:-3].mean(),
            "background_caption": correct[-3],
            "image_caption": correct[-1],
        }

    def _create_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return Muon for the matrices of the backbone's blocks and AdamW for all else."""
        matrices = [parameter for parameter in self._backbone.blocks.parameters() if parameter.ndim == 2]
        matrix_ids = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in self.modules.parameters() if id(parameter) not in matrix_ids]
        rate = self.phase.rate
        return [
            torch.optim.Muon(matrices, rate, weight_decay=_WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW([*others, self._log_scale], rate, (0.9, 0.98), weight_decay=_WEIGHT_DECAY),
        ]
