"""Reports as Markdown tables, and the notes that belong under them."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from benchmarks.timing.report import Comparison, Report


def stage_table(report: Report) -> Table:
    """Return every row of a report."""
    bundle, backbone = report.bundle, report.bundle.backbone
    size = backbone.preprocessing.image_size
    title = f"{bundle.folder}: {backbone.name}, {size} px, {bundle.memory_rows:,} rows of memory; "
    headings = ("first ms", "best", "p50", "p90", "p99", "images/s", "regions/s", "GB/s", "GFLOP/s", "of limit")
    table = _table(title + report.settings.backend, ("stage", "regions", "tokens", *headings))
    for row in report.rows:
        times = row.times
        milliseconds = (times.first_ms, times.best_ms, times.p50_ms, times.p90_ms, times.p99_ms)
        rates = (row.images_per_s, row.regions_per_s, row.gigabytes_per_s, row.gflop_per_s)
        share = "" if row.limit_share is None else f"{row.limit_share:.0%}"
        table.add_row(
            row.stage, _integer(row.regions), _integer(row.tokens), *map(_three_digits, (*milliseconds, *rates)), share
        )
    return table


def stage_notes(report: Report) -> list[str]:
    """Return what a reader of `stage_table` must know."""
    settings, machine, limits = report.settings, report.machine, report.limits
    typical, worst = settings.tokens[0], settings.tokens[-1]
    board = f" ({machine.board})" if machine.board else ""
    notes = [
        f"ms of {settings.runs} runs after the first and {settings.warm_up} of warm-up; load {report.load_ms:.0f} ms; "
        f"peak memory {report.peak_mib:.0f} MiB",
        f"{machine.usable_cores} cores of {machine.cpu}{board}, {machine.torch_threads} threads of torch, "
        f"{machine.gpu or 'no GPU'}; load average {machine.load_average:.1f} at the start",
        f"tokens: every caption is taken through exactly so many steps, {typical} a typical caption, {worst} the worst",
        "whole: the stages of one run added up; second description: the same from the feature map on; caption and "
        f"describe: Captioner's own, {worst} steps, called after the stages; rest: what caption took beyond them",
        f"limit: {limits.copy_gb_per_s:.1f} GB/s copying, {limits.read_gb_per_s:.1f} reading, "
        f"{limits.fp32_gflop_per_s:.0f} GFLOP/s in float32, {limits.bf16_gflop_per_s:.0f} in bfloat16; of limit: how "
        "long the least work takes at the best of these, of p50",
    ]
    if any(row.limit_share is not None and row.limit_share > 1 for row in report.rows):
        notes.append("over 100%: from a cache, or the machine was busier when its limit was measured; measure again")
    return notes


def comparison_table(report: Report) -> Table:
    """Return the ratios to the published algorithm, of a report that has them."""
    comparison = _comparison(report)
    table = _table(
        f"against the published algorithm in torch; medians, interleaved runs: {comparison.runs}",
        ("part", "regions", "tokens", "ours ms", "eager ms", "times as fast"),
    )
    for ratio in comparison.ratios:
        columns = (_three_digits(ratio.ours_ms), _three_digits(ratio.eager_ms), f"{ratio.times_as_fast:.1f}")
        table.add_row(ratio.part, str(ratio.regions), str(ratio.tokens), *columns)
    return table


def comparison_notes(report: Report) -> list[str]:
    """Return what a reader of `comparison_table` must know."""
    comparison = _comparison(report)
    same = ", ".join(f"{count} of {regions}" for regions, count in comparison.same_captions.items())
    return [
        f"eager decodes {comparison.eager_steps} steps whatever the length, as the published code does not stop at the "
        "end of a caption",
        "the same weights, file, centre crop and boxes; backbone: preprocessing included",
        f"captions with exactly the same tokens: {same}",
    ]


def against_table(old: Report, new: Report) -> Table:
    """Return the rows that both reports have, with the old median over the new one."""
    table = _table(
        f"against the run of {old.made_at}", ("stage", "regions", "tokens", "then ms", "now ms", "then / now")
    )
    old_rows = {row.key: row for row in old.rows}
    for row in new.rows:
        old_row = old_rows.get(row.key)
        if old_row is not None and row.stage != "rest":
            medians_ms = (old_row.times.p50_ms, row.times.p50_ms)
            ratio = f"{medians_ms[0] / medians_ms[1]:.2f}"
            table.add_row(
                row.stage, _integer(row.regions), _integer(row.tokens), *map(_three_digits, medians_ms), ratio
            )
    return table


def against_notes(old: Report, new: Report) -> list[str]:
    """Return what differs between the two runs, other than the code."""
    then, now = (
        {
            "backend": one.settings.backend,
            "precision": one.settings.precision,
            "threads": one.settings.threads,
            "fit": one.settings.fit,
            "bytes of memory": one.bundle.memory_bytes,
            "cpu": one.machine.cpu,
            "board": one.machine.board,
            "gpu": one.machine.gpu,
            "cores": one.machine.usable_cores,
            "power mode": one.machine.power_mode,
            **one.machine.versions,
        }
        for one in (old, new)
    )
    changed = [f"{key} {then.get(key)} -> {now.get(key)}" for key in then | now if then.get(key) != now.get(key)]
    return ["then / now above 1: faster now; " + (", ".join(changed) or "same machine, versions and settings")]


def _comparison(report: Report) -> Comparison:
    if report.comparison is None:
        raise ValueError("this report has no comparison")
    return report.comparison


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(box=box.MARKDOWN, title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table


def _integer(number: int | None) -> str:
    return "" if number is None else str(number)


def _three_digits(number: float | None) -> str:
    """Format a number with three significant digits, larger ones without decimals."""
    if number is None:
        return ""
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"
