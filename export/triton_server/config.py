"""Writes config.pbtxt: what Triton is told of the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["cpu", "gpu"]

MARK = "# Written by `patchcaption triton-repository`."
"""How the file begins, by which a model of ours is known."""

_TEMPLATE = """{mark} What the lines mean: docs/triton.md.
backend: "python"
max_batch_size: {max_batch_size}
input [
  {{ name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "REGIONS" data_type: TYPE_STRING dims: [ 1 ] optional: true }},
  {{ name: "OPTIONS" data_type: TYPE_STRING dims: [ 1 ] optional: true }}
]
output [
  {{ name: "CAPTIONS" data_type: TYPE_STRING dims: [ 1 ] }}
]
dynamic_batching {{
  max_queue_delay_microseconds: {max_queue_delay_us}
  default_queue_policy {{ max_queue_size: {max_queue_size} }}
}}
instance_group [
  {{ count: {instances} kind: KIND_{kind}{gpus} }}
]
"""


@dataclass(frozen=True)
class ModelConfig:
    """What config.pbtxt says.

    Attributes:
        kind: what the instances run on.
        instances: captioners, each in a process of its own; for GPUs, on the first one.
        max_batch_size: the most images of a batch.
        max_queue_delay_us: how long the first request of a batch waits for others.
        max_queue_size: requests that wait at a time; more are refused.
        parameters: of the model, by name.
    """

    kind: Kind
    instances: int
    max_batch_size: int
    max_queue_delay_us: int
    max_queue_size: int
    parameters: Mapping[str, object]

    def text(self) -> str:
        """Return the file, in protobuf's text format."""
        lines = _TEMPLATE.format(
            mark=MARK,
            max_batch_size=self.max_batch_size,
            max_queue_delay_us=self.max_queue_delay_us,
            max_queue_size=self.max_queue_size,
            instances=self.instances,
            kind=self.kind.upper(),
            gpus=" gpus: [ 0 ]" if self.kind == "gpu" else "",
        )
        return lines + "".join(
            f'parameters {{ key: "{name}" value: {{ string_value: {_quoted(str(value))} }} }}\n'
            for name, value in self.parameters.items()
        )


def _quoted(text: str) -> str:
    """Return a text without control characters as a string of protobuf's text format."""
    return json.dumps(text, ensure_ascii=False)
