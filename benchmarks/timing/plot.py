"""A report as an image: the stages stacked, beside their times at the machine's limit."""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path

from benchmarks.timing.report import Report, Row
from benchmarks.timing.stages import STAGES
from runtime.errors import PatchcaptionError
from runtime.system.outputs import Output

_BAR, _GAP = 0.38, 0.02
"""Widths, where the distance between two cases is 1."""


def check_plotting() -> None:
    """Check that matplotlib is installed, before anything is measured.

    Raises:
        PatchcaptionError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise PatchcaptionError("--plot: matplotlib is not installed: pip install 'patchcaption[bench]'")


def plot(report: Report, path: Path) -> None:
    """Write a PNG: for each number of regions and each length of captions, a bar of p50 and one of the limit.

    Raises:
        PatchcaptionError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = {row.key: row for row in report.rows}
    cases = [(regions, tokens) for regions in report.settings.regions for tokens in report.settings.tokens]
    figure = Figure(figsize=(4 + 1.5 * len(cases), 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, case in enumerate(cases):
        p50_total_ms, limit_total_ms = 0.0, 0.0
        for colour, stage in enumerate(STAGES):
            row = _row(rows, stage, case)
            if row is None:
                continue
            label = stage if number == 0 else None
            p50_ms, limit_ms = row.times.p50_ms, row.limit_ms or 0.0
            axes.bar(number - _BAR / 2 - _GAP, p50_ms, _BAR, p50_total_ms, color=f"C{colour}", label=label)
            axes.bar(number + _BAR / 2 + _GAP, limit_ms, _BAR, limit_total_ms, color=f"C{colour}", alpha=0.4)
            p50_total_ms, limit_total_ms = p50_total_ms + p50_ms, limit_total_ms + limit_ms
        left, right = number - _BAR / 2 - _GAP, number + _BAR / 2 + _GAP
        axes.annotate(f"{p50_total_ms:,.0f}", (left, p50_total_ms), ha="center", va="bottom")
        share = f"{limit_total_ms / p50_total_ms:.0%}"
        axes.annotate(share, (right, limit_total_ms), ha="center", va="bottom")
    axes.set_xticks(range(len(cases)), [f"{regions} regions\n{tokens} tokens" for regions, tokens in cases])
    axes.set_ylabel("ms, median; pale: at the machine's limit")
    backbone = report.bundle.backbone
    axes.set_title(f"{backbone.name}, {backbone.preprocessing.image_size} px, {report.settings.backend}")
    figure.legend(loc="outside right upper")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    Output(path).write(picture.getvalue())


def _row(rows: dict[tuple[str, int | None, int | None], Row], stage: str, case: tuple[int, int]) -> Row | None:
    regions, tokens = case
    return rows.get((stage, regions, tokens)) or rows.get((stage, regions, None))
