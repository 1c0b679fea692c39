"""Describes the region vectors of several callers in one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from runtime.errors import OptionError
from runtime.features import RegionVectors
from runtime.options import DecodingOptions
from runtime.pipeline import Pipeline
from runtime.results import Caption


def require_own_prompts(options: DecodingOptions) -> None:
    """Refuse options by which captions would depend on what others ask for at the same time.

    Raises:
        OptionError: prompts are filled up to the longest of all.
    """
    if options.prompt_padding != "none":
        raise OptionError(
            f'prompt_padding="{options.prompt_padding}": captions would depend on what other callers ask for at the '
            "same time; use Captioner.describe"
        )


def describe_together(
    pipeline: Pipeline, vectors: Sequence[RegionVectors], options: DecodingOptions
) -> list[list[Caption] | BaseException]:
    """Return each caller's captions, or why it has none; an error of one is no other's.

    Args:
        vectors: of each caller, at least one, all in the same space.
    """
    try:
        joined = RegionVectors(torch.cat([one.data for one in vectors]), vectors[0].space)
        captions = iter(pipeline.describe_vectors(joined, options))
    except BaseException:  # one caller's error; each alone, so that it stays that one's
        return [_describe_alone(pipeline, one, options) for one in vectors]
    return [[next(captions) for _ in one.data] for one in vectors]


def _describe_alone(
    pipeline: Pipeline, vectors: RegionVectors, options: DecodingOptions
) -> list[Caption] | BaseException:
    try:
        return pipeline.describe_vectors(vectors, options)
    except BaseException as error:  # also what is no Exception: the caller waits for it
        return error
