"""The options of the public calls: one dataclass a stage, the same fields as keyword arguments, and their checks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from decimal import Decimal
from fractions import Fraction
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

from runtime import (
    Batching,
    Captioner,
    DecodingOptions,
    OptionError,
    PatchcaptionError,
    PoolingOptions,
    StreamOptions,
    WholeImage,
    draw_captions,
)
from runtime.options import DecodeKeywords, DescribeKeywords, PoolingKeywords, StreamKeywords, split_options

_LOAD: Any = Captioner.load
_DRAW: Any = draw_captions

DEFAULTS: dict[type[Any], dict[str, Any]] = {
    PoolingOptions: {
        "clean": None,
        "alpha": 0.4,
        "clean_from": "cls",
        "clean_after_projection": True,
        "reencode": None,
    },
    DecodingOptions: {"mode": "decode", "score": "natural", "n_best": 0, "beams": 1, "length_penalty": 1.0}
    | {"top_p": None, "temperature": 1.0, "seed": 0, "prompt_padding": "none"},
    StreamOptions: {
        "policy": None,
        "every": 1,
        "reuse": 0.995,
        "workers": None,
        "on_bad": "skip",
        "timeout_s": 10.0,
        "reconnect_s": 0.0,
        "start_s": 0.0,
        "end_s": None,
        "channels": "rgb",
    },
}


@pytest.mark.parametrize(
    ("keywords", "options"),
    [
        (PoolingKeywords, (PoolingOptions,)),
        (DescribeKeywords, (PoolingOptions, DecodingOptions)),
        (StreamKeywords, (PoolingOptions, DecodingOptions, StreamOptions)),
    ],
)
def test_keyword_arguments_are_the_fields_of_the_options(keywords: type, options: tuple[type, ...]) -> None:
    expected = {name: hint for one in options for name, hint in get_type_hints(one).items()}
    assert get_type_hints(keywords) == expected
    assert sum(len(fields(one)) for one in options) == len(expected), "an option has the name of another"
    assert keywords.__total__ is False  # type: ignore[attr-defined]


def test_decode_takes_some_of_the_decoding_options() -> None:
    names = ("score", "beams", "length_penalty", "top_p", "temperature", "seed", "prompt_padding")
    hints = get_type_hints(DecodeKeywords)
    assert hints == {name: get_type_hints(DecodingOptions)[name] for name in names}


@pytest.mark.parametrize(
    ("call", "keywords"),
    [
        (Captioner.caption, "DescribeKeywords"),
        (Captioner.describe, "DescribeKeywords"),
        (Captioner.acaption, "DescribeKeywords"),
        (Captioner.vectors, "PoolingKeywords"),
        (Captioner.decode, "DecodeKeywords"),
        (Captioner.stream, "StreamKeywords"),
        (Batching.caption, "DescribeKeywords"),
        (Batching.describe, "DescribeKeywords"),
        (Batching.acaption, "DescribeKeywords"),
        (Batching.adescribe, "DescribeKeywords"),
    ],
)
def test_public_calls_take_the_options_of_their_stages(call: Callable[..., Any], keywords: str) -> None:
    assert inspect.signature(call).parameters["options"].annotation == f"Unpack[{keywords}]"


@pytest.mark.parametrize("options", DEFAULTS)
def test_defaults_are_those_of_the_documents(options: type) -> None:
    assert {field.name: field.default for field in fields(options)} == DEFAULTS[options]


@pytest.mark.parametrize("options", DEFAULTS)
def test_options_do_not_change_and_equal_ones_are_equal(options: type[Any]) -> None:
    made = options()
    assert made == options(**DEFAULTS[options])
    assert hash(made) == hash(options(**DEFAULTS[options]))
    with pytest.raises(FrozenInstanceError):
        setattr(made, fields(options)[0].name, None)


def test_keywords_go_to_the_stage_that_has_them() -> None:
    keywords = {"every": 2, "beams": 3, "clean": "orthogonal", "n_best": 1}
    stream, pooling, decoding = split_options(keywords, StreamOptions, PoolingOptions, DecodingOptions)
    assert stream == StreamOptions(every=2)
    assert pooling == PoolingOptions(clean="orthogonal")
    assert decoding == DecodingOptions(beams=3, n_best=1)
    assert split_options({}, PoolingOptions) == (PoolingOptions(),)
    assert keywords == {"every": 2, "beams": 3, "clean": "orthogonal", "n_best": 1}


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"beems": 3}, "options: expected some of alpha, beams, clean, .*, got beems"),
        ({"every": 2, "policy": "drop", "beams": 3}, "options: expected some of .*, got every, policy"),
        ({"progress": print}, "options: expected some of .*, got progress"),
    ],
)
def test_an_option_that_no_stage_has_is_refused_with_those_there_are(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(PatchcaptionError, match=message):
        split_options(keywords, PoolingOptions, DecodingOptions)


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        (PoolingOptions, {"clean": "soap"}, 'clean: expected "orthogonal" or "contrastive", got .soap.'),
        (PoolingOptions, {"clean_from": "mean"}, 'clean_from: expected "cls" or "attention", got .mean.'),
        (PoolingOptions, {"reencode": "max"}, 'reencode: expected "mean", "cls" or "gaussian", got .max.'),
        (PoolingOptions, {"clean": "orthogonal", "reencode": "mean"}, "clean and reencode exclude each other"),
        (DecodingOptions, {"mode": "best"}, 'mode: expected "decode" or "nearest", got .best.'),
        (DecodingOptions, {"score": None}, 'score: expected "natural" or "reference", got None'),
        (DecodingOptions, {"n_best": -1}, "n_best: expected a whole number from 0 on, got -1"),
        (DecodingOptions, {"beams": 2.5}, "beams: expected a whole number from 1 to 256, got 2.5"),
        (DecodingOptions, {"length_penalty": math.nan}, "length_penalty: expected a number from -10 to 10, got nan"),
        (DecodingOptions, {"top_p": 1.1}, "top_p: expected a number from 0 to 1, got 1.1"),
        (DecodingOptions, {"top_p": 0.9, "beams": 2}, "top_p=0.9 with beams=2: tokens are drawn for one beam only"),
        (DecodingOptions, {"temperature": 0}, "temperature: expected a number from 0.01 to 100, got 0"),
        (DecodingOptions, {"seed": -1}, "seed: expected a whole number from 0 to "),
        (DecodingOptions, {"prompt_padding": "left"}, 'prompt_padding: expected "none" or "reference", got .left.'),
        (StreamOptions, {"policy": "wait"}, 'policy: expected "drop" or "block", got .wait.'),
        (StreamOptions, {"every": 0}, "every: expected a whole number from 1 on, got 0"),
        (StreamOptions, {"workers": -1}, "workers: expected a whole number from 1 to 512, got -1"),
        (StreamOptions, {"start_s": -1}, "start_s: expected a number from 0 on, got -1"),
        (StreamOptions, {"start_s": math.nan}, "start_s: expected a number from 0 on, got nan"),
        (StreamOptions, {"end_s": "5"}, "end_s: expected a number from 0 on, got '5'"),
        (StreamOptions, {"end_s": 0}, "end_s: expected more than start_s, 0, got 0"),
        (StreamOptions, {"start_s": 2, "end_s": 2}, "end_s: expected more than start_s, 2, got 2"),
        (StreamOptions, {"reuse": 0}, "reuse: expected a cosine above 0 and up to 1, or None, got 0"),
        (StreamOptions, {"reuse": "0.9"}, "reuse: expected a cosine above 0 and up to 1, or None, got '0.9'"),
        (PoolingOptions, {"alpha": math.nan}, "alpha: expected a number from -1000 to 1000, got nan"),
        (PoolingOptions, {"alpha": 10**400}, "alpha: expected a number from -1000 to 1000, got 1000"),
        (PoolingOptions, {"alpha": torch.ones(2)}, "alpha: expected a number from -1000 to 1000, got tensor"),
        (PoolingOptions, {"clean_after_projection": "no"}, "clean_after_projection: expected True or False, got 'no'"),
    ],
)
def test_a_value_that_an_option_does_not_have_is_refused(options: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(PatchcaptionError, match=message):
        options(**values)


@pytest.mark.parametrize(
    "value", [np.array([1, 2]), np.zeros((30, 30)), torch.ones(2), [], {}, "x" * 10_000, 2j, Decimal("NaN")]
)
@pytest.mark.parametrize("options", DEFAULTS)
def test_what_is_no_value_of_any_option_is_refused_in_one_short_line(options: type, value: Any) -> None:
    for name in DEFAULTS[options]:
        with pytest.raises(OptionError, match=f"{name}: ") as raised:
            options(**{name: value})
        assert "\n" not in str(raised.value)
        assert len(str(raised.value)) < 200


def test_numbers_of_any_library_are_kept_as_pythons_own() -> None:
    """NumPy's small integers overflow where they are multiplied, and torch takes no fractions."""
    decoding = DecodingOptions(beams=np.int8(100), top_p=None, length_penalty=Fraction(1, 2), seed=np.uint8(200))  # type: ignore[arg-type]
    assert [type(one) for one in (decoding.beams, decoding.length_penalty, decoding.seed)] == [int, float, int]
    assert decoding.beams * 4 == 400
    pooling = PoolingOptions(alpha=np.float16(0.5), clean_after_projection=np.bool_(False))  # type: ignore[arg-type]
    assert (type(pooling.alpha), pooling.clean_after_projection) == (float, False)
    stream = StreamOptions(reuse=np.float32(0.5), every=np.int16(2), workers=np.int8(3))
    assert [type(one) for one in (stream.reuse, stream.every, stream.workers)] == [float, int, int]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda demo, image: demo.describe(image, [WholeImage()]),
            "features: expected what Captioner.encode returns, got",
        ),
        (lambda demo, __: demo.vectors("scene.jpg", [WholeImage()]), "features: .*got str; Captioner.caption takes"),
        (lambda demo, __: demo.decode(np.zeros((1, 192)), progress=3), "progress: expected a function .*, got int"),
        (lambda demo, image: demo.caption(image, [WholeImage()], on_bad=np.ones(2)), "on_bad: expected"),
        (lambda demo, image: demo.caption([image], [[WholeImage()]], on_bad=[]), "on_bad: expected"),
        (lambda demo, image: demo.encode(image, channels=np.ones(2)), "channels: expected"),
        (lambda _, __: _LOAD(7), "bundle: expected a folder or a name of the hub, got int"),
        (lambda _, __: _LOAD(b"engines/demo"), "bundle: .*, got bytes"),
        (lambda _, __: _LOAD(None), "bundle: .*, got NoneType"),
        (lambda demo, __: _LOAD(demo.pipeline.bundle.folder, backend=np.ones(2)), "backend array"),
        (lambda demo, __: _LOAD(demo.pipeline.bundle.folder, precision=[]), "precision: .* got list"),
        (lambda demo, __: _LOAD(demo.pipeline.bundle.folder, fit=np.ones(2)), "fit array"),
        (lambda _, image: _DRAW(image, None), "captions: expected a list of captions .*, got NoneType"),
        (lambda _, image: _DRAW(image, ["a dog"]), "captions: .*, got a list with str in it"),
        (lambda _, image: _DRAW(image, [], font=3.5), "font: expected a font file or None, got float"),
    ],
)
def test_other_arguments_of_a_wrong_kind_are_refused_with_words(
    demo: Captioner, call: Callable[[Captioner, Any], Any], message: str
) -> None:
    with pytest.raises(PatchcaptionError, match=message):
        call(demo, np.zeros((24, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (DecodingOptions(), 0),
        (DecodingOptions(n_best=3), 3),
        (DecodingOptions(mode="nearest"), 1),
        (DecodingOptions(mode="nearest", n_best=5), 5),
    ],
)
def test_as_many_captions_of_the_bank_are_looked_up_as_are_needed(options: DecodingOptions, count: int) -> None:
    assert options.num_nearest == count
