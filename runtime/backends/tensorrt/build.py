"""The calls of TensorRT's builder that plans and the doctor share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from runtime.backends.tensorrt.api import TensorRtApi
from runtime.bundle import ShapeRange
from runtime.errors import BackendError

if TYPE_CHECKING:
    import tensorrt

Profile: TypeAlias = Mapping[str, ShapeRange]
"""The shapes that each input with dynamic axes takes, by name."""
Configure: TypeAlias = "Callable[[tensorrt.IBuilderConfig], None]"


def build_plan_bytes(
    api: TensorRtApi,
    parse: Callable[[tensorrt.OnnxParser], bool],
    profiles: Iterable[Profile],
    source: str,
    configure: Configure | None = None,
) -> bytes:
    """Return the serialized plan of a graph, in a strongly typed network: its precision is the graph's.

    Args:
        parse: makes the parser read the graph.
        profiles: the shapes of all inputs with dynamic axes, for each use of the plan.
        source: the graph, for messages.
        configure: sets the builder's other options.

    Raises:
        BackendError: TensorRT cannot read or build it; with its own words.
    """
    module = api.module
    builder = api.require(module.Builder(api.logger), f"{source}: starting a builder")
    # By name: its number differs between versions. From 11 on every network is strongly typed, flag or not.
    typed = module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network = api.require(builder.create_network(1 << int(typed)), f"{source}: making a network")
    parser = module.OnnxParser(network, api.logger)
    if not parse(parser):
        errors = [_describe_parser_error(parser.get_error(index)) for index in range(parser.num_errors)]
        api.errors.clear()  # the parser has logged the same
        raise BackendError(f"{source}: {api.name} cannot read it: {'; '.join(errors) or 'no reason given'}")
    config = api.require(builder.create_builder_config(), f"{source}: making a configuration")
    if configure is not None:
        configure(config)
    for number, profile in enumerate(profiles):
        added = builder.create_optimization_profile()
        for name, shapes in profile.items():
            try:
                added.set_shape(name, shapes.min, shapes.opt, shapes.max)
            except (TypeError, RuntimeError) as error:  # what pybind and TensorRT raise
                api.errors.clear()
                raise BackendError(f"{source}: profile {number}: {name}: {error}") from error
        api.require(config.add_optimization_profile(added) >= 0, f"{source}: profile {number}")
    return bytes(api.require(builder.build_serialized_network(network, config), f"{source}: building its plan"))


def _describe_parser_error(error: tensorrt.ParserError) -> str:
    place = f"node {error.node()}: " if error.node() >= 0 else ""  # without one where the file is no graph
    return place + " ".join(error.desc().split())
