"""What computes the captions of a bundle on this machine, and what would be faster here."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from runtime.backends import Selection, select_backend
from runtime.backends.measurements import read_measurement
from runtime.backends.registry import BACKENDS, TAKES_BFLOAT16
from runtime.bundle import Bundle
from runtime.errors import BackendError
from runtime.memory import native_kernels
from runtime.system.installation import NATIVE_FIX
from runtime.system.machine import multiplies_bfloat16, multiplies_int8, package_version, usable_cores

_WIDE_BANK_BYTES = 2**22
"""Of a memory bank that does not stay in a core's cache: reading it is most of a projection."""
_LARGE_BACKBONE_BYTES = 2**25
"""Of a backbone whose products are most of what it does."""


def in_use(bundle: Bundle) -> dict[str, str]:
    """Return what captions are computed with where a bundle is loaded with no options: kernels, threads, precision."""
    manifest = bundle.manifest
    graphs, memory, selection = manifest.engines["backbone"].precision, manifest.memory, select_backend(bundle)
    bank = "" if memory is None else f", the memory bank is stored in {memory.precision}"
    chosen, cores = selection.threads, f"{usable_cores()} cores"
    of_engine = f"all of {cores}" if chosen is None else f"{chosen} of {cores}, as measured"
    kernels = _kernels() if selection.kernels is None else f"{selection.kernels}, as measured"
    return {
        "kernels": f"projection by {kernels}",
        "threads": f"an engine may use {of_engine}, torch {torch.get_num_threads()} threads",
        "precision": f"that of the graphs, {graphs}{bank}",
    }


def faster_here(bundle: Bundle) -> Iterator[str]:
    """Yield what would make a bundle faster on this machine, with the way to it; nothing that is not known to help."""
    selection, graphs = select_backend(bundle), bundle.manifest.engines["backbone"].precision
    if not selection.is_measured:
        yield f"{selection.backend} was not measured: patchcaption tune {bundle.folder} finds out what is fastest"
    yield from _kept_choice(bundle, selection)
    on_cpu = BACKENDS[selection.backend].device == "cpu"
    if on_cpu and graphs == "fp32" and multiplies_int8() and bundle.manifest.backbone_bytes > _LARGE_BACKBONE_BYTES:
        yield (
            "patchcaption build with --precision int8 --calibration FOLDER, for --backend openvino: this processor "
            "multiplies 8 bits"
        )
    if on_cpu and graphs in TAKES_BFLOAT16 and multiplies_bfloat16() and not _has_tried_bf16(bundle):
        install = "" if package_version("openvino") else "pip install 'patchcaption[openvino]', then "
        yield f"{install}--backend openvino --precision bf16: this processor multiplies bfloat16"
    if on_cpu and torch.cuda.is_available():
        yield "a bundle that is built for this GPU: patchcaption build with --backend ort-cuda or tensorrt"
    if bundle.manifest.memory is not None and _kernels() == "torch":
        yield f"the native kernels: {NATIVE_FIX}"
    if on_cpu and _bank_bytes(bundle) > _WIDE_BANK_BYTES:
        yield "a memory bank in int8, a quarter of the bytes to read: patchcaption build with --memory-precision int8"


def _kept_choice(bundle: Bundle, default: Selection) -> Iterator[str]:
    """Yield how to use what `patchcaption tune` chose, where that is not what is used without asking for it."""
    kept = select_backend(bundle, "auto")
    if kept.milliseconds is None or default.milliseconds is None or kept.precision == default.precision:
        return
    speedup = default.milliseconds / kept.milliseconds
    yield f"--precision auto: {kept.backend} in {kept.precision}, measured to be {speedup:.1f} times as fast"


def _has_tried_bf16(bundle: Bundle) -> bool:
    measurement = read_measurement(bundle)
    return measurement is not None and measurement.has_tried("bf16")


def _kernels() -> str:
    """Return the variant of the native kernels that projects; "torch" where there are none."""
    try:
        library = native_kernels.library()
    except BackendError:  # which the doctor finds apart
        return "torch"
    return "torch" if library is None else library.variants[0]


def _bank_bytes(bundle: Bundle) -> int:
    """Return the size of a memory bank that is stored in float32; 0 of any other."""
    memory = bundle.manifest.memory
    return 0 if memory is None or memory.precision != "fp32" else bundle.manifest.files[memory.embeddings].bytes
