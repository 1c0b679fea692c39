"""The typed stub of TensorRT: mypy sees the names that the double has, in both surfaces."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
from mypy import api

from tests.tensorrt_double import Double, tensorrt_double

ROOT = Path(__file__).parents[2]
STUB = ast.parse((ROOT / "stubs" / "tensorrt" / "__init__.pyi").read_text(encoding="utf-8"))
SURFACES = [("10.3.0.30", False), ("11.4.0.106", True)]
NAMES_IN_DOUBLE = {  # by the stub's names, of classes that are never instantiated by name
    "ICudaEngine": "Engine",
    "IExecutionContext": "Context",
    "EngineInspector": "Inspector",
    "IBuilderConfig": "BuilderConfig",
    "IHostMemory": "HostMemory",
    "INetworkDefinition": "Network",
    "IOptimizationProfile": "OptimizationProfile",
    "ITimingCache": "TimingCache",
    "ParserError": "ParserError",
}
GONE_IN_11 = {  # in the stub so that mypy finds code that uses them; the double has none of them
    *("platform_has_fast_fp16", "supports_model", "all_shape_inputs_specified", "device_memory_size"),
    "create_execution_context_without_device_memory",
}


def members(body: list[ast.stmt], is_11: bool) -> dict[str, ast.stmt]:
    """Return the names that a stub's body declares for one surface."""
    found: dict[str, ast.stmt] = {}
    for statement in body:
        if isinstance(statement, ast.If):
            is_for_11 = not isinstance(statement.test, ast.UnaryOp)
            found |= members(statement.body if is_for_11 == is_11 else statement.orelse, is_11)
        elif isinstance(statement, (ast.ClassDef, ast.FunctionDef)):
            found[statement.name] = statement
        elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            found[statement.targets[0].id] = statement
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            found[statement.target.id] = statement
    return found


def find_in_double(double: Double, name: str) -> Any:
    from tests.tensorrt_double import building, running

    if name in NAMES_IN_DOUBLE:
        return getattr(building, NAMES_IN_DOUBLE[name], None) or getattr(running, NAMES_IN_DOUBLE[name])
    return getattr(double, name)


@pytest.mark.parametrize(("version", "is_11"), SURFACES)
def test_the_double_has_what_the_stub_has(version: str, is_11: bool) -> None:
    double = tensorrt_double(version)
    differences: list[str] = []
    for name, statement in members(STUB.body, is_11).items():
        if not isinstance(statement, ast.ClassDef) or name == "Dims":
            continue
        of_double = find_in_double(double, name)
        is_enum = any(isinstance(base, ast.Attribute) and base.attr == "Enum" for base in statement.bases)
        of_stub = members(statement.body, is_11)
        if is_enum:
            assert {member for member in of_stub if not member.startswith("__")} <= set(of_double.__members__), name
            continue
        for member, declared in of_stub.items():
            if not isinstance(declared, ast.FunctionDef) or member in GONE_IN_11 | {"__init__"}:
                continue
            found = getattr(of_double, member, None)
            expected = [argument.arg for argument in declared.args.args[1:]]
            if found is None:
                differences.append(f"{name}.{member}: not in the double")
            elif not isinstance(found, property):
                got = list(inspect.signature(found).parameters)[1:]
                if got[: len(expected)] != expected:
                    differences.append(f"{name}.{member}: {got}, not {expected}")
    assert not differences


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "is_wrong_in"),
    [
        ("tensorrt.BuilderFlag.FP16", {True}),
        ("tensorrt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH", {True}),
        ("engine.create_execution_context_without_device_memory()", {True}),
        ("tensorrt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY", {False}),
        ("engine.create_execution_context().execute_async_v3(1)", {False, True}),
        ("engine.create_execution_context(tensorrt.ExecutionContextAllocationStrategy.USER_MANAGED)", set()),
    ],
)
def test_mypy_finds_what_a_version_lacks(tmp_path: Path, line: str, is_wrong_in: set[bool]) -> None:
    code = tmp_path / "code.py"
    code.write_text(f"import tensorrt\n\ndef use(engine: tensorrt.ICudaEngine) -> None:\n    {line}\n")
    for is_11 in (False, True):
        surface = ["--always-true" if is_11 else "--always-false", "TENSORRT_11"]
        options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path / str(is_11))]
        output, errors, status = api.run([*options, *surface, str(code)])
        assert not errors
        assert bool(status) == (is_11 in is_wrong_in), output
