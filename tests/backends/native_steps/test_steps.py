"""Decoders' steps that are read from their graphs, and computed by the native kernels."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from export.graphs.exporter import export_graph
from export.graphs.specs import decap_specs, decoder_specs
from export.models.base import BundleNumbers, DecoderModel
from export.models.decap_decoder import DecapConfig, DecapStep
from runtime.backends.native_gpt2 import CANDIDATES, NativeGpt2, native_gpt2
from runtime.backends.openvino import OpenVinoBackend
from runtime.bundle import EngineFiles, HeldFile, Manifest
from runtime.bundle.admission import EngineContract, admit, engine_contract
from runtime.errors import BackendError, BundleError
from runtime.system.machine import multiplies_bfloat16
from tests.backends.native import or_skip
from tests.backends.native_steps.definition import TorchGpt2
from tests.export.graph_mutations import MUTATIONS
from tests.exported_forms import BACKBONES, prompted_model, randomized
from tests.robustness.graph_mutants import (
    NEEDS_WEIGHTS,
    change_admitted_operator,
    change_number,
    repeat_node,
    swap_alike,
)

pytest.importorskip("openvino", reason="needs pip install 'patchcaption[openvino]'")

from runtime.backends import native_steps  # imports OpenVINO
from runtime.backends.native_steps import NativeStepEngine, native_step
from runtime.backends.native_steps.graph import read_step

needs_bfloat16 = pytest.mark.skipif(not multiplies_bfloat16(), reason="this processor does not multiply bfloat16")
DECAP = DecapConfig(128, embed_dim=64, num_layers=2, vocab_size=101, text_vocab_size=90, max_new_tokens=8)
MAX_ERROR = 0.05
"""The root mean square of differences, in parts of the values' if that is over 1: the kernels round to bfloat16."""
MUTANTS = 40
"""Of each kind of change."""
CHANGES = {
    **{name: change for name, change in MUTATIONS.items() if name not in NEEDS_WEIGHTS},
    **{one.__name__: one for one in (change_number, change_admitted_operator, repeat_node, swap_alike)},
}

Export = Callable[[str], Path]


def decap(config: DecapConfig = DECAP) -> DecapStep:
    decoder = randomized(DecapStep(config))
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
                parameter.add_(1)
    return decoder


def decap_contract() -> EngineContract:
    """Return the contract of `DECAP`'s steps."""
    numbers = BundleNumbers("test", (89,), max_images=8, batch_sizes=(1, 64), precision="int8_weights")
    backbone = BACKBONES["registers"]().manifest_entry("small", numbers)
    manifest = Manifest.model_construct(
        backbone=backbone.model_copy(update={"output_dim": DECAP.prefix_width}), decoder=decap().manifest_entry(numbers)
    )
    return engine_contract(manifest, "decoder")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Return the folder with the graphs of a decoder in 8 bits."""

    @cache
    def export_form(form: str) -> Path:
        folder = tmp_path_factory.mktemp("graphs")
        decoder: DecoderModel = prompted_model() if form == "prompted" else decap()
        decoder.prepare_for("cpu", rounds_weights=True)
        vectors = F.normalize(torch.randn(4, 128, generator=torch.Generator().manual_seed(2)))
        for name, spec in decoder_specs(decoder, vectors if form == "decap" else None).items():
            if name in ("decoder", "beam_decoder", "prefill"):
                export_graph(spec, folder, "int8_weights")
        return folder

    return export_form


@pytest.fixture(params=["kernels", "torch"])
def kernels(request: pytest.FixtureRequest) -> NativeGpt2:
    if request.param == "torch":
        return cast(NativeGpt2, TorchGpt2())
    return or_skip(native_gpt2(2))


@pytest.fixture
def open_step(kernels: NativeGpt2, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Any]:
    """Return the function that opens a graph's engine, None where the kernels cannot compute it."""
    monkeypatch.setattr(native_steps, "native_gpt2", lambda _: kernels)
    return lambda path: native_step(read(path), files_of(path), threads=2)


def read(path: Path) -> Any:
    return OpenVinoBackend()._core.read_model(str(path))


def files_of(path: Path) -> EngineFiles:
    return EngineFiles(path, precision="int8_weights")


def step_inputs(path: Path, rows: int, filled: int = 3) -> dict[str, Tensor]:
    """Return inputs of a step after so many filled entries of the cache."""
    generator, inputs = torch.Generator().manual_seed(rows), {}
    for value in onnx.load(path, load_external_data=False).graph.input:
        sizes = [size.dim_value or rows for size in value.type.tensor_type.shape.dim]
        inputs[value.name] = torch.randn(sizes, generator=generator)
    ids = torch.randint(0, 80, (rows,), generator=generator)
    if "position" in inputs:
        return {**inputs, "input_ids": ids, "position": torch.tensor([filled])}
    mask = torch.rand(inputs["attention_mask"].shape, generator=generator) < 0.5
    mask[:, -1] = True
    positions = torch.randint(0, 9, (rows,), generator=generator)
    return {**inputs, "input_ids": ids, "attention_mask": mask, "position_ids": positions}


def by_onnxruntime(path: Path, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what a graph says, without optimizations, of which some round activations too."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = session.run(names, {name: one.numpy() for name, one in inputs.items()})
    return {name: torch.from_numpy(one) for name, one in zip(names, outputs, strict=True)}


def assert_alike(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert {name: (one.shape, one.dtype) for name, one in ours.items()} == {
        name: (one.shape, one.dtype) for name, one in theirs.items()
    }
    for name, one in ours.items():
        expected = theirs[name]
        if name == "next_token_ids":
            assert (one == expected).float().mean() > 0.9
        elif expected.isfinite().all():  # an exponential may overflow in a changed graph
            assert rms(one - expected) < MAX_ERROR * max(1, rms(expected)), name


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["decoder", "beam_decoder"])
@pytest.mark.parametrize("form", ["decap", "decap without samples", "prompted"])
def test_a_step_is_that_of_its_graph(
    form: str, graph: str, export: Export, open_step: Callable[[Path], NativeStepEngine]
) -> None:
    path = export(form) / f"{graph}.onnx"
    engine = open_step(path)
    for rows in (1, 5, 40):
        for filled in (0, 1, 5):
            inputs = step_inputs(path, rows, filled)
            assert_alike(engine.run(inputs), by_onnxruntime(path, inputs))


@pytest.mark.parametrize("form", ["decap", "prompted"])
def test_what_is_read_is_what_was_exported(form: str, export: Export) -> None:
    step = read_step(read(export(form) / "decoder.onnx"))
    assert step is not None
    of_decap = form == "decap"
    assert (len(step.blocks), step.heads) == (2, 4 if of_decap else 2)
    assert (step.next_token.chooses, step.next_token.word_count) == (True, 90 if of_decap else 101)
    assert (step.projection is not None) == of_decap
    assert (step.vocabulary.input_scale > 0) == of_decap, "without samples its inputs are not rounded"
    beam = read_step(read(export(form) / "beam_decoder.onnx"))
    assert beam is not None
    assert not beam.next_token.chooses


@pytest.mark.slow
def test_graphs_of_other_kinds_are_left_to_openvino(export: Export, tmp_path: Path, demo_bundle: Path) -> None:
    assert read_step(read(export("prompted") / "prefill.onnx")) is None
    for name in ("backbone", "decoder", "beam_decoder"):
        assert read_step(read(demo_bundle / f"{name}.onnx")) is None, "weights in float32"
    forms = {
        "few words": DecapConfig(64, 64, 1, vocab_size=20, text_vocab_size=CANDIDATES - 1, max_new_tokens=4),
        "narrow heads": DecapConfig(64, 64, 1, 70, 70, num_heads=8, max_new_tokens=4),
        "an odd vector": DecapConfig(65, 64, 1, 70, 70, max_new_tokens=4),
    }
    for name, config in forms.items():
        decoder = decap(config)
        decoder.prepare_for("cpu", rounds_weights=True)
        folder = tmp_path / name
        folder.mkdir()
        export_graph(decap_specs(decoder)[0], folder, "int8_weights")
        assert read_step(read(folder / "decoder.onnx")) is None, name


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_graph_is_computed_as_it_says_or_left_to_openvino(
    kind: str,
    export: Export,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native_steps, "native_gpt2", lambda _: TorchGpt2())
    original = export("decap") / "decoder.onnx"
    content = onnx.load(original, load_external_data=False).SerializeToString()
    for data in original.parent.glob("*.data"):
        (tmp_path / data.name).write_bytes(data.read_bytes())
    inputs, path = step_inputs(original, 3), tmp_path / "changed.onnx"
    contract = decap_contract()
    files = {data.name: HeldFile(data) for data in tmp_path.glob("*.data")}
    for number in range(MUTANTS):
        model = onnx.ModelProto.FromString(content)
        with suppress(ValueError, IndexError, OverflowError), np.errstate(over="ignore"):  # changes it does not allow
            CHANGES[kind](model, random.Random(number))
        onnx.save(model, path)
        try:
            admit(HeldFile(path), contract, files)
            graph = read(path)
        except (BundleError, RuntimeError):  # OpenVINO's
            continue
        step = native_step(graph, files_of(path), threads=1)
        if step is not None:
            assert_alike(step.run(inputs), by_onnxruntime(path, inputs))


@needs_bfloat16
def test_steps_in_8_bits_are_left_to_the_kernels_beside_bfloat16(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(export("decap") / "decoder.onnx")
    step = OpenVinoBackend(2, "bf16").open(files)
    assert isinstance(step, NativeStepEngine) == (native_gpt2(1) is not None)
    assert ("native kernels" in step.report().provider) == isinstance(step, NativeStepEngine)
    assert OpenVinoBackend(2).open(files).report().provider == "CPU in f32"
    monkeypatch.setattr("runtime.system.native_library.native_library", lambda: None)
    assert OpenVinoBackend(2, "bf16").open(files).report().provider == "CPU in f32"


def test_inputs_that_do_not_fit_are_refused(export: Export, open_step: Callable[[Path], NativeStepEngine]) -> None:
    path = export("decap") / "decoder.onnx"
    engine, good = open_step(path), step_inputs(path, 3)
    past = good["past_key_values.1.key"]
    for name, wrong, message in (
        (
            "past_key_values.1.key",
            past[:2],
            r"past_key_values\.1\.key: expected \(3, 4, 8, 16\) of float32 in one piece, got \(2, 4",
        ),
        ("past_key_values.1.key", past[:, :, :5], r"got \(3, 4, 5, 16\)"),
        ("past_key_values.1.key", past.double(), "got .* of torch.float64"),
        ("past_key_values.1.key", past.transpose(0, 1).contiguous().transpose(0, 1), "in one piece"),
        ("input_ids", torch.tensor([1, 2, 1000]), "cannot run it: .*1000"),
        ("position", torch.tensor([8]), "cannot run it: .*8"),
    ):
        with pytest.raises(BackendError, match=message):
            engine.run({**good, name: wrong})
    first = {**good, "position": torch.tensor([0])}
    with pytest.raises(BackendError, match=r"vectors: expected \(3, 128\) of float32, got \(2, 128\)"):
        engine.run({**first, "vectors": good["vectors"][:2]})
    engine.run(good)


@pytest.mark.parametrize("wrong", ["rows", "positions", "dtype"])
def test_masks_that_do_not_fit_are_refused(
    wrong: str, export: Export, open_step: Callable[[Path], NativeStepEngine]
) -> None:
    path = export("prompted") / "decoder.onnx"
    engine, good = open_step(path), step_inputs(path, 3)
    mask = good["attention_mask"]
    changed = {"rows": mask[:2], "positions": mask[:, :5], "dtype": mask.float()}[wrong]
    with pytest.raises(BackendError, match="expected a mask of 3 rows and .* positions in bool, got"):
        engine.run({**good, "attention_mask": changed})
    transposed = mask.T.contiguous().T
    assert_alike(engine.run({**good, "attention_mask": transposed}), engine.run(good))


def test_a_closed_step_says_so(export: Export, open_step: Callable[[Path], NativeStepEngine]) -> None:
    path = export("decap") / "decoder.onnx"
    engine = open_step(path)
    engine.close()
    engine.close()
    with pytest.raises(BackendError, match="it was closed; load the bundle again"):
        engine.run(step_inputs(path, 1))


def test_a_failure_of_the_kernels_is_one_of_the_backend(
    export: Export,
    open_step: Callable[[Path], NativeStepEngine],
    kernels: NativeGpt2,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no memory")

    path = export("decap") / "decoder.onnx"
    engine, inputs = open_step(path), step_inputs(path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "choose", fail)
        with pytest.raises(BackendError, match=r"decoder\.onnx: the native kernels failed: no memory"):
            engine.run(inputs)
    engine.run(inputs)
