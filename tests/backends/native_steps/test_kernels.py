"""Steps of GPT-2 in the native kernels, against their definition."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from runtime.backends.native_gpt2 import (
    CANDIDATES,
    Gpt2Layers,
    HeldGpt2,
    NativeGpt2,
    StepCache,
    StepInputs,
    gpt2_variants,
    native_gpt2,
)
from runtime.backends.native_linear import LinearLayer, Norm, native_linear
from runtime.errors import BackendError
from runtime.system.native_library import native_library
from tests.backends.native import needs_kernels, or_skip
from tests.backends.native_steps import definition
from tests.backends.native_steps.definition import BLOCK, Model

ROWS = [1, 15, 17, 33, 64, 65, 130]
"""Parts of a tile, one more than one and than two tiles, a group of rows, and more."""
DEPTH, HEADS, WIDTH, HIDDEN, POSITIONS, VECTOR_WIDTH = 2, 4, 128, 192, 6, 64
WORDS = {"a panel and a word": (33, 33), "words without text": (100, 61), "as many as candidates": (40, CANDIDATES)}
MAX_ERROR = 0.02
"""A value between two steps, or two bfloat16, may fall to either side; what follows then differs by so much."""
MEAN_ERROR = 1e-3
INVALID_ARGUMENT = 1  # of enum patchcaption_status


@pytest.fixture(params=["amx", "avx512bf16"])
def variant(request: pytest.FixtureRequest) -> str:
    if request.param not in gpt2_variants():
        pytest.skip(f"this processor does not support {request.param}")
    return str(request.param)


def steps(variant: str, threads: int = 2) -> NativeGpt2:
    return or_skip(native_gpt2(threads, variant))


@pytest.fixture
def gpt2(variant: str) -> NativeGpt2:
    return steps(variant)


def made_up(seed: int, inputs: int, outputs: int, has_norm: bool, rounds: bool) -> LinearLayer:
    """Return a layer whose outputs are about as large as its inputs."""
    generator = np.random.default_rng(seed)
    weights = generator.integers(-127, 128, (inputs, outputs), np.int8)
    input_scale, size = (0.03125 if rounds else 0.0), 1 / 127 / inputs**0.5
    shape = (outputs,) if rounds else (inputs // BLOCK, outputs)
    scales = generator.uniform(0.5, 1.5, shape).astype(np.float32) * np.float32(size * (input_scale or 1))
    weights_of_norm, biases_of_norm = generator.normal(size=(2, inputs)).astype(np.float32)
    norm = Norm(weights_of_norm, biases_of_norm, 1e-5) if has_norm else None
    return LinearLayer(weights, scales, generator.normal(size=outputs).astype(np.float32) * 0.1, input_scale, norm)


def made_up_model(rounds: bool, words: int = 100, word_count: int = 61) -> Model:
    blocks = [
        [
            made_up(10 * number, WIDTH, 3 * WIDTH, True, rounds),
            made_up(10 * number + 1, WIDTH, WIDTH, False, False),
            made_up(10 * number + 2, WIDTH, HIDDEN, True, rounds),
            made_up(10 * number + 3, HIDDEN, WIDTH, False, False),
        ]
        for number in range(DEPTH)
    ]
    vocabulary = made_up(99, WIDTH, words, True, rounds)
    exact = torch.tensor(vocabulary.weights.T * (vocabulary.scales.mean() / (vocabulary.input_scale or 1)))
    embeddings = exact.float() + torch.randn(words, WIDTH, generator=torch.Generator().manual_seed(1)) * 0.01
    projection = made_up(98, VECTOR_WIDTH, WIDTH, False, False)
    return Model(blocks, HEADS, vocabulary, embeddings, word_count, projection)


@dataclass(frozen=True)
class Case:
    """The inputs of a step."""

    states: Tensor
    vectors: Tensor | None
    past: list[Tensor]
    is_attended: Tensor

    @classmethod
    def of(cls, rows: int, has_vectors: bool = False, has_mask_by_row: bool = False) -> Case:
        generator = torch.Generator().manual_seed(rows)
        past = torch.randn(2 * DEPTH, rows, HEADS, POSITIONS, WIDTH // HEADS, generator=generator)
        mask = torch.arange(POSITIONS) < 4
        if has_mask_by_row:  # of a larger array, as those of prompts are
            mask = (torch.rand(rows, POSITIONS + 1, generator=generator) < 0.6)[:, :POSITIONS]
        hidden = ~mask.expand(rows, -1)
        past.masked_fill_(hidden[None, :, None, :, None], torch.nan)
        vectors = torch.randn(rows, VECTOR_WIDTH, generator=generator) if has_vectors else None
        return cls(torch.randn(rows, WIDTH, generator=generator), vectors, list(past.unbind()), mask)

    def expected(self, model: Model) -> definition.Expected:
        return definition.step(model, self.states, self.vectors, self.past, self.is_attended)


def held(gpt2: NativeGpt2, model: Model) -> HeldGpt2:
    blocks = [Gpt2Layers(*(gpt2.hold(layer) for layer in block)) for block in model.blocks]
    projection = None if model.projection is None else gpt2.hold(model.projection)
    vocabulary, embeddings = gpt2.hold(model.vocabulary), model.embeddings.numpy()
    return HeldGpt2(blocks, model.heads, vocabulary, embeddings, model.word_count, projection)


@dataclass(frozen=True)
class Found:
    """What the kernels return."""

    words: Tensor
    log_probs: Tensor
    all_log_probs: Tensor
    present: list[Tensor]


def run(gpt2: NativeGpt2, model: HeldGpt2, case: Case) -> Found:
    """Take a step twice, for the likeliest words and for all log-probabilities."""
    rows, mask = len(case.states), case.is_attended.numpy()
    vectors = None if case.vectors is None else case.vectors.data_ptr()
    inputs = StepInputs(rows, case.states.data_ptr(), vectors)
    words, log_probs = torch.full((rows,), -1), torch.full((rows,), torch.nan)
    all_log_probs = torch.full((rows, model.described.word_count), torch.nan)
    presents = [[torch.full((rows, HEADS, WIDTH // HEADS), torch.nan) for _ in range(2 * DEPTH)] for _ in range(2)]
    caches = [
        StepCache(
            mask[None] if mask.ndim == 1 else mask, *([one.data_ptr() for one in part] for part in (case.past, new))
        )
        for new in presents
    ]
    gpt2.choose(model, inputs, caches[0], words.data_ptr(), log_probs.data_ptr())
    gpt2.log_probs(model, inputs, caches[1], all_log_probs.data_ptr())
    for one, other in zip(*presents, strict=True):
        assert torch.equal(one, other)
    return Found(words, log_probs, all_log_probs, presents[0])


def assert_as_expected(found: Found, model: Model, expected: definition.Expected) -> None:
    exact, log_probs = expected.chosen(model.embeddings, model.word_count)
    assert_close(found.all_log_probs, expected.all_log_probs(model.word_count))
    assert_close(found.log_probs, log_probs)
    logits = model.embeddings.double() @ expected.normed.T
    lost = logits.T.gather(1, exact[:, None]) - logits.T.gather(1, found.words[:, None])
    assert lost.max() < MAX_ERROR, "another word only where both are as likely"
    assert (found.words == exact).float().mean() > 0.95
    for one, other in zip(found.present, expected.present, strict=True):
        assert_close(one, other)


def assert_close(found: Tensor, expected: Tensor) -> None:
    difference = (found.double() - expected.double()).abs()
    assert difference.max() < MAX_ERROR
    assert difference.mean() < MEAN_ERROR


@needs_kernels
@pytest.mark.parametrize("rounds", [True, False])
@pytest.mark.parametrize("rows", ROWS)
def test_a_step_is_its_definition(gpt2: NativeGpt2, rows: int, rounds: bool) -> None:
    model, case = made_up_model(rounds), Case.of(rows)
    assert_as_expected(run(gpt2, held(gpt2, model), case), model, case.expected(model))


@needs_kernels
@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("rounds", [True, False])
def test_words_without_text_are_never_chosen_but_count(gpt2: NativeGpt2, name: str, rounds: bool) -> None:
    model, case = made_up_model(rounds, *WORDS[name]), Case.of(40)
    found, expected = run(gpt2, held(gpt2, model), case), case.expected(model)
    assert_as_expected(found, model, expected)
    assert found.words.max() < model.word_count
    every = expected.logits.softmax(dim=1)[:, : model.word_count].sum(dim=1)
    assert_close(found.all_log_probs.exp().sum(dim=1), every)


@needs_kernels
@pytest.mark.parametrize("rows", [1, 20])
def test_the_projection_of_vectors_is_added(gpt2: NativeGpt2, rows: int) -> None:
    model, case = made_up_model(True), Case.of(rows, has_vectors=True)
    assert_as_expected(run(gpt2, held(gpt2, model), case), model, case.expected(model))
    without = replace(case, vectors=None).expected(model)
    assert (without.logits - case.expected(model).logits).abs().mean() > 0.1


@needs_kernels
@pytest.mark.parametrize("rows", [1, 37])
def test_each_row_may_attend_to_other_positions(gpt2: NativeGpt2, rows: int) -> None:
    model, case = made_up_model(False), Case.of(rows, has_mask_by_row=True)
    assert_as_expected(run(gpt2, held(gpt2, model), case), model, case.expected(model))


@needs_kernels
def test_the_first_position_attends_to_itself_alone(gpt2: NativeGpt2) -> None:
    model, case = made_up_model(True), Case.of(5)
    nothing = torch.full_like(case.past[0], torch.nan)
    first = replace(case, past=[nothing] * 2 * DEPTH, is_attended=torch.zeros(POSITIONS, dtype=torch.bool))
    assert_as_expected(run(gpt2, held(gpt2, model), first), model, first.expected(model))


@needs_kernels
def test_the_chosen_word_is_the_likeliest_by_exact_logits(gpt2: NativeGpt2) -> None:
    model, case = made_up_model(True), Case.of(64)
    expected = case.expected(model)
    ranked = expected.logits[:, : model.word_count].topk(CANDIDATES).indices
    third = ranked[:, 2].unique()
    embeddings = model.embeddings.clone()
    embeddings[third] += expected.normed[[int((ranked[:, 2] == word).nonzero()[0]) for word in third]].float()
    changed = replace(model, embeddings=embeddings)
    found = run(gpt2, held(gpt2, changed), case)
    assert_as_expected(found, changed, expected)
    assert (found.words != ranked[:, 0]).float().mean() > 0.3, "the rounded vocabulary would choose others"


@needs_kernels
@pytest.mark.parametrize("rows", [3, 70])
def test_any_number_of_threads_gives_the_same(gpt2: NativeGpt2, variant: str, rows: int) -> None:
    model, case = held(gpt2, made_up_model(True)), Case.of(rows)
    found = run(gpt2, model, case)
    for threads in (1, 3, 16, 0):
        other = run(steps(variant, threads), model, case)
        assert torch.equal(other.words, found.words)
        assert all(torch.equal(*pair) for pair in zip(other.present, found.present, strict=True))
        torch.testing.assert_close(other.log_probs, found.log_probs, rtol=0, atol=1e-5)
        torch.testing.assert_close(other.all_log_probs, found.all_log_probs, rtol=0, atol=1e-5)


@needs_kernels
def test_a_row_does_not_depend_on_the_others(gpt2: NativeGpt2) -> None:
    model, case = held(gpt2, made_up_model(True)), Case.of(70)
    together = run(gpt2, model, case)
    for row in (0, 15, 16, 69):
        one = [entry[row : row + 1].contiguous() for entry in case.past]
        alone = run(gpt2, model, replace(case, states=case.states[row : row + 1], past=one))
        assert alone.words[0] == together.words[row]
        torch.testing.assert_close(alone.all_log_probs[0], together.all_log_probs[row], rtol=0, atol=1e-5)


@needs_kernels
def test_callers_may_step_at_the_same_time(gpt2: NativeGpt2) -> None:
    model = held(gpt2, made_up_model(True))
    cases = [Case.of(rows) for rows in (1, 16, 40, 64)]
    alone = [run(gpt2, model, case) for case in cases]
    with ThreadPoolExecutor(len(cases)) as pool:
        for _ in range(20):
            for found, expected in zip(pool.map(lambda case: run(gpt2, model, case), cases), alone, strict=True):
                assert torch.equal(found.words, expected.words)
                torch.testing.assert_close(found.all_log_probs, expected.all_log_probs, rtol=0, atol=1e-5)


def without(model: Model, place: int, layer: LinearLayer) -> Model:
    """Return the model with another layer in its second block."""
    second = [layer if number == place else one for number, one in enumerate(model.blocks[1])]
    return replace(model, blocks=[model.blocks[0], second])


MISFITS: dict[str, Callable[[Model], Model]] = {
    "other inputs": lambda model: without(model, 0, made_up(0, 64, 3 * WIDTH, True, True)),
    "other outputs": lambda model: without(model, 0, made_up(0, WIDTH, 2 * WIDTH, True, True)),
    "no norm": lambda model: without(model, 2, made_up(0, WIDTH, HIDDEN, False, True)),
    "a norm too many": lambda model: without(model, 1, made_up(0, WIDTH, WIDTH, True, False)),
    "rounded inputs": lambda model: without(model, 3, made_up(0, HIDDEN, WIDTH, False, True)),
    "a GELU": lambda model: without(model, 2, replace(made_up(0, WIDTH, HIDDEN, True, True), has_gelu=True)),
    "a hidden width of no whole tiles": lambda model: without(model, 2, made_up(0, WIDTH, 100, True, True)),
    "heads of another width": lambda model: replace(model, heads=16),
    "no heads": lambda model: replace(model, heads=0),
    "too few words": lambda model: replace(model, word_count=CANDIDATES - 1),
    "too many words": lambda model: replace(model, word_count=101),
    "a vocabulary without a norm": lambda model: replace(model, vocabulary=made_up(0, WIDTH, 100, False, True)),
    "no blocks": lambda model: replace(model, blocks=[]),
    "a wider projection": lambda model: replace(model, projection=made_up(0, 64, 2 * WIDTH, False, False)),
}


@needs_kernels
@pytest.mark.parametrize("name", MISFITS)
def test_layers_that_do_not_fit_each_other_are_refused(gpt2: NativeGpt2, name: str) -> None:
    with pytest.raises(BackendError, match="native kernels: invalid argument"):
        run(gpt2, held(gpt2, MISFITS[name](made_up_model(True))), Case.of(2))


@needs_kernels
def test_vectors_need_a_projection(gpt2: NativeGpt2) -> None:
    with pytest.raises(BackendError, match="invalid argument"):
        run(gpt2, held(gpt2, replace(made_up_model(True), projection=None)), Case.of(2, has_vectors=True))


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 8), (3, 8), (8,), (2, 9)])
def test_scales_of_another_shape_are_refused(gpt2: NativeGpt2, shape: tuple[int, ...]) -> None:
    layer = made_up(0, 2 * BLOCK, 8, False, rounds=False)
    with pytest.raises(BackendError, match="invalid argument: scales"):
        gpt2.hold(replace(layer, scales=np.ones(shape, np.float32)))


@needs_kernels
def test_layers_whose_inputs_are_not_rounded_are_of_steps_alone() -> None:
    linear = or_skip(native_linear(threads=2))
    layer, memory = linear.hold(made_up(0, BLOCK, 8, False, rounds=False)), torch.zeros(1, BLOCK)
    with pytest.raises(BackendError, match="native kernels: invalid argument"):
        linear.run([layer], memory.data_ptr(), 0, 1, "f32", memory.data_ptr())


@needs_kernels
def test_the_c_interface_refuses_what_makes_no_sense(gpt2: NativeGpt2) -> None:
    library = native_library()
    assert library is not None
    model, case = held(gpt2, made_up_model(True)), Case.of(2)
    run(gpt2, model, case)  # sets the arguments' types
    memory = torch.zeros(2, 4096)
    place, size, address = memory.data_ptr(), ctypes.c_int64, ctypes.c_void_p
    pointers = (address * (2 * DEPTH))(*[place] * 2 * DEPTH)
    missing = (address * (2 * DEPTH))(*[place] * (2 * DEPTH - 1), None)

    class Cache(ctypes.Structure):
        _fields_ = (("p", size), ("mask", address), ("stride", size), ("past", address), ("present", address))

    class Result(ctypes.Structure):
        _fields_ = (("words", address), ("log_probs", address), ("all", address))

    given, no_pointers = ctypes.addressof(pointers), ctypes.addressof(missing)
    mask = torch.zeros(2 * POSITIONS, dtype=torch.bool).data_ptr()
    good_cache, good_result = (POSITIONS, mask, 0, given, given), (place, place, None)

    def status(
        rows: int = 2,
        inputs: int | None = place,
        cache: tuple[object, ...] = good_cache,
        result: tuple[object, ...] = good_result,
    ) -> int:
        described, returned = Cache(*cache), Result(*result)
        arguments = (ctypes.byref(model.described), inputs, None, rows)
        return int(library.patchcaption_gpt2_step(*arguments, ctypes.byref(described), 1, ctypes.byref(returned)))

    assert status() == 0
    assert status(cache=(POSITIONS, mask, POSITIONS, given, given)) == 0
    assert status(rows=0) == status(rows=2**21) == status(inputs=None) == INVALID_ARGUMENT
    for cache in (
        (0, mask, 0, given, given),
        (2**21, mask, 0, given, given),
        (POSITIONS, None, 0, given, given),
        (POSITIONS, mask, POSITIONS - 1, given, given),
        (POSITIONS, mask, 0, None, given),
        (POSITIONS, mask, 0, given, no_pointers),
        (POSITIONS, mask, 0, no_pointers, given),
    ):
        assert status(cache=cache) == INVALID_ARGUMENT
    assert status(result=(None, place, None)) == status(result=(place, None, None)) == INVALID_ARGUMENT
    step = library.patchcaption_gpt2_step
    assert step(None, place, None, 2, ctypes.byref(Cache(*good_cache)), 1, None) == INVALID_ARGUMENT


@needs_kernels
def test_layers_of_another_variant_are_refused() -> None:
    if len(variants := gpt2_variants()) < 2:
        pytest.skip("this processor supports no two variants")
    one, other = map(steps, variants[:2])
    model, case = made_up_model(True), Case.of(2)
    mixed = held(one, model)
    mixed.described.vocabulary = other.hold(model.vocabulary).handle
    with pytest.raises(BackendError, match="invalid argument"):
        run(one, mixed, case)
    layer, memory = other.hold(made_up(0, BLOCK, 8, True, rounds=True)), torch.zeros(1, BLOCK)
    with pytest.raises(BackendError, match="no such variant"):
        or_skip(native_linear(1)).run([layer], memory.data_ptr(), 0, 1, "f32", memory.data_ptr())


def test_variants_that_there_are_not_are_refused() -> None:
    with pytest.raises(BackendError, match="no such variant"):
        steps("mmx").hold(made_up(0, BLOCK, 8, False, rounds=False))


def test_there_are_none_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.system.native_library.native_library", lambda: None)
    assert native_gpt2(1) is None
    assert gpt2_variants() == []
