"""What Triton Inference Server runs: passes the bytes in its tensors on to patchcaption, and the captions back."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

import patchcaption  # noqa: F401  # finds the package runtime, whatever else is called so
from runtime.errors import PatchcaptionError
from runtime.serving.triton_requests import ImageRequest, Refusal


class TritonPythonModel:
    """One captioner per instance; its methods are those that the server calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the bundle."""
        _check_bindings()
        from runtime.serving.triton import TritonCaptioner  # the server imports this file once more, to look for hooks

        try:
            self._captioner = TritonCaptioner.open(args, pb_utils.Logger.log_error)
        except PatchcaptionError as error:
            raise pb_utils.TritonModelException(str(error)) from None

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests that the server has collected."""
        answers = self._captioner.answer([_images(request) for request in requests])
        return [_response(answer) for answer in answers]

    def finalize(self) -> None:
        """Release the bundle."""
        self._captioner.close()


def _check_bindings() -> None:
    """Refuse a NumPy whose arrays the server's bindings misread: they would end the model at the first request.

    Those of servers up to 2.51 were made for NumPy 1.
    """
    import torch

    probe = torch.tensor([1, 2], dtype=torch.uint8)
    if pb_utils.Tensor.from_dlpack("probe", probe).as_numpy().tolist() != probe.tolist():
        raise pb_utils.TritonModelException(
            f"numpy {np.__version__}: this server's Python backend cannot read its arrays; install 'numpy<2' where the "
            "server's Python finds it, or take a newer server"
        )


def _images(request: Any) -> list[ImageRequest]:
    """Return the images of a request, with the regions and options of each; none if nobody waits for them."""
    if request.is_cancelled():
        return []
    images = _texts(request, "IMAGE") or [b""]
    regions = _texts(request, "REGIONS") or [b""] * len(images)
    options = _texts(request, "OPTIONS") or [b""] * len(images)
    return list(map(ImageRequest, images, regions, options))


def _texts(request: Any, name: str) -> list[bytes]:
    """Return what an input holds, which may be missing."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return [] if tensor is None else tensor.as_numpy().ravel().tolist()


def _response(answer: list[bytes] | Refusal) -> Any:
    if isinstance(answer, Refusal):
        code = getattr(pb_utils.TritonError, answer.code)
        return pb_utils.InferenceResponse(error=pb_utils.TritonError(answer.line, code))
    if not answer:
        return pb_utils.InferenceResponse(error=pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED))
    captions = np.array(answer, np.object_).reshape(-1, 1)
    return pb_utils.InferenceResponse([pb_utils.Tensor("CAPTIONS", captions)])
