"""Asks a server through tritonclient, by either protocol."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import tritonclient.grpc
import tritonclient.http

Texts: TypeAlias = "Sequence[bytes] | None"
PROTOCOLS = ("http", "grpc")


def open_client(protocol: str, server: Any) -> Any:
    """Return a client, which is a context manager."""
    library = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
    return library.InferenceServerClient(getattr(server, protocol))


def inputs_of(protocol: str, images: Texts, regions: Texts = None, options: Texts = None) -> list[Any]:
    library = {"http": tritonclient.http, "grpc": tritonclient.grpc}[protocol]
    inputs = []
    for name, texts in (("IMAGE", images), ("REGIONS", regions), ("OPTIONS", options)):
        if texts is not None:
            tensor = library.InferInput(name, [len(texts), 1], "BYTES")
            tensor.set_data_from_numpy(np.array(texts, np.object_).reshape(-1, 1))
            inputs.append(tensor)
    return inputs


def ask(
    protocol: str,
    server: Any,
    images: Sequence[bytes],
    regions: Texts = None,
    options: Texts = None,
    model: str = "patchcaption",
) -> list[Any]:
    """Return the answer for each image."""
    with open_client(protocol, server) as client:
        result = client.infer(model, inputs_of(protocol, images, regions, options))
    return [json.loads(text) for text in result.as_numpy("CAPTIONS").ravel()]
