"""What tuning found, as a table, as lines that say how to use the choice, and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from runtime.doctor.tuning import BATCH_SIZES, REGIONS, KernelRow, TunedRow, Tuning

_LEFT = "<"
_RIGHT = ">"


def table_lines(tuning: Tuning, images: str) -> Iterator[str]:
    """Yield the lines of the tables: combinations, then the projection's kernels where there are several.

    Args:
        images: what captions were compared on, in words.
    """
    first = tuning.rows[0].combination
    yield f"milliseconds, the shortest of several runs; quality as compared with {first.backend} in {first.precision}"
    yield f"on {images}: {tuning.images} of them, {tuning.captions} captions"
    heading = ["bundle", "graphs", "backend", "precision", "threads", "backbone"]
    heading += [f"{count} caption{'s' * (count > 1)}" for count in BATCH_SIZES]
    heading += ["sum", "times as fast", "captions the same", "cosine of tokens"]
    yield from _aligned([heading, *(_cells(tuning, row) for row in tuning.rows)], words=5)
    if tuning.kernels:
        yield ""
        heading = ["bundle", "projection by"] + [f"{count} region{'s' * (count > 1)}" for count in REGIONS]
        yield from _aligned([heading, *map(_kernel_cells, tuning.kernels)], words=2)


def choice_lines(tuning: Tuning) -> Iterator[str]:
    """Yield what was chosen, and how it is used."""
    chosen = tuning.chosen.combination
    kernels = tuning.kernels_of(chosen.bundle)
    projection = "" if kernels is None else f", projection by {kernels}"
    yield (
        f"chosen: {chosen}{projection}: "
        f"{tuning.speedup(tuning.chosen):.1f} times as fast, {tuning.chosen.quality.agreement:.1%} of captions the same"
    )
    needs_precision = chosen.precision != "fp32"
    flag, keyword = (" --precision auto", ', precision="auto"') if needs_precision else ("", "")
    yield f"use it: patchcaption caption IMAGE --bundle {shlex.quote(chosen.bundle)}{flag}"
    yield f"        Captioner.load({chosen.bundle!r}{keyword})"


def tuning_as_json(tuning: Tuning) -> dict[str, Any]:
    """Return all that was measured as JSON values."""
    return {
        "images": tuning.images,
        "captions": tuning.captions,
        "min_agreement": tuning.min_agreement,
        "rows": [_row_as_json(tuning, row) for row in tuning.rows],
        "kernels": [
            {"bundle": row.bundle, "kernels": row.kernels, "projection_ms": _by_count(row.projection_ms)}
            for row in tuning.kernels
        ],
        "left_out": list(tuning.left_out),
        "chosen": {
            **_combination_as_json(tuning.chosen),
            "kernels": tuning.kernels_of(tuning.chosen.combination.bundle),
        },
    }


def _row_as_json(tuning: Tuning, row: TunedRow) -> dict[str, Any]:
    return {
        **_combination_as_json(row),
        "graphs": row.graphs,
        "backbone_ms": round(row.backbone_ms, 3),
        "decoding_ms": _by_count(row.decoding_ms),
        "speedup": round(tuning.speedup(row), 3),
        "agreement": row.quality.agreement,
        "cosine": row.quality.cosine,
    }


def _combination_as_json(row: TunedRow) -> dict[str, Any]:
    one = row.combination
    return {"bundle": one.bundle, "backend": one.backend, "precision": one.precision, "threads": one.threads}


def _by_count(milliseconds: dict[int, float]) -> dict[str, float]:
    return {str(count): round(ms, 3) for count, ms in milliseconds.items()}


def _cells(tuning: Tuning, row: TunedRow) -> list[str]:
    one = row.combination
    times = [row.backbone_ms, *row.decoding_ms.values(), row.milliseconds]
    return [
        one.bundle,
        row.graphs,
        one.backend,
        one.precision,
        "all" if one.threads is None else str(one.threads),
        *(f"{ms:.1f}" for ms in times),
        f"{tuning.speedup(row):.2f}",
        f"{row.quality.agreement:.1%}",
        f"{row.quality.cosine:.5f}",
    ]


def _kernel_cells(row: KernelRow) -> list[str]:
    return [row.bundle, row.kernels, *(f"{ms:.2f}" for ms in row.projection_ms.values())]


def _aligned(rows: Sequence[Sequence[str]], words: int) -> Iterator[str]:
    """Yield rows with their columns aligned: the first ones are words, the others numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            f"{cell:{_LEFT if number < words else _RIGHT}{width}}"
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
