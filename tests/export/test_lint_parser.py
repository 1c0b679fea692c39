"""The linter held to NVIDIA's own parser: on a corpus of small graphs, and on exported graphs with one change each.

An error of the stage "parse" says that the parser refuses a graph, so for version 11 a graph has one if and only if the
parser refuses it. Findings of other stages are on what the builder refuses or a run does badly, which a parser cannot
confirm. A missing package fails these tests: `make test` installs it.

One kind of graph is left out: integer parameters (axes, shapes, starts and the like) that are constants of a dtype
that ONNX does not allow there. The parser takes some of them and reads their bytes as integers, so its verdict depends
on the values; the linter refuses nearly all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from export.graphs.exporter import export_graph
from export.graphs.qdq import EightBits
from export.graphs.specs import backbone_spec
from export.lint import __main__ as command
from export.lint import lint
from export.lint.__main__ import main
from export.lint.finding import is_refused
from export.lint.parser import ParserProcess
from export.lint.support_table import NEEDS_PLUGIN, operators
from runtime.bundle import EnginePrecision
from runtime.errors import BackendError
from tests.conftest import build_once
from tests.export.graph_mutations import MUTATIONS, has_odd_parameter, mutated
from tests.export.lint_corpus import RESTRICTIONS, SAMPLES, dtype_graphs, one
from tests.exported_forms import BACKBONES, export_prompted, prompted_model, randomized

EXAMPLES = int(os.environ.get("PATCHCAPTION_LINT_EXAMPLES", "100"))
PRECISIONS = ("fp32", "fp16", "bf16")
ENGINES = ("backbone", "reencoder", "decoder", "beam_decoder")
GRAPHS = [f"{name} {precision}" for precision in PRECISIONS for name in ENGINES]
AFTER_PROMPTS = [f"{name} after prompts" for name in ("mapping", "prefill", "decoder")]
IN_8_BITS: dict[str, EightBits] = {f"backbone {to}": to for to in get_args(EightBits)}
OF_FAMILIES = [f"backbone of {name}" for name in ("clip", "dinov3", "siglip2", "proxyclip", "regionclip")]
PARSER_VERSION, JETPACK_6 = (11, 0), (10, 3)


@pytest.fixture(scope="module")
def parser() -> Iterator[ParserProcess]:
    with ParserProcess() as process:
        yield process


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, onnx.ModelProto]:
    """Graphs as they are exported for TensorRT: the demo's, by name and precision, and those of small models."""
    found = {}
    for graph in GRAPHS:
        name, precision = graph.split()
        options = ("--backend", "tensorrt", "--without-plans", "--precision", precision)
        folder = build_once(tmp_path_factory, "demo", f"demo-graphs-{precision}", *options)
        found[graph] = onnx.load(folder / f"{name}.onnx")
    prompted = export_prompted(tmp_path_factory.mktemp("prompted"), prompted_model(), "fp16", "cuda")
    paths = {f"{graph.engine} after prompts": graph.path for graph in prompted}
    for graph, to in IN_8_BITS.items():
        found[graph] = exported_backbone(tmp_path_factory.mktemp("in_8_bits"), "registers", to)
    for graph in OF_FAMILIES:
        found[graph] = exported_backbone(tmp_path_factory.mktemp("family"), graph.split()[-1], "fp16")
    return found | {graph: onnx.load(paths[graph]) for graph in AFTER_PROMPTS}


def exported_backbone(folder: Path, name: str, precision: EnginePrecision) -> onnx.ModelProto:
    backbone = randomized(BACKBONES[name]())
    side = backbone.image_size
    pixels = torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    export_graph(backbone_spec(backbone, pixels), folder, precision, "cuda")
    return onnx.load(folder / "backbone.onnx")


def disagreement(parser: ParserProcess, path: Path, model: onnx.ModelProto) -> str | None:
    """Return what parser and linter say of a graph if one refuses it and the other does not."""
    path.unlink(missing_ok=True)  # file systems write at once what replaces the contents of a file
    onnx.save(model, path)
    refusals = parser.findings(path)
    findings = lint(path, PARSER_VERSION)
    if is_refused(findings) != bool(refusals):
        return f"parser: {list(map(str, refusals))}; linter: {list(map(str, findings))}"
    if is_refused(findings) and not is_refused(lint(path, JETPACK_6)):
        return f"version 10.3 takes what 11 refuses: {list(map(str, findings))}"
    return None


@pytest.mark.parametrize("name", SAMPLES)
def test_linter_and_parser_agree_on_operators_in_all_dtypes(parser: ParserProcess, tmp_path: Path, name: str) -> None:
    said = {dtypes: disagreement(parser, tmp_path / "graph.onnx", model) for dtypes, model in dtype_graphs(name)}
    assert {dtypes: words for dtypes, words in said.items() if words} == {}


@pytest.mark.slow
@pytest.mark.parametrize("topic", RESTRICTIONS)
def test_linter_and_parser_agree_on_what_keeps_and_what_breaks_a_rule(
    parser: ParserProcess, tmp_path: Path, topic: str
) -> None:
    path, said, verdicts = tmp_path / "graph.onnx", {}, set()
    for case, model in RESTRICTIONS[topic]():
        said[case] = disagreement(parser, path, model)
        verdicts.add(is_refused(lint(path, PARSER_VERSION)))
    assert {case: words for case, words in said.items() if words} == {}
    assert verdicts == {True, False}


def test_rows_of_the_table_are_verified_if_the_parser_reads_the_operator(parser: ParserProcess, tmp_path: Path) -> None:
    def is_read(model: onnx.ModelProto) -> bool:
        onnx.save(model, tmp_path / "graph.onnx")
        return not parser.findings(tmp_path / "graph.onnx")

    read = {
        sample.operator for name, sample in SAMPLES.items() if any(is_read(model) for _, model in dtype_graphs(name))
    }
    cases = dict(RESTRICTIONS["operators"]())
    read |= {cases[name].graph.node[0].op_type for name in ("If, good", "Loop, good", "Scan") if is_read(cases[name])}
    assert read == {name for name, row in operators().items() if row.verified}
    assert {name for name, row in operators().items() if not row.verified} <= NEEDS_PLUGIN


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_linter_and_parser_agree_on_exported_graphs_with_one_change(
    parser: ParserProcess, exported: Mapping[str, onnx.ModelProto], tmp_path: Path, mutation: str
) -> None:
    """Each change of every graph, in one of the precisions: in all three of them where one takes several graphs.

    Of other families than the demo's, each change of one backbone.
    """
    number = list(MUTATIONS).index(mutation)
    graphs = [f"{name} {PRECISIONS[(number + place) % len(PRECISIONS)]}" for place, name in enumerate(ENGINES)]
    graphs += [*AFTER_PROMPTS, *IN_8_BITS, OF_FAMILIES[number % len(OF_FAMILIES)]]
    said = {}
    for seed, name in enumerate(graphs):
        changed = mutated(exported[name], mutation, seed)
        if not has_odd_parameter(changed):
            said[name] = disagreement(parser, tmp_path / "graph.onnx", changed)
    assert len(said) == len(graphs)
    assert {name: words for name, words in said.items() if words} == {}


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(
    name=st.sampled_from([*GRAPHS, *AFTER_PROMPTS, *IN_8_BITS, *OF_FAMILIES]),
    mutation=st.sampled_from(sorted(MUTATIONS)),
    seed=st.integers(0, 1 << 32),
)
def test_linter_and_parser_agree_on_any_change_of_an_exported_graph(
    parser: ParserProcess,
    exported: Mapping[str, onnx.ModelProto],
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    mutation: str,
    seed: int,
) -> None:
    changed = mutated(exported[name], mutation, seed)
    assume(not has_odd_parameter(changed))
    path = tmp_path_factory.getbasetemp() / "changed.onnx"
    assert disagreement(parser, path, changed) is None


@pytest.mark.slow
def test_the_command_gives_the_parser_s_words_before_its_own(
    parser: ParserProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    onnx.save(one("Relu", "x"), good)
    onnx.save(one("Unique", "x"), bad)
    assert main(["--parser", str(good)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{good}: parses in TensorRT-RTX ")
    assert said.endswith(", will likely parse in TensorRT 10.3\n")
    monkeypatch.setattr(command, "ParserProcess", lambda: nullcontext(parser))  # it takes seconds to start
    assert main(["--parser", "--tensorrt", "11.0", str(good), str(bad), "--json"]) == 1
    first, *others = json.loads(capsys.readouterr().out)
    assert first["graph"] == str(bad)
    assert (first["rule"], first["severity"], first["stage"]) == ("parser", "error", "parse")
    assert first["location"].endswith("(Unique)")
    assert {finding["rule"] for finding in others} >= {"operator"}
    assert main(["--parser", str(tmp_path / "none.onnx")]) == 2


def test_the_parser_finds_weights_beside_the_graph(parser: ParserProcess, tmp_path: Path) -> None:
    model = one("MatMul", *"xw", weights={"w": ([], onnx.TensorProto.FLOAT)})
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.ones((8, 64), np.float32), "w"))
    onnx.save(model, tmp_path / "graph.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    assert parser.findings(tmp_path / "graph.onnx") == []
    (tmp_path / "weights").unlink()
    assert parser.findings(tmp_path / "graph.onnx") != []


def test_a_file_that_is_no_graph_is_refused(parser: ParserProcess, tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(b"no graph")
    assert [finding.rule for finding in parser.findings(tmp_path / "graph.onnx")] == ["parser"]
    with pytest.raises(FileNotFoundError):
        parser.findings(tmp_path / "none.onnx")


NO_PACKAGE = "raise ImportError('it is not here')"
CRASHING_PACKAGE = """
import os, signal
class ILogger:
    class Severity:
        INTERNAL_ERROR, ERROR = range(2)
class Builder:
    def __init__(self, logger): pass
    def create_network(self, flags): return self
class NetworkDefinitionCreationFlag:
    STRONGLY_TYPED = 1
class OnnxParser:
    def __init__(self, network, logger): pass
    def parse_from_file(self, path):
        print("words of a library", flush=True)
        return "bad" not in path or os.kill(os.getpid(), signal.SIGSEGV)
__version__ = "1.7"
"""


@pytest.mark.slow
def test_without_a_parser_the_command_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt_rtx", "tensorrt"):
        (tmp_path / f"{name}.py").write_text(NO_PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    onnx.save(one("Relu", "x"), tmp_path / "graph.onnx")
    assert main(["--parser", str(tmp_path / "graph.onnx")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: there is no parser of TensorRT: TensorRT-RTX cannot be imported (it is not here)")
    assert "pip install tensorrt" in line
    with pytest.raises(BackendError, match="no parser"), ParserProcess():
        pass


@pytest.mark.slow
def test_a_graph_that_crashes_the_parser_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_rtx.py").write_text(CRASHING_PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("bad", "good"):
        onnx.save(one("Relu", "x"), tmp_path / f"{name}.onnx")
    with ParserProcess() as process:
        (finding,) = process.findings(tmp_path / "bad.onnx")
        assert finding.message == "the parser of TensorRT-RTX 1.7 crashed on it: SIGSEGV"
        assert process.findings(tmp_path / "good.onnx") == []
