"""Asks a Triton Inference Server that has the model of `patchcaption triton-repository` (docs/triton.md).

    pip install 'tritonclient[grpc]'
    python examples/triton_client.py 127.0.0.1:8001 photo.jpg 276,174,507,399 90,420,321,648

Without boxes the whole image is described. For HTTP write `tritonclient.http`, and the port 8000.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

server, image, *boxes = sys.argv[1:]
regions = [{"kind": "box", "xyxy": json.loads(f"[{box}]")} for box in boxes] or [{"kind": "whole_image"}]


def text_input(name: str, value: bytes) -> triton.InferInput:
    given = triton.InferInput(name, [1, 1], "BYTES")
    given.set_data_from_numpy(np.array([[value]], np.object_))
    return given


inputs = [text_input("IMAGE", Path(image).read_bytes()), text_input("REGIONS", json.dumps(regions).encode())]
try:
    with triton.InferenceServerClient(server) as client:
        answer = client.infer("patchcaption", inputs, client_timeout=30)
except InferenceServerException as error:
    sys.exit(f"{server}: {error.message()}")
for caption in json.loads(answer.as_numpy("CAPTIONS")[0, 0]):
    print(caption["text"] or caption["error"])
