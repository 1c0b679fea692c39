"""How long, and on what, the demo checkpoint is trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """A stretch of training the backbone and the text encoder.

    Attributes:
        name: the name of the phase in the training log.
        steps: optimizer steps; the scenes are repeated as often as they require.
        first_scene: number of the first scene.
        scenes: number of scenes.
        singles: regions over one object that are taken from each scene.
        pairs: regions over two objects that are taken from each scene.
        rate: peak learning rate.
        temperature: initial temperature of the contrastive loss.
        with_lessons: whether the auxiliary heads are trained as well.
        with_swaps: whether each pair is also contrasted with the pair whose shapes are exchanged: a red circle and a
            blue square with a blue circle and a red square. The mean vectors of the two differ only if the tokens bind
            colour to shape.
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
class DemoTrainingPlan:
    """The settings of a whole training run; the defaults take under an hour on two cores.

    Attributes:
        seed: seed of the weights, of the scenes and of every random choice.
        phases: phases of the backbone and the text encoder, in order.
        scenes_per_step: batch size of the phases.
        captions_per_step: random captions that each step of a phase adds as negatives.
        decoder_steps: optimizer steps of the decoder.
        captions_per_decoder_step: batch size of the decoder.
        decoder_rate: the decoder's peak learning rate.
    """

    seed: int = 0
    phases: tuple[Phase, ...] = (SEEING, BINDING)
    scenes_per_step: int = 16
    captions_per_step: int = 256
    decoder_steps: int = 1800
    captions_per_decoder_step: int = 256
    decoder_rate: float = 1e-3
