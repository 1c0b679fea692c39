"""Recordings of the published decoders: what a bundle computes of their vectors, compared (published-system.md, 22)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from benchmarks.difference import NEAR_TIE, Difference, relative_difference
from export.readers import viecap
from export.readers.recorded_decoders import RecordedDecoder, concept_prompts, entity_prompts, kind_of
from runtime import Captioner
from runtime.bundle import MANIFEST, Manifest, record_files, write_manifest
from runtime.decoding.mean_beam_search import mean_beam_search
from runtime.decoding.prompted import PromptedDecoder
from runtime.decoding.sampling import decode_chosen, nucleus

_CLOSE = 1e-3
"""Of mean log-probabilities of beams, between which rounding may choose."""
_RANK_TIE = 1e-5
"""Of cosines between which rounding may choose the nearer caption."""
_FULL_STOP = 13

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class DecoderRecording:
    """A recording of a decoder.

    Attributes:
        recorded: what its .json says.
        arrays: by the names of its .npz.
    """

    recorded: RecordedDecoder
    arrays: Mapping[str, Array]

    @classmethod
    def load(cls, path: Path) -> DecoderRecording:
        """Read a recording."""
        contents = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        with np.load(path.with_suffix(".npz")) as file:
            return cls(RecordedDecoder(path.with_suffix(".json"), contents), dict(file))

    @property
    def kind(self) -> str:
        """The decoder's."""
        kind = kind_of(self.recorded.contents)
        assert kind is not None
        return kind

    @property
    def vectors(self) -> Tensor:
        """Its vectors (R, D)."""
        return torch.from_numpy(self.arrays["vec"])

    def __getitem__(self, name: str) -> Any:
        """Return an entry of its .json."""
        return self.recorded.contents[name]

    def __contains__(self, name: str) -> bool:
        return name in self.recorded.contents


def compare_decoding(recording: DecoderRecording, captioner: Captioner, bundle: Path, work: Path) -> list[Difference]:
    """Compare all that a recording holds.

    Args:
        captioner: of ``bundle``, which was built of the recording.
        work: a folder for bundles of its variants.
    """
    return list(_COMPARISONS[recording.kind](recording, captioner, bundle, work))


def _compare_prompted(
    recording: DecoderRecording, captioner: Captioner, bundle: Path, work: Path
) -> Iterator[Difference]:
    """Compare ViECap or MeaCap: soft prompts, words, captions alone and padded, variants, beams."""
    decoder = _prompted(captioner)
    yield from _compare_soft(recording, decoder)
    if "retrieved" in recording.arrays:
        yield _compare_retrieval(recording, captioner)
    yield _compare_greedy(recording, captioner, "greedy.alone", {})
    batches = [key for key in recording.recorded.contents if key.startswith("greedy.batch")]
    for key in batches:
        yield _compare_greedy(recording, captioner, key, {"prompt_padding": "reference"})
    yield from _compare_beams(recording, decoder, captioner.manifest)
    for tag in recording.recorded.variants:
        variant = RecordedDecoder(recording.recorded.path, recording.recorded.contents, tag)
        with Captioner.load(_with_prompts(bundle, variant, work / tag), "cpu") as other:
            yield _compare_greedy(recording, other, f"variant.{tag}", {})


def _compare_soft(recording: DecoderRecording, decoder: PromptedDecoder) -> Iterator[Difference]:
    arrays = recording.arrays
    soft = decoder.prompts.soft_prompt(recording.vectors)
    recorded = {
        "soft": soft,
        "soft_row0": soft[0],
        "soft_every_16": soft[..., ::16],
        "prefix_row0": soft[0],
        "prefix_every_8": soft[..., ::8],
    }
    for name, found in recorded.items():
        if name in arrays:
            yield Difference(name, vectors=relative_difference(found, arrays[name]))
    logits = decoder.prompts.begin(recording.vectors).first_log_probs
    assert logits is not None
    for name in ("greedy.alone.first_logits_97", "first_logits_97"):
        if name in arrays:
            want = torch.from_numpy(arrays[name])
            shift = (want - logits[:, ::97]).mean(dim=1, keepdim=True)  # of logits and their log-probabilities
            yield Difference("first logits", vectors=relative_difference(logits[:, ::97] + shift, arrays[name]))


def _compare_retrieval(recording: DecoderRecording, captioner: Captioner) -> Difference:
    retrieved, margins = recording.arrays["retrieved"], recording.arrays["retrieved_margin"]
    captions = recording["memory_captions"]
    found = captioner.pipeline.projector.nearest(recording.vectors, retrieved.shape[1])
    same = sum(
        [match.text for match in matches] == [captions[row] for row in rows] or margin < _RANK_TIE
        for matches, rows, margin in zip(found, retrieved, margins, strict=True)
    )
    return Difference("retrieved", len(retrieved), same)


def _compare_greedy(
    recording: DecoderRecording, captioner: Captioner, key: str, options: Mapping[str, Any]
) -> Difference:
    """Compare greedy captions: words of prompts, tokens up to the first near tie, log-probabilities, perplexities."""
    contents = recording[key]
    vectors = recording.vectors[contents["rows"]]
    captions = captioner.decode(vectors, **options)
    tokens, margins = (recording.arrays[f"{key}.{name}"] for name in ("tokens", "margin"))
    log_probs = recording.arrays[f"{key}.logprob"]
    prompts = contents.get("prompt_ids") or recording.recorded.contents.get(
        f"{key}.prompt_ids", recording.recorded.contents.get("prompt_ids") if key == "greedy.alone" else None
    )
    words = _prompted(captioner).prompts.words(vectors)
    same, worst = 0, 0.0
    for row, caption in enumerate(captions):
        count = contents["lengths"][row]
        until = _sure_steps(margins[row][:count])
        right = list(caption.ids[:until]) == tokens[row][:until].tolist()
        if until == count:
            right &= caption.text == contents["texts"][row].strip()
            difference = abs(math.log(caption.score) - float(log_probs[row][:count].astype(np.float64).sum()))
            worst = max(worst, difference / count)
        if prompts is not None and words[row]:
            right &= words[row] == prompts[row]
        same += right
    scores = [worst]
    if "perplexity" in contents:
        found = captioner.decode(vectors, score="reference", **options)
        scores.append(_worst_log([one.score for one in found], contents["perplexity"]))
    return Difference(key, len(captions), same, scores=max(scores))


def _compare_beams(recording: DecoderRecording, decoder: PromptedDecoder, manifest: Manifest) -> Iterator[Difference]:
    for key in (key for key in recording.recorded.contents if key.startswith("beam.")):
        contents = recording[key]
        vectors, width = recording.vectors[contents["rows"]], len(contents["beams"][0]["tokens"])
        padded = 0 if key == "beam.alone" else decoder.prompts.longest(vectors)
        state = decoder.prompts.begin(vectors, width, pad_to=padded)
        found = mean_beam_search(decoder.beam_engine, manifest.decoder, state, len(vectors), width)
        same, worst = 0, 0.0
        for row, want in enumerate(contents["beams"]):
            lengths = found.lengths[row].tolist()
            ids = [found.ids[row, beam, :length].tolist() for beam, length in enumerate(lengths)]
            is_sure = min(want["gap"], default=1.0) > _CLOSE
            right = not is_sure or sorted(ids) == sorted(want["tokens"])
            if is_sure and want["rank_margin"] > _CLOSE:
                right &= ids[0] == want["tokens"][0]
                means = (found.sums[row] / found.lengths[row]).tolist()
                worst = max(worst, abs(means[0] - want["score"][0]))
            same += right
        yield Difference(key, len(vectors), same, scores=worst)


def _compare_clipcap(
    recording: DecoderRecording,
    captioner: Captioner,
    bundle: Path,  # noqa: ARG001  # as all
    work: Path,  # noqa: ARG001
) -> Iterator[Difference]:
    """Compare ClipCap: soft prompts, greedy captions, and the nucleus at each step of the recorded ones."""
    decoder = _prompted(captioner)
    yield from _compare_soft(recording, decoder)
    yield _compare_clipcap_greedy(recording, captioner)
    for key in ("greedy", "nucleus"):
        if key in recording:
            yield _compare_nucleus(recording, decoder, captioner.manifest, key)


def _compare_clipcap_greedy(recording: DecoderRecording, captioner: Captioner) -> Difference:
    contents, arrays = recording["greedy"], recording.arrays
    captions = captioner.decode(recording.vectors, score="reference")
    same, sure = 0, list[int]()
    for row, caption in enumerate(captions):
        count = _steps_until_stop(contents, arrays["greedy.tokens"], row)
        until = _sure_steps(arrays["greedy.margin"][row][:count])
        right = list(caption.ids[:until]) == arrays["greedy.tokens"][row][:until].tolist()
        if until == count:
            right &= caption.text == contents["texts"][row].strip()
            sure.append(row)
        same += right
    scores = _worst_log([captions[row].score for row in sure], [contents["scores"][row] for row in sure])
    return Difference("greedy", len(captions), same, scores=scores)


def _compare_nucleus(recording: DecoderRecording, decoder: PromptedDecoder, manifest: Manifest, key: str) -> Difference:
    """Force the recorded tokens; compare how many tokens were in the nucleus, and how probable the drawn one was."""
    contents, arrays = recording[key], recording.arrays
    tokens = arrays[f"{key}.tokens"]
    counts = [_steps_until_stop(contents, tokens, row) for row in range(len(tokens))]
    settings = recording["settings"]
    wrong, worst = set[int](), [0.0]

    def force(log_probs: Tensor, captions: Tensor, step: int) -> Tensor:
        in_order, probs = nucleus(log_probs, contents["top_p"], settings["temperature"])
        chosen = torch.full((len(captions),), _FULL_STOP)
        for index, row in enumerate(captions.tolist()):
            if step >= counts[row]:
                continue
            token = int(tokens[row, step])
            chosen[index] = token
            size = int((probs[index] > 0).sum())
            prob = float(probs[index][in_order[index] == token])
            if abs(size - arrays[f"{key}.nucleus_size"][row, step]) > 1 + _CLOSE * size:
                wrong.add(row)
            worst.append(abs(prob - arrays[f"{key}.prob_in_nucleus"][row, step]))
            log_prob = arrays[f"{key}.logprob"][row, step]
            worst.append(abs(float(log_probs[index, token]) - log_prob) / max(1.0, abs(log_prob)))
        return chosen

    state = decoder.prompts.begin(recording.vectors)
    decode_chosen(decoder.beam_engine, manifest.decoder, state, len(tokens), force)
    return Difference(f"{key}.nucleus", len(tokens), len(tokens) - len(wrong), scores=max(worst))


def _compare_inversion(
    recording: DecoderRecording,
    captioner: Captioner,
    bundle: Path,  # noqa: ARG001  # as all
    work: Path,  # noqa: ARG001
) -> Iterator[Difference]:
    """Compare embedding inversion: projected vectors, and captions of them."""
    projected = captioner.project(recording.vectors)
    captions = captioner.decode(projected, score="reference")
    arrays, end = recording.arrays, captioner.manifest.decoder.eos_token_id
    same, sure = 0, list[int]()
    for row, caption in enumerate(captions):
        tokens = arrays["tokens"][row].tolist()
        count = tokens.index(end) + 1 if end in tokens else len(tokens)
        until = _sure_steps(arrays["margin"][row][:count])
        right = list(caption.ids[:until]) == tokens[:until]
        if _sure_steps(arrays["margin"][row]) == len(tokens):
            right &= caption.text == recording["texts"][row].strip()
            sure.append(row)
        same += right
    scores = _worst_log([captions[row].score for row in sure], [recording["scores"][row] for row in sure])
    yield Difference(
        "inversion", len(captions), same, projected=relative_difference(projected, arrays["proj"]), scores=scores
    )


_COMPARISONS = {
    "viecap": _compare_prompted,
    "meacap": _compare_prompted,
    "clipcap": _compare_clipcap,
    "inversion": _compare_inversion,
}


def _prompted(captioner: Captioner) -> PromptedDecoder:
    decoder = captioner.pipeline.decoder
    assert isinstance(decoder, PromptedDecoder)
    return decoder


def _with_prompts(bundle: Path, variant: RecordedDecoder, folder: Path) -> Path:
    """Return a bundle that differs from another in its prompts alone, and so shares its graphs with it."""
    folder.mkdir()
    for path in bundle.iterdir():
        if path.name != MANIFEST:
            os.link(path, folder / path.name)
    manifest = Manifest.model_validate_json((bundle / MANIFEST).read_text())
    prompt = manifest.decoder.prompt
    assert prompt is not None
    words = entity_prompts if manifest.decoder.kind == "viecap" else concept_prompts
    source, order = words(variant, str(variant.path)), viecap.read_settings(variant.settings, str(variant.path)).order
    for name in prompt.files:
        (folder / name).unlink()  # not through the link
    hard = source.write(folder)
    changed = prompt.model_copy(update={"order": order, "hard": None if order == "soft_only" else hard})
    update = {"decoder": manifest.decoder.model_copy(update={"prompt": changed}), "files": record_files(folder)}
    write_manifest(folder, Manifest.model_validate(dict(manifest) | update))
    return folder


def _steps_until_stop(contents: Mapping[str, Any], tokens: Array, row: int) -> int:
    stop = contents["stop"][row]
    return tokens.shape[1] if stop is None else stop + 1


def _sure_steps(margins: Array) -> int:
    """Return the number of steps before the first at which rounding may choose another token."""
    ties = np.flatnonzero(margins < NEAR_TIE)
    return int(ties[0]) if len(ties) else len(margins)


def _worst_log(found: Sequence[float], recorded: Sequence[float | None]) -> float:
    """Return the largest difference of the logarithms of scores; infinite where only one of two is a number."""
    worst = 0.0
    for score, want in zip(found, recorded, strict=True):
        if want is None or math.isnan(score):
            worst = max(worst, 0.0 if want is None and math.isnan(score) else math.inf)
        else:
            worst = max(worst, abs(math.log(score) - math.log(want)))
    return worst
