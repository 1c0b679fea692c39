"""Checks a bundle on every backend that can open it: parity with the CPU, fusion, capture, memory and speed."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F

from runtime.backends import BACKENDS, BackendName, open_backend
from runtime.bundle import Bundle
from runtime.captioner import Captioner
from runtime.doctor.advice import faster_here, in_use
from runtime.doctor.finding import Finding
from runtime.errors import BackendError, PatchcaptionError
from runtime.features import FeatureMap
from runtime.hub import open_bundle
from runtime.regions import Box, Region, WholeImage
from runtime.results import Caption

_IMAGE_WH = (640, 480)
_REGIONS: list[Region] = [Box(40, 40, 300, 260), Box(320, 200, 600, 460), Box(10, 200, 200, 470), WholeImage()]
_MIN_COSINE = {"fp32": 0.999}
_MIN_COSINE_HALF_PRECISION = 0.98
_RUNS = 3


def on_bundle(named: str | os.PathLike[str]) -> Iterator[Finding]:
    """Yield findings of a bundle, backend by backend, compared with the first that runs it on the CPU."""
    try:
        bundle = open_bundle(named)
    except PatchcaptionError as error:
        yield Finding(Path(named).name, "fail", str(error), "build the bundle again")
        return
    folder, label = bundle.folder, Path(named).name
    reference: _BackendOutputs | None = None
    for name, spec in BACKENDS.items():  # those of the CPU are the first
        subject = f"{label} on {name}"
        reason = _unavailable_reason(bundle, name)
        if reason is not None:
            yield Finding(subject, "unavailable", reason)
            continue
        try:
            outputs = _BackendOutputs.of(folder, name)
        except PatchcaptionError as error:
            yield Finding(subject, "fail", str(error), "build the bundle again here; report it with --json if it stays")
            continue
        if reference is None and spec.device == "cpu":
            reference = outputs
        yield from outputs.findings(subject, reference)
    for part, what in in_use(bundle).items():
        yield Finding(f"{label}: {part}", "pass", what)
    for advice in faster_here(bundle):
        yield Finding(f"{label}: faster", "advice", advice)


def _unavailable_reason(bundle: Bundle, backend: BackendName) -> str | None:
    """Return why nobody can expect a bundle to run on a backend; None where it should."""
    if BACKENDS[backend].needs_plans and not bundle.manifest.plans:
        return f"no plans were built of it: patchcaption build-plans {bundle.folder}"
    try:
        open_backend(backend, bundle=bundle)
    except BackendError as error:
        return str(error)
    return None


class _BackendOutputs:
    """The result of a backend for one image, its speed, and its engines."""

    def __init__(self, captioner: Captioner, features: FeatureMap, captions: list[Caption]) -> None:
        self._name, self._precision = captioner.backend.name, captioner.manifest.engines["backbone"].precision
        self._tokens, self._texts = features.tokens.float().cpu(), [caption.text for caption in captions]
        self._encode_ms = _best_ms(lambda: captioner.encode(_image()).tokens.cpu())
        self._describe_ms = _best_ms(lambda: captioner.describe(features, _REGIONS))
        self._captured, self._layers = captioner.captured(), captioner.fused_layers()
        self._is_on_gpu = captioner.backend.device.type == "cuda"
        self._gpu_mib = torch.cuda.max_memory_allocated() / 2**20 if self._is_on_gpu else 0.0

    @classmethod
    def of(cls, folder: Path, backend: str) -> _BackendOutputs:
        with Captioner.load(folder, backend, verify=False) as captioner:
            features = captioner.encode(_image())
            return cls(captioner, features, captioner.describe(features, _REGIONS))

    def findings(self, subject: str, reference: _BackendOutputs | None) -> Iterator[Finding]:
        yield self._parity(subject, reference)
        yield Finding(
            f"{subject}: speed", "pass", f"encode {self._encode_ms:.1f} ms, 4 regions {self._describe_ms:.1f} ms"
        )
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        on_gpu = f", {self._gpu_mib:.0f} MiB of torch's on the GPU" if self._is_on_gpu else ""
        yield Finding(f"{subject}: memory", "pass", f"at most {peak_mib:.0f} MiB of this process{on_gpu}")
        if self._is_on_gpu:
            yield self._capture(subject)
        if self._layers is not None:
            yield self._fusion(subject)

    def _parity(self, subject: str, reference: _BackendOutputs | None) -> Finding:
        if reference is None:
            detail = f"{self._name}: no backend of the CPU to compare with; pip install 'patchcaption[cpu]'"
            return Finding(f"{subject}: parity", "unavailable", detail)
        cosine = float(F.cosine_similarity(self._tokens, reference._tokens, dim=-1).min())
        same = sum(ours == theirs for ours, theirs in zip(self._texts, reference._texts, strict=True))
        detail = f"{self._name}: tokens' cosine at least {cosine:.5f}, {same} of {len(self._texts)} captions the same"
        if cosine >= _MIN_COSINE.get(self._precision, _MIN_COSINE_HALF_PRECISION):
            return Finding(f"{subject}: parity", "pass", detail)
        return Finding(f"{subject}: parity", "fail", detail, "build the bundle with --precision fp32, and report it")

    def _capture(self, subject: str) -> Finding:
        reasons = [reason for of_engine in self._captured.values() for reason in of_engine if reason]
        if not reasons:
            counts = ", ".join(f"{len(ones)} of the {name}" for name, ones in self._captured.items() if ones)
            return Finding(f"{subject}: graph capture", "pass", f"CUDA graphs: {counts}")
        return Finding(f"{subject}: graph capture", "fail", reasons[0], "it runs without; report it with --json")

    def _fusion(self, subject: str) -> Finding:
        assert self._layers is not None
        fused = [layer for layer in self._layers if "mha" in layer.lower()]
        if fused:
            return Finding(f"{subject}: attention", "pass", f"{len(fused)} fused layers of {len(self._layers)}")
        fix = "--precision fp16 or bf16: attention in float32 is never fused"
        return Finding(f"{subject}: attention", "fail", f"no fused layer among {len(self._layers)}", fix)


def _image() -> torch.Tensor:
    width, height = _IMAGE_WH
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def _best_ms(call: Callable[[], object]) -> float:
    durations = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    return 1000 * min(durations)
