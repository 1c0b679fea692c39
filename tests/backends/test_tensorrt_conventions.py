"""What calls of TensorRT return, raise and log: the same from NVIDIA's bindings, without a GPU, as from the double.

Not here is what needs a GPU: engines, contexts, and the caches of TensorRT for RTX; nor what only TensorRT 10 has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto

from runtime.doctor.backends import SMALL_GRAPH
from tests.tensorrt_double import tensorrt_double
from tests.tensorrt_double.bindings import real_tensorrt
from tests.tensorrt_double.verdicts import Verdict, build_and_record

MODULES: dict[str, Callable[[], Any]] = {
    "real": real_tensorrt,
    "10.3": lambda: tensorrt_double("10.3.0.30"),
    "11.4": lambda: tensorrt_double("11.4.0.106"),
    "rtx": lambda: tensorrt_double("1.7.1.116", is_rtx=True),
}
Shapes = Mapping[str, Sequence[Sequence[int]]]
ROWS: Shapes = {"x": ((1, 4), (3, 4), (3, 4))}
"""A profile of the small graph, x (rows, 4) -> y."""


class Bench:
    """One of the modules at work.

    Attributes:
        errors: what it logged as an error.
    """

    def __init__(self, module: Any) -> None:
        errors: list[str] = []
        severities = module.ILogger.Severity

        class Logger(module.ILogger):  # type: ignore[misc]  # the module is known at run time only
            def __init__(self) -> None:
                module.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                if severity in (severities.INTERNAL_ERROR, severities.ERROR):
                    errors.append(msg)

        self.module, self.errors, self.logger = module, errors, Logger()
        self.builder = module.Builder(self.logger)
        self.config = self.builder.create_builder_config()
        self.runtime = module.Runtime(self.logger)
        self.network = self.builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self.parser = module.OnnxParser(self.network, self.logger)

    def add_profile(self, shapes: Shapes) -> int:
        profile = self.builder.create_optimization_profile()
        for name, of_input in shapes.items():
            profile.set_shape(name, *of_input)
        index: int = self.config.add_optimization_profile(profile)
        return index

    def set_shape(self, *shapes: object) -> object:
        return self.builder.create_optimization_profile().set_shape("x", *shapes)

    def build(self, *profiles: Shapes, graph: bytes = SMALL_GRAPH) -> Any:
        assert self.parser.parse(graph)
        for shapes in profiles:
            self.add_profile(shapes)
        return self.builder.build_serialized_network(self.network, self.config)

    def set(self, name: str, value: object) -> object:
        """Set an option of the configuration; return what it then is, a member of an enumeration by its name."""
        setattr(self.config, name, value)
        is_now = getattr(self.config, name)
        return getattr(is_now, "name", is_now)


def graph_of(node: onnx.NodeProto, dtype: int, shape: Sequence[int] = (2, 8), to: int | None = None) -> bytes:
    x = onnx.helper.make_tensor_value_info("x", dtype, shape)
    y = onnx.helper.make_tensor_value_info("y", to or dtype, shape)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "graph", [x], [y]), opset_imports=[onnx.helper.make_opsetid("", 20)]
    )
    return model.SerializeToString()


RELU = graph_of(onnx.helper.make_node("Relu", ["x"], ["y"]), TensorProto.FLOAT)
FLOATS_OF_BYTES = graph_of(
    onnx.helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT), TensorProto.UINT8, to=TensorProto.FLOAT
)
TRANSPOSED_BYTES = graph_of(onnx.helper.make_node("Transpose", ["x"], ["y"]), TensorProto.UINT8, (2, 2))


def parse_and_count(bench: Bench, *graphs: bytes) -> tuple[object, ...]:
    return (*map(bench.parser.parse, graphs), bench.parser.num_errors)


def uninitialized(bench: Bench, base: str) -> object:
    """Make an object whose class overrides __init__ without calling that of its base."""

    class Careless(getattr(bench.module, base)):  # type: ignore[misc]  # the module is known at run time only
        def __init__(self) -> None:
            pass

    return Careless()


def limit_workspace(bench: Bench, size_bytes: int) -> object:
    return bench.config.set_memory_pool_limit(bench.module.MemoryPoolType.WORKSPACE, size_bytes)


def timing_cache(bench: Bench) -> tuple[str, str, object, bool]:
    cache = bench.config.create_timing_cache(b"")
    data = cache.serialize()
    is_taken = bench.config.set_timing_cache(cache, False)
    return type(cache).__name__, type(data).__name__, is_taken, len(bytes(data)) > 0


def host_memory(bench: Bench) -> tuple[bool, bool, bool]:
    plan = bench.build(ROWS)
    return plan.nbytes == len(bytes(plan)) > 0, bool(plan), plan == bytes(plan)


def of_enumeration(bench: Bench) -> tuple[object, ...]:
    one = bench.module.DataType.HALF
    return one.name, int(one), repr(one), one == 1, bool(bench.module.DataType.FLOAT), one == bench.module.DataType.HALF


CONVENTIONS: dict[str, tuple[Callable[[Bench], object], object]] = {
    # Enumerations
    "members have names and numbers, and are no integers": (
        of_enumeration,
        ("HALF", 1, "<DataType.HALF: 1>", False, True, True),
    ),
    "a member cannot be shifted by": (lambda b: 1 << b.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED, TypeError),
    "an enumeration has no subscripts": (lambda b: b.module.DataType["HALF"], TypeError),
    "an enumeration cannot be iterated": (lambda b: list(b.module.DataType), TypeError),
    # What is made
    "a logger that its base did not initialize": (lambda b: uninitialized(b, "ILogger"), TypeError),
    "a monitor that its base did not initialize": (lambda b: uninitialized(b, "IProgressMonitor"), TypeError),
    "a severity that is a number": (lambda b: b.module.ILogger.log(b.logger, 1, "message"), TypeError),
    "a builder without a logger": (lambda b: b.module.Builder(None), TypeError),
    "a runtime without a logger": (lambda b: b.module.Runtime(None), TypeError),
    "a parser without a logger": (lambda b: b.module.OnnxParser(b.network, None), TypeError),
    "a parser without a network": (lambda b: b.module.OnnxParser(None, b.logger), TypeError),
    "a network of unknown flags": (lambda b: b.builder.create_network(1 << 12), (None, "logged")),
    "a network of negative flags": (lambda b: b.builder.create_network(-1), TypeError),
    "an attribute that a builder lacks": (lambda b: setattr(b.builder, "max_batch_size", 1), AttributeError),
    "an attribute that a network lacks": (lambda b: setattr(b.network, "graph", 1), AttributeError),
    "an attribute that a configuration lacks": (lambda b: b.set("max_workspace_size", 1), AttributeError),
    "an attribute that a runtime lacks": (lambda b: setattr(b.runtime, "device", 1), AttributeError),
    # The parser
    "nothing parsed": (lambda b: parse_and_count(b), (0,)),
    "a graph": (lambda b: parse_and_count(b, SMALL_GRAPH), (True, 0)),
    "a parser reads once": (lambda b: parse_and_count(b, SMALL_GRAPH, SMALL_GRAPH), ((True, False, 0), "logged")),
    "no graph": (lambda b: parse_and_count(b, b"junk"), ((False, 1), "logged")),
    "no bytes": (lambda b: b.parser.parse("junk"), TypeError),
    "a file that is not there": (
        lambda b: (b.parser.parse_from_file("/no/such.onnx"), b.parser.num_errors, b.parser.get_error(0).node()),
        ((False, 1, -1), "logged"),
    ),
    "a path that is no string": (lambda b: b.parser.parse_from_file(Path("graph.onnx")), TypeError),
    "a graph that is refused": (
        lambda b: (*parse_and_count(b, TRANSPOSED_BYTES), b.parser.get_error(0).node()),
        ((False, 1, 0), "logged"),
    ),
    "an error that is not there": (lambda b: b.parser.get_error(0), (None, "logged")),
    # The configuration
    "options as they are at first": (
        lambda b: (b.config.builder_optimization_level, b.config.max_aux_streams, b.config.progress_monitor),
        (3, -1, None),
    ),
    "an optimization level": (lambda b: b.set("builder_optimization_level", 5), 5),
    "an optimization level above the highest": (lambda b: b.set("builder_optimization_level", 6), 5),
    "an optimization level below the lowest": (lambda b: b.set("builder_optimization_level", -1), (3, "logged")),
    "an optimization level that is a string": (lambda b: b.set("builder_optimization_level", "3"), TypeError),
    "an optimization level that is a float": (lambda b: b.set("builder_optimization_level", 2.5), TypeError),
    "auxiliary streams": (lambda b: b.set("max_aux_streams", 0), 0),
    "a core that is a string": (lambda b: b.set("DLA_core", "1"), TypeError),
    "a device type": (lambda b: b.set("default_device_type", b.module.DeviceType.DLA), "DLA"),
    "a verbosity": (lambda b: b.set("profiling_verbosity", b.module.ProfilingVerbosity.DETAILED), "DETAILED"),
    "a verbosity that is a number": (lambda b: b.set("profiling_verbosity", 2), TypeError),
    "a hardware level that is a number": (lambda b: b.set("hardware_compatibility_level", 1), TypeError),
    "a monitor that is none": (lambda b: b.set("progress_monitor", object()), TypeError),
    "no monitor": (lambda b: b.set("progress_monitor", None), None),
    "a flag": (lambda b: b.config.set_flag(b.module.BuilderFlag.VERSION_COMPATIBLE), None),
    "no flag": (lambda b: b.config.clear_flag(b.module.BuilderFlag.TF32), None),
    "a flag that is a number": (lambda b: b.config.set_flag(3), TypeError),
    "a workspace": (lambda b: b.config.set_memory_pool_limit(b.module.MemoryPoolType.WORKSPACE, 2**26), None),
    "a negative workspace": (
        lambda b: b.config.set_memory_pool_limit(b.module.MemoryPoolType.WORKSPACE, -1),
        TypeError,
    ),
    "a pool that is a number": (lambda b: b.config.set_memory_pool_limit(0, 2**26), TypeError),
    "a timing cache": (timing_cache, ("ITimingCache", "IHostMemory", True, True)),
    "a timing cache of a string": (lambda b: b.config.create_timing_cache("cache"), TypeError),
    # Profiles
    "a profile": (lambda b: (b.add_profile(ROWS), b.add_profile(ROWS)), (0, 1)),
    "no profile": (lambda b: b.config.add_optimization_profile(None), (-1, "logged")),
    "lists as shapes": (lambda b: b.set_shape([1, 4], [3, 4], [3, 4]), None),
    "torch's sizes as shapes": (lambda b: b.set_shape(*[torch.Size((1, 4))] * 3), None),
    "sizes that are floats": (lambda b: b.set_shape((1.0, 4), (3, 4), (3, 4)), TypeError),
    "nine axes": (lambda b: b.set_shape(*[(1,) * 9] * 3), TypeError),
    "a negative size": (lambda b: b.set_shape((-1, 4), (3, 4), (3, 4)), (RuntimeError, "logged")),
    "min above opt is not noticed": (lambda b: b.set_shape((3, 4), (2, 4), (3, 4)), None),
    "min above opt cannot be added": (lambda b: b.add_profile({"x": ((3, 4), (2, 4), (3, 4))}), (-1, "logged")),
    "shapes of different ranks": (lambda b: b.add_profile({"x": ((1, 4), (3,), (3, 4))}), (-1, "logged")),
    # The builder
    "a plan": (lambda b: type(b.build(ROWS)).__name__, "IHostMemory"),
    "a plan is memory, and has no length": (lambda b: len(b.build(ROWS)), TypeError),
    "a plan's bytes": (host_memory, (True, True, False)),
    "an empty network": (lambda b: b.builder.build_serialized_network(b.network, b.config), (None, "logged")),
    "no configuration": (lambda b: b.builder.build_serialized_network(b.network, None), TypeError),
    "a dynamic input without a profile": (lambda b: b.build(), (None, "logged")),
    "a profile without a dynamic input": (lambda b: b.build({}), (None, "logged")),
    "a second profile without it": (lambda b: b.build(ROWS, {}), (None, "logged")),
    "a profile of another size": (lambda b: b.build({"x": ((1, 5),) * 3}), (None, "logged")),
    "a profile of another rank": (lambda b: b.build({"x": ((1, 4, 1),) * 3}), (None, "logged")),
    "a profile of an input that is not there": (
        lambda b: type(b.build({**ROWS, "z": ((1,),) * 3})).__name__,
        "IHostMemory",
    ),
    "a static graph": (lambda b: type(b.build(graph=RELU)).__name__, "IHostMemory"),
    "a static graph and a profile of its sizes": (
        lambda b: type(b.build({"x": ((2, 8),) * 3}, graph=RELU)).__name__,
        "IHostMemory",
    ),
    "a static graph and a profile of other sizes": (
        lambda b: b.build({"x": ((3, 8),) * 3}, graph=RELU),
        (None, "logged"),
    ),
    # The runtime
    "no plan": (lambda b: b.runtime.deserialize_cuda_engine(b"no plan"), (None, "logged")),
    "a plan that is a string": (lambda b: b.runtime.deserialize_cuda_engine("no plan"), TypeError),
    "code of plans is not allowed at first": (lambda b: b.runtime.engine_host_code_allowed, False),
}


def outcome(module: Any, use: Callable[[Bench], object]) -> object:
    """Return what a use returns or raises; with "logged" if it logs errors."""
    bench = Bench(module)
    bench.errors.clear()
    try:
        result = use(bench)
    except Exception as error:
        result = type(error)
    return (result, "logged") if bench.errors else result


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")  # of timing caches
@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_module_keeps_the_conventions(convention: str, name: str) -> None:
    use, expected = CONVENTIONS[convention]
    assert outcome(MODULES[name](), use) == expected


RTX_CONVENTIONS: dict[str, tuple[Callable[[Bench], object], object]] = {
    "a compute capability": (
        lambda b: (b.set("num_compute_capabilities", 1), set_capability(b, 0)),
        (1, True),
    ),
    "one more than was said": (
        lambda b: (b.set("num_compute_capabilities", 1), set_capability(b, 1)),
        ((1, False), "logged"),
    ),
    "a negative number of them": (lambda b: b.set("num_compute_capabilities", -1), (ValueError, "logged")),
    "one that is a number": (lambda b: b.config.set_compute_capability(89, 0), TypeError),
    "a timing cache of another": (lambda b: take_timing_cache(b, b"of another TensorRT"), True),
}


def take_timing_cache(bench: Bench, data: bytes) -> object:
    cache = bench.config.create_timing_cache(data)
    bench.errors.clear()  # without a driver it is missed here
    return bench.config.set_timing_cache(cache, False)


def set_capability(bench: Bench, index: int) -> object:
    return bench.config.set_compute_capability(bench.module.ComputeCapability.SM89, index)


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
@pytest.mark.parametrize("name", ["real", "rtx"])
@pytest.mark.parametrize("convention", RTX_CONVENTIONS)
def test_tensorrt_for_rtx_keeps_its_own_conventions(convention: str, name: str) -> None:
    use, expected = RTX_CONVENTIONS[convention]
    assert outcome(MODULES[name](), use) == expected


def new_monitor(bench: Bench, answer: Callable[[int], object]) -> Any:
    base = bench.module.IProgressMonitor

    class Monitor(base):  # type: ignore[valid-type, misc]  # the module is known at run time only
        def __init__(self) -> None:
            base.__init__(self)
            self.calls: list[tuple[object, ...]] = []

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.calls.append(("start", phase_name, parent_phase, num_steps))

        def step_complete(self, phase_name: str, step: int) -> object:
            self.calls.append(("step", phase_name, step))
            return answer(len(self.calls))

        def phase_finish(self, phase_name: str) -> None:
            self.calls.append(("finish", phase_name))

    return Monitor()


def interrupt(_: int) -> object:
    raise SystemExit


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(
    ("answer", "is_built"),
    [
        (lambda _: True, True),
        (lambda calls: calls < 8, False),
        (lambda _: None, False),
        (interrupt, False),  # which goes no further
    ],
)
def test_a_monitor_is_told_of_nested_phases_and_can_stop_a_build(
    answer: Callable[[int], object], is_built: bool, name: str
) -> None:
    bench = Bench(MODULES[name]())
    monitor = bench.config.progress_monitor = new_monitor(bench, answer)
    plan = bench.build(ROWS)
    assert (plan is not None) == is_built
    assert any("canceled by user" in error for error in bench.errors) != is_built
    assert monitor.calls[0] == ("start", "Building engine", None, 6)
    assert monitor.calls[1][:3] == ("start", "Cloning network graph", "Building engine")
    assert monitor.calls[-1] == ("finish", "Building engine")
    kinds = [call[0] for call in monitor.calls]
    assert kinds.count("start") == kinds.count("finish")


@pytest.mark.parametrize("name", ["10.3", "11.4", "rtx"])
@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (TRANSPOSED_BYTES, "first input has type UInt8"),
        (
            graph_of(onnx.helper.make_node("ReduceMax", ["x"], ["y"]), TensorProto.BOOL),
            "unsupported input type of BOOL",
        ),
        (
            graph_of(onnx.helper.make_node("Erf2", ["x"], ["y"], domain="com.microsoft"), TensorProto.FLOAT),
            "Plugin not found",
        ),
        (FLOATS_OF_BYTES, None),
        # An operator of another domain that ONNX has too is read as ONNX's.
        (graph_of(onnx.helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft"), TensorProto.FLOAT), None),
    ],
)
def test_the_doubles_parser_speaks_in_the_real_ones_words(graph: bytes, message: str | None, name: str) -> None:
    bench = Bench(MODULES[name]())
    assert bench.parser.parse(graph) is (message is None)
    errors = [bench.parser.get_error(index).desc() for index in range(bench.parser.num_errors)]
    assert [message in error for error in errors if message] == [True] * bool(message)


@pytest.mark.parametrize("name", ["10.3", "11.4", "rtx"])
@pytest.mark.parametrize(
    "profiles", [(), ({},), (ROWS, {}), ({"x": ((1, 5),) * 3},), ({"x": ((3, 4), (2, 4), (3, 4))},)]
)
def test_the_doubles_builder_speaks_in_the_real_ones_words(profiles: tuple[Shapes, ...], name: str) -> None:
    real, double = Bench(real_tensorrt()), Bench(MODULES[name]())
    assert real.build(*profiles) is None
    assert double.build(*profiles) is None
    assert double.errors == real.errors


def test_a_graph_is_built_by_the_real_builder_once(monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[Verdict] = []

    def build(*parts: Any) -> Verdict:
        builds.append(build_and_record(*parts))
        return builds[-1]

    monkeypatch.setattr("tests.tensorrt_double.building.build_and_record", build)
    graph = graph_of(onnx.helper.make_node("Neg", ["x"], ["y"]), TensorProto.FLOAT, (2, 3))
    for name in ("10.3", "11.4", "rtx"):
        assert Bench(MODULES[name]()).build(graph=graph) is not None
    assert len(builds) == 2, "for RTX the compute capabilities count too"
