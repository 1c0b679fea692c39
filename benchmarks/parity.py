"""Compares what a bundle computes with what the published system computed: `python benchmarks/parity.py`.

Recordings were made with made-up weights that a `recording:` checkpoint reproduces. With --images, a folder that holds
their photographs, all of a recording is compared; without it, what follows from the tokens or vectors that it holds.
Exits non-zero when a difference is more than rounding.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import numpy.typing as npt
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.decoder_recording import DecoderRecording, compare_decoding
from benchmarks.densecap_recording import compare_dense_evaluation, is_dense_evaluation
from benchmarks.difference import NEAR_TIE, Difference, relative_difference
from benchmarks.reference_recording import MODES, RECORDINGS, CutTask, Recording, Task, tasks
from benchmarks.text_recording import compare_text
from benchmarks.training_recording import compare_training, is_training
from benchmarks.vocabulary_recording import compare_vocabulary, is_vocabulary
from export.bundle_builder import BuildOptions, build
from export.command_line import run_command, show_progress
from export.readers import recording as checkpoints
from export.readers.recorded_decoders import kind_of
from runtime import Caption, Captioner, FeatureMap, Fit, PatchcaptionError
from runtime.bundle import Preprocessing
from runtime.image import open_image, prepare

_PIXEL_STEP = 7


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a task gave.

    Attributes:
        vectors: of its regions (R, D); None where it began with the recorded ones.
        projected: the same in text space (R, D); None where that is not known.
        decoded: what is to be decoded (R, D); None where the task is to be described.
        described: the task; None where there are vectors to decode.
    """

    vectors: torch.Tensor | None
    projected: torch.Tensor | None
    decoded: torch.Tensor | None = None
    described: Task | None = None


def compare(captioner: Captioner, recording: Recording, features: FeatureMap | None) -> Iterator[Difference]:
    """Run every task, with the memory bank ("mem") and without ("nomem").

    Args:
        features: of the photographs; None to begin with the recorded vectors of each task.
    """
    outputs = dict(_outputs(captioner, recording, features))
    compared = {key: one for key, one in outputs.items() if key in recording.captions}
    captions = _decode(captioner, {key: one.decoded for key, one in compared.items() if one.decoded is not None})
    if features is not None:
        described = {key: one.described for key, one in compared.items() if one.described is not None}
        captions |= _describe(captioner, features, described)
    for key, one in outputs.items():
        yield _difference(captioner, recording, key, one, captions.get(key, ()))


def _outputs(captioner: Captioner, recording: Recording, features: FeatureMap | None) -> Iterator[tuple[str, Outputs]]:
    for task in tasks(recording, recording.layout(captioner.manifest.backbone)):
        for mode in MODES:
            key = f"{task.name}.{mode}"
            if not recording.holds(key):
                continue
            if features is None or (task.needs_photographs and features.images is None):
                outputs = _from_recorded_vectors(captioner, recording, task, mode)
            else:
                outputs = _from_features(captioner, task, mode, features)
            if outputs is not None:
                yield key, outputs


def _from_features(captioner: Captioner, task: Task, mode: str, features: FeatureMap) -> Outputs:
    vectors = task.vectors(captioner, features)
    if mode == "nomem":
        return Outputs(vectors, None, decoded=vectors)
    if isinstance(task, CutTask):
        projected = captioner.project(vectors)
        return Outputs(vectors, projected, decoded=projected)
    return Outputs(vectors, None if "clean" in task.options else captioner.project(vectors), described=task)


def _decode(captioner: Captioner, vectors: Mapping[str, torch.Tensor]) -> dict[str, list[Caption]]:
    """Return the captions of vectors by their keys; decoded together, as a step of one takes as long as of dozens."""
    captions = iter(captioner.decode(torch.cat(list(vectors.values())), score="reference") if vectors else ())
    return {key: list(islice(captions, len(one))) for key, one in vectors.items()}


def _describe(captioner: Captioner, features: FeatureMap, tasks: Mapping[str, Task]) -> dict[str, list[Caption]]:
    """Return the captions of tasks by their keys; those of the same options are described together, too."""
    alike: dict[str, dict[str, Task]] = {}
    for key, task in tasks.items():
        alike.setdefault(repr(sorted(task.options.items())), {})[key] = task
    found: dict[str, list[Caption]] = {}
    for group in alike.values():
        of_images = zip(*(task.regions for task in group.values()), strict=True)
        regions = [list(chain.from_iterable(own)) for own in of_images]
        options = next(iter(group.values())).options | {"score": "reference"}
        described = [iter(of_image) for of_image in captioner.describe(features, regions, **options)]
        for key, task in group.items():
            own = zip(described, task.regions, strict=True)
            found[key] = [caption for captions, regions in own for caption in islice(captions, len(regions))]
    return found


def _from_recorded_vectors(captioner: Captioner, recording: Recording, task: Task, mode: str) -> Outputs | None:
    recorded = recording.vectors(task.name)
    if recorded is None or task.options.keys() - {"reencode"}:  # those that follow on the vectors
        return None
    vectors = torch.from_numpy(recorded)
    projected = captioner.project(vectors) if mode == "mem" else None
    return Outputs(None, projected, decoded=vectors if projected is None else projected)


def _difference(
    captioner: Captioner, recording: Recording, key: str, outputs: Outputs, captions: Sequence[Caption]
) -> Difference:
    stride = 1 if outputs.vectors is None else recording.stride(key)  # of recorded vectors there are so many only
    found = Difference(
        key,
        vectors=relative_difference(outputs.vectors, recording.vectors(key.rsplit(".", 1)[0]), stride),
        projected=relative_difference(outputs.projected, recording.arrays.get(f"{key}.proj"), stride),
    )
    if key not in recording.captions:
        return found
    recorded = recording.captions[key]
    others = [
        number for number, (one, text) in enumerate(zip(captions, recorded, strict=True)) if one.text != text.strip()
    ]
    return replace(
        found,
        regions=len(recorded),
        same_texts=len(recorded) - len(others),
        near_ties=_near_ties(captioner, recording, key, others),
        scores=_worst_score([one.score for one in captions], recording.scores.get(key), others),
    )


def _near_ties(captioner: Captioner, recording: Recording, key: str, others: Sequence[int]) -> tuple[int, ...]:
    """Return those of the captions that have the recorded text where the recorded vector is decoded."""
    ending = "proj" if key.endswith(".mem") else "vec"
    recorded = recording.arrays.get(f"{key}.{ending}")
    if not others or recorded is None or recording.stride(key) > 1:
        return ()
    decoded = captioner.decode(torch.from_numpy(recorded[list(others)]))
    texts = [recording.captions[key][number].strip() for number in others]
    return tuple(number for number, one, text in zip(others, decoded, texts, strict=True) if one.text == text)


def compare_decoder(captioner: Captioner, recording: Recording) -> Iterator[Difference]:
    """Compare the decoding of recorded inputs: tokens up to the first near-tie, and scores where there is none."""
    if "decoder.inputs" not in recording.arrays:
        return
    captions = captioner.decode(torch.from_numpy(recording.arrays["decoder.inputs"]), score="reference")
    end = captioner.manifest.decoder.eos_token_id
    scores = recording.scores.get("decoder")
    same, sure_scores, recorded_scores = 0, [], []
    for number, caption in enumerate(captions):
        tokens = recording.arrays["decoder.tokens"][number].tolist()
        ties = np.flatnonzero(recording.arrays["decoder.margins"][number] < NEAR_TIE)
        until = min(tokens.index(end) + 1 if end in tokens else len(tokens), *ties.tolist(), len(tokens))
        same += list(caption.ids[:until]) == tokens[:until]
        if scores is not None and not len(ties):
            sure_scores.append(caption.score)
            recorded_scores.append(scores[number])
    yield Difference("decoder", len(captions), same, scores=_worst_score(sure_scores, recorded_scores, ()))


def compare_backbone(captioner: Captioner, recording: Recording, images: Path) -> tuple[FeatureMap, list[Difference]]:
    """Encode a recording's photographs, found in ``images``; return their features and the differences."""
    photos = [open_image(images / f"{name}.jpg") for name in recording.settings["images"]]
    features = captioner.encode(photos)
    found = {"patches": features.patches[:, :: recording.stride("patches")], "registers": features.registers}
    if features.layout.cls_index is not None:
        found["cls"] = features.cls
    if captioner.manifest.backbone.attention_heads:
        logits = features.cls_attention_logits
        heads = torch.softmax(logits, dim=-1) if recording.has_head_attention else logits
        found |= {"self_attn": features.cls_attention, "self_attn_heads": heads}
    tokens = {name: relative_difference(value, recording.arrays.get(name)) for name, value in found.items()}
    numbers = captioner.manifest.backbone.preprocessing
    pixels = {
        name: _pixel_difference(prepare(photos, numbers.image_size, fit)[0], recording.arrays.get(name), numbers)
        for name, fit in (("pixel_values", recording.fit), ("pixel_values_nocrop", Fit.STRETCH))
    }
    differences = [Difference(name, pixels=value) for name, value in pixels.items() if value is not None]
    differences += [Difference(name, tokens=value) for name, value in tokens.items() if value is not None]
    return features, differences


def _pixel_difference(
    pixels: torch.Tensor, recorded: npt.NDArray[np.float32] | None, numbers: Preprocessing
) -> float | None:
    """Return the largest difference of pixels (B, S, S, 3) uint8 from those that were recorded, as the input is."""
    if recorded is None:
        return None
    mean, std = (np.array(value, np.float64)[:, None, None] for value in (numbers.mean, numbers.std))
    want = np.rint((recorded * std + mean) * 255)
    got = pixels.numpy().transpose(0, 3, 1, 2)[:, :, ::_PIXEL_STEP, ::_PIXEL_STEP]
    return float(np.abs(got - want).max())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Compare bundles with recordings of the published system.")
    parser.add_argument("recordings", type=Path, nargs="*", help="NAME.npz (default: all of benchmarks/recordings)")
    parser.add_argument("--images", type=Path, help="folder of the recordings' photographs; else their tokens are used")
    parser.add_argument("--checkpoint-dir", type=Path, metavar="FOLDER", help="where a vocabulary's files may be")
    options = parser.parse_args(arguments)
    paths = options.recordings or sorted(RECORDINGS.glob("*.npz"))
    return run_command(
        partial(_run, paths, options.images, options.checkpoint_dir), errors=(PatchcaptionError, OSError)
    )


def _run(paths: Sequence[Path], images: Path | None, files: Path | None) -> int:
    found = _worst([one for path in paths for one in _measure_all(path, images, files)])
    Console(width=120).print(_table(found, ", ".join(path.stem for path in paths)))
    return int(any(one.faults for one in found))


def _measure_all(path: Path, images: Path | None, files: Path | None) -> list[Difference]:
    """Measure a recording of any kind, by its .json."""
    contents = checkpoints.read_json(path.with_suffix(".json"))
    if is_vocabulary(contents):
        return [compare_vocabulary(contents, path.stem, files)]
    if is_training(contents):
        return list(compare_training(contents, path))
    if is_dense_evaluation(contents):
        return list(compare_dense_evaluation(contents))
    if kind_of(contents) is not None:
        return _measure_decoder(DecoderRecording.load(path))
    return [one for recording in Recording.load(path).variants() for one in _measure(recording, images)]


def _measure_decoder(recording: DecoderRecording) -> list[Difference]:
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        with show_progress(Console(stderr=True), BuildOptions().steps) as progress:
            build(f"{checkpoints.PREFIX}{recording.recorded.path}", bundle, progress, BuildOptions())
        with Captioner.load(bundle, "cpu") as captioner:
            found = compare_decoding(recording, captioner, bundle, Path(folder))
    return [replace(one, task=f"{recording.kind}: {one.task}") for one in found]


def _measure(recording: Recording, images: Path | None) -> list[Difference]:
    with tempfile.TemporaryDirectory() as folder:
        options = BuildOptions()
        with show_progress(Console(stderr=True), options.steps) as progress:
            build(recording.checkpoint, Path(folder) / "bundle", progress, options)
        with Captioner.load(Path(folder) / "bundle", "cpu", fit=recording.fit) as captioner:
            features, backbone = recording.features(captioner.manifest.backbone), list[Difference]()
            if images is not None:
                features, backbone = compare_backbone(captioner, recording, images)
            found = [
                *backbone,
                *compare(captioner, recording, features),
                *compare_decoder(captioner, recording),
                *compare_text(recording),
            ]
            tag, spread = (f"{recording.tag}." if recording.tag else ""), checkpoints.spread(recording.settings)
            return [replace(one, task=f"{tag}{one.task}", spread=spread) for one in found]


def _worst(found: Sequence[Difference]) -> list[Difference]:
    """Return the worst difference of each task, with and without memory bank, over all recordings."""
    tasks: dict[str, list[Difference]] = {}
    for one in found:
        tasks.setdefault(one.task.rsplit(".", 1)[0] if one.task.endswith("mem") else one.task, []).append(one)

    def largest(values: Iterable[float | None]) -> float | None:
        return max((value for value in values if value is not None), default=None)

    return [
        Difference(
            task,
            regions=sum(one.regions for one in same),
            same_texts=sum(one.same_texts for one in same),
            spread=max(one.spread for one in same),
            is_made=all(one.is_made for one in same),
            near_ties=tuple(number for one in same for number in one.near_ties),
            pixels=largest(one.pixels for one in same),
            tokens=largest(one.tokens for one in same),
            vectors=largest(one.vectors for one in same),
            projected=largest(one.projected for one in same),
            scores=largest(one.scores for one in same),
        )
        for task, same in tasks.items()
    ]


def _table(found: Sequence[Difference], recordings: str) -> Table:
    table = Table(box=box.MARKDOWN, title=f"largest relative differences from {recordings}")
    for heading in ("task", "pixels", "tokens", "vectors", "projected", "same texts", "scores"):
        table.add_column(heading, justify="left" if heading == "task" else "right", no_wrap=True)
    for one in found:
        same = f"{one.same_texts} / {one.regions}" if one.regions else ""
        same = same if one.is_made else "not made here"
        ties = f" (near ties: {', '.join(map(str, one.near_ties))})" if one.near_ties else ""
        numbers = (_format(getattr(one, name)) for name in ("pixels", "tokens", "vectors", "projected"))
        table.add_row(one.task, *numbers, same + ties, _format(one.scores))
    return table


def _worst_score(found: Sequence[float], recorded: Sequence[float] | None, others: Collection[int]) -> float | None:
    """Return the largest relative difference of scores, but for captions of another text."""
    if not recorded:
        return None
    pairs = [pair for number, pair in enumerate(zip(found, recorded, strict=True)) if number not in others]
    return max((abs(got - want) / want for got, want in pairs), default=None)


def _format(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


if __name__ == "__main__":
    sys.exit(main())
