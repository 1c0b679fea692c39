"""The typed stubs of TensorRT and the double, held to NVIDIA's own bindings.

The stubs are the list of the names that the code uses: mypy refuses others, and a test here those that nothing uses.
The bindings are those of TensorRT for RTX, whose surface is TensorRT 11's. What 10.3 has besides, they cannot show: it
is from NVIDIA's documents.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mypy import api

from export.plans import builder
from runtime.backends.tensorrt import engine
from runtime.backends.tensorrt.rtx import CAPABILITIES
from tests.tensorrt_double import tensorrt_double
from tests.tensorrt_double.bindings import real_tensorrt

ROOT = Path(__file__).parents[2]
STUBS = {
    name: ast.parse((ROOT / "stubs" / name / "__init__.pyi").read_text(encoding="utf-8"))
    for name in ("tensorrt", "tensorrt_rtx")
}
VERSIONS = ("10.3.0.30", "11.4.0.106", "rtx")
GONE_IN_11 = {  # in the stub so that mypy finds code that uses them
    "Builder": {"platform_has_fast_fp16"},
    "OnnxParser": {"supports_model"},
    "IExecutionContext": {"all_shape_inputs_specified"},
    "ICudaEngine": {"device_memory_size", "create_execution_context_without_device_memory"},
}
OF_STUB = {"Enumeration"}  # what pybind's enumerations have in common has no name there

Members = dict[str, ast.stmt]


def members(body: list[ast.stmt], is_11: bool) -> Members:
    """Return the names that a stub's body declares for one surface."""
    found: Members = {}
    for statement in body:
        if isinstance(statement, ast.If):
            is_for_11 = not isinstance(statement.test, ast.UnaryOp)
            found |= members(statement.body if is_for_11 == is_11 else statement.orelse, is_11)
        elif isinstance(statement, (ast.ClassDef, ast.FunctionDef)):
            found[statement.name] = statement
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = statement
    return found


def classes(version: str) -> dict[str, Members]:
    """Return the members of every class that the stubs declare for a version, by the class's name in the module."""
    found: dict[str, Members] = {}
    for stub in STUBS if version == "rtx" else ("tensorrt",):
        for name, statement in members(STUBS[stub].body, version[:2] != "10").items():
            if isinstance(statement, ast.ClassDef) and name not in OF_STUB:
                of_class = members(statement.body, version[:2] != "10")
                for inner in [one for one, nested in of_class.items() if isinstance(nested, ast.ClassDef)]:
                    nested = of_class.pop(inner)
                    assert isinstance(nested, ast.ClassDef)
                    found[f"{name}.{inner}"] = members(nested.body, True)
                found[name] = found.get(name, {}) | of_class
    return found


def find(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def double_of(version: str) -> Any:
    return tensorrt_double("1.7.1.116", is_rtx=True) if version == "rtx" else tensorrt_double(version)


def is_member_of_enumeration(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.AnnAssign) and ast.unparse(statement.annotation).startswith("ClassVar")


def is_property(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.FunctionDef) and [*map(ast.unparse, statement.decorator_list)] == ["property"]


def methods(of_class: Members) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the methods of a class, without those of Python's protocols."""
    for name, statement in of_class.items():
        is_own = name == "__init__" or not name.startswith("__")
        if isinstance(statement, ast.FunctionDef) and not is_property(statement) and is_own:
            yield name, statement


@dataclass(frozen=True)
class Signature:
    """A signature without `self`.

    Attributes:
        types: the names of the types that each parameter accepts.
        num_optional: how many of the last parameters have a default.
        result: the name of the result's type; None may be returned besides.
    """

    names: tuple[str, ...]
    types: tuple[frozenset[str], ...]
    num_optional: int
    result: str

    @classmethod
    def of(cls, function: ast.FunctionDef) -> Signature:
        arguments = function.args.args[1:]
        return cls(
            names=tuple(argument.arg for argument in arguments),
            types=tuple(frozenset(type_names(argument.annotation)) - {"None"} for argument in arguments),
            num_optional=len(function.args.defaults),
            result=" | ".join(type_names(function.returns, is_result=True)),
        )


def type_names(annotation: ast.expr | None, is_result: bool = False) -> list[str]:
    """Return the names of the types of an annotation, of a stub or of pybind, without their modules."""
    assert annotation is not None
    text = re.sub(r"(?:\w+\.)+", "", ast.unparse(annotation))
    text = text.replace("SupportsInt", "int").replace("Buffer", "bytes").replace("IParserError", "ParserError")
    text = text.replace("Shape", "tuple | list | Dims")
    names = text.split(" | ")
    return [name for name in names if name != "None" or names == ["None"]] if is_result else names


def real_signatures(function: Any) -> dict[tuple[str, ...], Signature]:
    """Return the signatures in pybind's docstring, by their parameters' names; such that differ in types as one."""
    found: dict[tuple[str, ...], Signature] = {}
    for line in re.findall(r"^(?:\d+\. )?(\w+\(self: .*\) -> .*)$", function.__doc__, flags=re.MULTILINE):
        text = re.sub(r"= <[^>]*>", "= ...", line).replace("::", ".")
        statement = ast.parse(f"def {text}: ...").body[0]
        assert isinstance(statement, ast.FunctionDef)
        one = Signature.of(statement)
        before = found.get(one.names, one)
        types = tuple(map(frozenset.union, before.types, one.types))
        found[one.names] = Signature(one.names, types, one.num_optional, one.result)
    return found


def accepted(types: frozenset[str]) -> frozenset[str]:
    """Return the types that pybind takes for these: tuples and lists become `Dims`."""
    return types | {"tuple", "list"} if "Dims" in types else types


@pytest.mark.parametrize("version", VERSIONS[1:])
def test_the_stubs_have_the_names_kinds_and_signatures_of_the_real_thing(version: str) -> None:
    wrong: list[str] = []
    for path, of_class in classes(version).items():
        real = find(real_tensorrt(), path)
        for name, statement in of_class.items():
            if name.startswith("__") and name != "__init__":  # Python's protocols
                continue
            if not hasattr(real, name):
                wrong.append(f"{path}.{name}: the real thing has none")
            elif is_member_of_enumeration(statement):
                continue
            elif isinstance(statement, ast.AnnAssign):
                if getattr(getattr(real, name), "fset", None) is None:
                    wrong.append(f"{path}.{name}: it cannot be set")
            elif is_property(statement) != isinstance(getattr(real, name), property):
                wrong.append(f"{path}.{name}: a property, or none")
        for name, function in methods(of_class):
            ours, theirs = Signature.of(function), real_signatures(getattr(real, name))
            if ours.names not in theirs:
                wrong.append(f"{path}.{name}{ours.names}: expected one of {list(theirs)}")
                continue
            one = theirs[ours.names]
            is_narrower = all(mine <= accepted(other) for mine, other in zip(ours.types, one.types, strict=True))
            if not is_narrower or (ours.num_optional, ours.result) != (one.num_optional, one.result):
                wrong.append(f"{path}.{name}: {ours}, expected {one}")
    assert not wrong


def test_what_the_stub_says_is_gone_in_11_is_gone() -> None:
    old, new = classes("10.3.0.30"), classes("11.4.0.106")
    gone = {path: set(of_class) - set(new[path]) for path, of_class in old.items()}
    assert {path: names for path, names in gone.items() if path in GONE_IN_11} == GONE_IN_11
    for path, names in gone.items():
        assert [name for name in names if hasattr(find(real_tensorrt(), path), name)] == [], path


@pytest.mark.parametrize("version", VERSIONS)
def test_the_double_has_the_names_kinds_and_signatures_of_the_stub_and_of_the_real_thing(version: str) -> None:
    double, wrong = double_of(version), []
    for path, of_class in classes(version).items():
        ours, real = find(double, path), find(real_tensorrt(), path)
        gone = GONE_IN_11.get(path, set())
        for name, statement in of_class.items():
            if name in gone or is_member_of_enumeration(statement) or name.startswith("__"):
                continue
            if not hasattr(ours, name):
                wrong.append(f"{path}.{name}: not in the double")
            elif isinstance(getattr(ours, name), property) != isinstance(getattr(real, name), property):
                wrong.append(f"{path}.{name}: a property, or none")
            elif isinstance(statement, ast.AnnAssign) and getattr(ours, name).fset is None:
                wrong.append(f"{path}.{name}: it cannot be set")
        for name, _ in methods({name: one for name, one in of_class.items() if name not in gone}):
            if getattr(ours, name, None) is getattr(real, name):  # the double has NVIDIA's own class
                continue
            parameters = list(inspect.signature(getattr(ours, name)).parameters.values())[1:]
            names = tuple(parameter.name for parameter in parameters)
            num_optional = sum(parameter.default is not inspect.Parameter.empty for parameter in parameters)
            theirs = real_signatures(getattr(real, name))
            if names not in theirs or theirs[names].num_optional != num_optional:
                wrong.append(f"{path}.{name}{names}: expected one of {list(theirs)}")
    assert not wrong


@pytest.mark.parametrize("version", VERSIONS)
def test_enumerations_have_the_members_of_the_real_thing(version: str) -> None:
    double = double_of(version)
    for path, of_class in classes(version).items():
        of_stub = {name for name, statement in of_class.items() if is_member_of_enumeration(statement)}
        if not of_stub:
            continue
        ours, real = numbers(find(double, path)), numbers(find(real_tensorrt(), path))
        assert of_stub <= set(ours), path
        if version == "rtx":
            assert ours == real
        elif version.startswith("11"):
            assert set(real) - set(ours) <= {"REQUIRE_USER_ALLOCATION"}
            assert ours.items() <= real.items()


def numbers(kind: Any) -> Mapping[str, int]:
    return {name: int(member) for name, member in kind.__members__.items()}


def test_nothing_is_in_the_stubs_that_the_code_does_not_use() -> None:
    used: set[str] = set()
    for folder in ("runtime", "export"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                used |= {node.attr} if isinstance(node, ast.Attribute) else set()
                used |= {node.name} if isinstance(node, ast.FunctionDef) else set()  # overrides
    unused = {
        f"{path}.{name}"
        for version in VERSIONS
        for path, of_class in classes(version).items()
        for name, statement in of_class.items()
        if not is_member_of_enumeration(statement) and not name.startswith("__") and name not in used
    }
    assert unused == {f"{path}.{name}" for path, names in GONE_IN_11.items() for name in names}


def test_names_that_the_code_has_as_strings_are_in_stub_and_real_thing() -> None:
    strings = {
        "ComputeCapability": {f"SM{one.replace('.', '')}" for one in CAPABILITIES},
        "DataType": set(engine._DTYPES),
        "HardwareCompatibilityLevel": set(builder._HARDWARE_LEVELS.values()),
    }
    for kind, names in strings.items():
        assert names <= set(classes("rtx")[kind]) & set(numbers(find(real_tensorrt(), kind))), kind


WRONG_IN = {
    "tensorrt.BuilderFlag.FP16": {True},
    "tensorrt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH": {True},
    "1 << tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED": {False, True},
    "engine.get_tensor_mode('x') == 1": {False, True},
    "engine.create_execution_context_without_device_memory()": {True},
    "tensorrt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY": {False},
    "engine.create_execution_context().execute_async_v3(1)": {False, True},
    "engine.create_execution_context(tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED)": set[bool](),
}
"""Whether a line is wrong on the surface of TensorRT 11 (True) and on that of 10."""


@pytest.fixture(scope="module")
def found_wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[bool]]:
    """The same as mypy finds it, which is started once for each surface: each line is a file."""
    folder = tmp_path_factory.mktemp("lines")
    files = {folder / f"line_{number}.py": line for number, line in enumerate(WRONG_IN)}
    for file, line in files.items():
        file.write_text(f"import tensorrt\n\ndef use(engine: tensorrt.ICudaEngine) -> None:\n    {line}\n")
    found: dict[str, set[bool]] = {line: set() for line in WRONG_IN}
    for is_11 in (False, True):
        surface = ["--always-true" if is_11 else "--always-false", "TENSORRT_11"]
        options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(folder / str(is_11))]
        output, errors, _ = api.run([*options, *surface, *map(str, files)])
        assert not errors
        for place in re.findall(r"^(.*): error: ", output, re.MULTILINE):
            name, _, number = place.rpartition(":")
            assert number == "4", output
            found[files[folder / Path(name).name]].add(is_11)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("line", WRONG_IN)
def test_mypy_finds_what_a_version_lacks(found_wrong: dict[str, set[bool]], line: str) -> None:
    assert found_wrong[line] == WRONG_IN[line]
