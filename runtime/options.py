"""Every option of the public calls: its type, its default and its check, once.

Each stage has one dataclass. The TypedDicts beside them are the same fields as keyword arguments.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any, Literal, TypeAlias, TypedDict, TypeVar, get_args, overload

from runtime.errors import OptionError

ProgressCallback: TypeAlias = Callable[[int, int], None]
"""Called with how many of how many captions are decoded."""

Clean: TypeAlias = Literal["orthogonal", "contrastive"]
CleanFrom: TypeAlias = Literal["cls", "attention"]
Reencode: TypeAlias = Literal["mean", "cls", "gaussian"]
Mode: TypeAlias = Literal["decode", "nearest"]
Score: TypeAlias = Literal["natural", "reference"]
PromptPadding: TypeAlias = Literal["none", "reference"]
Policy: TypeAlias = Literal["drop", "block"]
OnBad: TypeAlias = Literal["skip", "raise"]
"""What becomes of a bad item among good ones: it is passed over with its reason, or ends the work as an error."""
Channels: TypeAlias = Literal["rgb", "bgr"]
"""The order of the channels of images that are arrays or tensors; OpenCV's is "bgr". Other images know their own."""
Precision: TypeAlias = Literal["fp32", "bf16"]
PrecisionName: TypeAlias = Literal["auto", "fp32", "bf16"]
"""A precision as users ask for it: "auto" is the one that `patchcaption tune` chose, "fp32" where it chose none."""

_MAX_THREADS = 512
"""More than any processor has had use for: each takes memory and time to start."""
_MAX_BEAMS = 256
"""With as many, the beams of one region fill a batch."""
_MAX_ALPHA = 1000
_MAX_LENGTH_PENALTY = 10
"""In either direction; beyond it, scores leave the range of float32."""
_MIN_TEMPERATURE, _MAX_TEMPERATURE = 0.01, 100
_MAX_SEED = 2**63 - 1
_MAX_TIMEOUT_S = 3600

T = TypeVar("T")
U = TypeVar("U")
V = TypeVar("V")


@dataclass(frozen=True)
class PoolingOptions:
    """How the tokens of a region become one vector.

    Attributes:
        clean: remove what patches share with the whole image before they are summed: "orthogonal" subtracts ``alpha``
            of the common component, "contrastive" attenuates the coordinates that are common. The vectors are then in
            text space already: decode them as they are, without `Captioner.project`.
        alpha: how much of the common component "orthogonal" subtracts; the default is that of the published recordings.
        clean_from: the common component: the cls token, or the patches weighted by the attention of cls.
        clean_after_projection: whether patches are cleaned after they went into text space, or before.
        reencode: pass the patches of each region through the backbone's last block once more, without the rest of the
            image: their "mean", the "cls" token that passes with them, or the published "gaussian" for boxes. A
            backbone with an alpha plane sees all of the image again for each region, with the region marked.

    Raises:
        OptionError: an option has no such value.

    Example:
        >>> captioner.describe(features, [Box(90, 420, 321, 648)], clean="orthogonal", alpha=0.1)[0].text
        'a large solid green square'
    """

    clean: Clean | None = None
    alpha: float = 0.4
    clean_from: CleanFrom = "cls"
    clean_after_projection: bool = True
    reencode: Reencode | None = None

    def __post_init__(self) -> None:
        _check_choice("clean", self.clean, (None, *get_args(Clean)))
        _keep_number(self, "alpha", -_MAX_ALPHA, _MAX_ALPHA)
        _check_choice("clean_from", self.clean_from, get_args(CleanFrom))
        _keep_flag(self, "clean_after_projection")
        _check_choice("reencode", self.reencode, (None, *get_args(Reencode)))
        if self.clean and self.reencode:
            raise OptionError("clean and reencode exclude each other")


@dataclass(frozen=True)
class DecodingOptions:
    """How vectors in text space become captions. Vectors with equal options may be decoded in one batch.

    Attributes:
        mode: "decode" for the decoder's caption, "nearest" for the caption of the memory bank nearest to the region.
        score: "natural" for the probability of the caption and its end token; "reference" for the published score:
            DeCap's continues past the end through all steps, ViECap's and MeaCap's is the perplexity of the text by
            itself (lower is better, NaN for one token), ClipCap's its inverse.
        n_best: how many of the memory bank's nearest captions to return with each caption, whatever the mode.
        beams: beams per region; 1 takes the likeliest token at each step, as published. With more, captions are those
            of transformers' `generate(num_beams=)`: the one with the highest length-normalised log-probability wins,
            and its score is still its own probability.
        length_penalty: the power of the length by which beam search divides log-probabilities, from -10 to 10: 0 ranks
            by the log-probability itself, more favours longer captions.
        top_p: draw each token from the likeliest ones that have this probability together, instead of taking the
            likeliest: "nucleus sampling"; None does not draw, 0 draws the likeliest.
        temperature: what log-probabilities are divided by before a token is drawn.
        seed: other seeds draw other captions; the same seed draws the same for a region, whatever it is described with.
        prompt_padding: "reference" fills the prompts of all regions of a call up to the longest, as the published
            system does: captions then depend on what they are decoded together with. "none" decodes each by itself.

    Raises:
        OptionError: an option has no such value.

    Example:
        >>> captioner.describe(features, [Box(276, 174, 507, 399)], beams=3, n_best=1)[0].nearest[0].text
        'a large striped red triangle'
    """

    mode: Mode = "decode"
    score: Score = "natural"
    n_best: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    top_p: float | None = None
    temperature: float = 1.0
    seed: int = 0
    prompt_padding: PromptPadding = "none"

    def __post_init__(self) -> None:
        _check_choice("mode", self.mode, get_args(Mode))
        _check_choice("score", self.score, get_args(Score))
        _keep_number(self, "n_best", 0, whole=True)
        _keep_number(self, "beams", 1, _MAX_BEAMS, whole=True)
        _keep_number(self, "length_penalty", -_MAX_LENGTH_PENALTY, _MAX_LENGTH_PENALTY)
        _keep_number(self, "temperature", _MIN_TEMPERATURE, _MAX_TEMPERATURE)
        _keep_number(self, "seed", 0, _MAX_SEED, whole=True)
        _check_choice("prompt_padding", self.prompt_padding, get_args(PromptPadding))
        if self.top_p is not None:
            _keep_number(self, "top_p", 0, 1)
        if self.top_p is not None and self.beams > 1:
            raise OptionError(f"top_p={self.top_p} with beams={self.beams}: tokens are drawn for one beam only")

    @property
    def num_nearest(self) -> int:
        """How many captions of the memory bank are looked up for each region."""
        return max(self.n_best, 1 if self.mode == "nearest" else 0)


@dataclass(frozen=True)
class StreamOptions:
    """How a stream of frames is followed.

    Attributes:
        policy: what happens to frames that arrive faster than they are described: "drop" drops the oldest waiting ones,
            "block" makes the source wait; None is "drop" for what goes on by itself (cameras, and URLs without a known
            length) and "block" for what waits without loss (files, URLs of files, folders, iterables).
        every: describe each n-th frame only.
        reuse: reuse a caption while the cosine between the region's vector and the one that it was decoded from is at
            least this; None decodes every frame.
        workers: frames encoded in parallel; None is 2 for a small backbone on a CPU, whose cores it keeps busier, and
            otherwise 1. Where frames wait, `Captioner.encoder` opens the backbone for so many callers.
        on_bad: what becomes of a region that has no place on its frame, and of a frame that is no image: "skip" gives
            it no caption but the reason (`Caption.error`, `FrameCaptions.error`) and goes on, "raise" ends the stream.
        timeout_s: how long a camera or URL may take to open, and be silent, until it counts as lost.
        reconnect_s: for how long a camera or URL that cannot be opened, is lost or closed is tried again, after pauses
            that grow from 0.5 to 30 s; 0 raises `VideoError` at once, `math.inf` never gives up.
        start_s: where in a file to begin, in seconds from its start; frames keep their numbers and times.
        end_s: where to end, before the first frame at this time or later; None for the end of the file. Cameras, URLs
            without a known length, folders and iterables take neither.
        channels: the order of the channels of frames that are arrays or tensors: "bgr" for those of OpenCV. The frames
            that the stream yields are "rgb", as is what a detector gets.

    Raises:
        OptionError: an option has no such value.

    Example:
        >>> [result.frame.number for result in captioner.stream([scene] * 4, [WholeImage()], every=2)]
        [0, 2]
    """

    policy: Policy | None = None
    every: int = 1
    reuse: float | None = 0.995
    workers: int | None = None
    on_bad: OnBad = "skip"
    timeout_s: float = 10.0
    reconnect_s: float = 0.0
    start_s: float = 0.0
    end_s: float | None = None
    channels: Channels = "rgb"

    def __post_init__(self) -> None:
        _check_choice("policy", self.policy, (None, *get_args(Policy)))
        check_on_bad(self.on_bad)
        check_channels(self.channels)
        _keep_number(self, "every", 1, whole=True)
        if self.workers is not None:
            _keep_number(self, "workers", 1, _MAX_THREADS, whole=True)
        _keep_number(self, "timeout_s", 0.001, _MAX_TIMEOUT_S)
        _keep_number(self, "reconnect_s", 0)
        _keep_number(self, "start_s", 0)
        if self.end_s is not None:
            _keep_number(self, "end_s", 0)
            if self.end_s <= self.start_s:
                raise OptionError(f"end_s: expected more than start_s, {self.start_s:g}, got {self.end_s:g}")
        if self.reuse is not None:
            if not _is_number(self.reuse) or not 0 < _as_float(self.reuse) <= 1:
                raise OptionError(f"reuse: expected a cosine above 0 and up to 1, or None, got {_shown(self.reuse)}")
            _keep_number(self, "reuse", 0, 1)


class PoolingKeywords(TypedDict, total=False):
    """`PoolingOptions` as keyword arguments."""

    clean: Clean | None
    alpha: float
    clean_from: CleanFrom
    clean_after_projection: bool
    reencode: Reencode | None


class DecodeKeywords(TypedDict, total=False):
    """The part of `DecodingOptions` that `Captioner.decode` takes as keyword arguments."""

    score: Score
    beams: int
    length_penalty: float
    top_p: float | None
    temperature: float
    seed: int
    prompt_padding: PromptPadding


class DescribeKeywords(PoolingKeywords, DecodeKeywords, total=False):
    """`PoolingOptions` and `DecodingOptions` as keyword arguments."""

    mode: Mode
    n_best: int


class StreamKeywords(DescribeKeywords, total=False):
    """`StreamOptions`, `PoolingOptions` and `DecodingOptions` as keyword arguments."""

    policy: Policy | None
    every: int
    reuse: float | None
    workers: int | None
    on_bad: OnBad
    timeout_s: float
    reconnect_s: float
    start_s: float
    end_s: float | None
    channels: Channels


@overload
def split_options(keywords: Mapping[str, Any], one: type[T], /) -> tuple[T]: ...
@overload
def split_options(keywords: Mapping[str, Any], one: type[T], two: type[U], /) -> tuple[T, U]: ...
@overload
def split_options(keywords: Mapping[str, Any], one: type[T], two: type[U], three: type[V], /) -> tuple[T, U, V]: ...


def split_options(keywords: Mapping[str, Any], *kinds: type[Any]) -> tuple[Any, ...]:
    """Return one dataclass of each kind, made from the keywords that are fields of it.

    Raises:
        OptionError: an option has no such value, or none of the kinds has such an option.
    """
    names = {kind: {field.name for field in fields(kind)} for kind in kinds}
    known = set[str]().union(*names.values())
    unknown = set(keywords) - known
    if unknown:
        raise OptionError(f"options: expected some of {', '.join(sorted(known))}, got {', '.join(sorted(unknown))}")
    return tuple(kind(**{name: keywords[name] for name in names[kind] & set(keywords)}) for kind in kinds)


def check_threads(name: str, number: int) -> int:
    """Return the number; refuse so many threads, or callers with threads of their own, as cannot be meant.

    Raises:
        OptionError: names the option and the range.
    """
    return int(check_number(name, number, 1, _MAX_THREADS, whole=True))


def check_on_bad(on_bad: object) -> None:
    """Raise OptionError if it does not say what becomes of a bad item."""
    _check_choice("on_bad", on_bad, get_args(OnBad))


def check_channels(channels: object) -> None:
    """Raise OptionError if it is no order of the channels of arrays and tensors."""
    _check_choice("channels", channels, get_args(Channels))


def check_number(name: str, value: object, least: float, most: float = math.inf, *, whole: bool = False) -> float:
    """Return a number of any library as Python's own; refuse what is none from ``least`` to ``most``.

    NumPy's small integers overflow where they are multiplied, and torch takes no fractions.

    Raises:
        OptionError: names the option and the range.
    """
    if not _is_number(value, whole) or not least <= _as_float(value) <= most:  # NaN is not either
        kind, end = "a whole number" if whole else "a number", "on" if most == math.inf else f"to {most}"
        raise OptionError(f"{name}: expected {kind} from {least} {end}, got {_shown(value)}")
    return int(value) if isinstance(value, Integral) else _as_float(value)


def is_choice(value: object, choices: Iterable[str | None]) -> bool:
    """Return whether a value is one of the choices; an array is none, and cannot be asked."""
    return (value is None or isinstance(value, str)) and value in choices


def _keep_number(options: object, name: str, least: float, most: float = math.inf, *, whole: bool = False) -> None:
    """Check a number among options, and keep it as Python's own."""
    object.__setattr__(options, name, check_number(name, getattr(options, name), least, most, whole=whole))


def _keep_flag(options: object, name: str) -> None:
    """Check a truth value among options, and keep it as Python's own."""
    value = getattr(options, name)
    is_numpy_bool = str(getattr(value, "dtype", "")) == "bool" and getattr(value, "ndim", 1) == 0
    if not isinstance(value, bool) and not is_numpy_bool:
        raise OptionError(f"{name}: expected True or False, got {_shown(value)}")
    object.__setattr__(options, name, bool(value))


def _is_number(value: object, whole: bool = False) -> bool:
    return isinstance(value, Integral if whole else Real) and not isinstance(value, bool)


def _shown(value: object) -> str:
    """Return a value in one short line."""
    text = reprlib.repr(value)
    return text if "\n" not in text else type(value).__name__


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # of a whole number beyond 1e308, which nothing takes
        return math.nan


def _check_choice(name: str, value: object, choices: tuple[str | None, ...]) -> None:
    if not is_choice(value, choices):
        *first, last = (f'"{choice}"' for choice in choices if choice is not None)
        raise OptionError(f"{name}: expected {', '.join(first)} or {last}, got {_shown(value)}")
