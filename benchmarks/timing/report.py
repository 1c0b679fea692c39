"""The report of a run, as a file that a later run can be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime.bundle import MANIFEST, BackboneConfig, Bundle, DecoderConfig, sha256_of
from runtime.errors import PatchcaptionError
from runtime.system.outputs import Output

SCHEMA: Literal[2] = 2

Positive = Annotated[float, Field(gt=0)]


class _ReportPart(BaseModel):
    """A part of the JSON file; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Times(_ReportPart):
    """Milliseconds of the calls of one stage."""

    first_ms: float
    """The first call, which no other number includes."""
    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs_ms: tuple[float, ...]
    """The timed runs, after the first call and the warm-up."""

    @property
    def best_ms(self) -> float:
        """The shortest run, which other work on the machine disturbs least."""
        return min(self.runs_ms)

    @classmethod
    def of(cls, samples_ms: Sequence[float], warm_up: int) -> Times:
        """Summarize samples: the first call, ``warm_up`` calls that do not count, and the timed runs."""
        runs_ms = tuple(samples_ms[1 + warm_up :])
        p50, p90, p99 = np.percentile(runs_ms, (50, 90, 99)).tolist()
        return cls(first_ms=samples_ms[0], p50_ms=p50, p90_ms=p90, p99_ms=p99, runs_ms=runs_ms)


class Row(_ReportPart):
    """One stage, or several together, for one number of regions and one length of captions."""

    stage: str
    regions: int | None = None
    """None for a stage that does not depend on it; the same holds for `tokens`."""
    tokens: int | None = None
    times: Times
    images_per_s: float | None = None
    regions_per_s: float | None = None
    gflop: float | None = None
    """The least arithmetic, and in `gigabytes` the least traffic (`benchmarks.timing.work_estimate`)."""
    gigabytes: float | None = None
    limit_ms: float | None = None
    """Time that this machine takes for that work at its best rates."""

    @property
    def key(self) -> tuple[str, int | None, int | None]:
        """The stage, regions and tokens, which no other row of a report shares."""
        return self.stage, self.regions, self.tokens

    @property
    def gflop_per_s(self) -> float | None:
        """The rate of arithmetic at the median."""
        return None if self.gflop is None else 1000 * self.gflop / self.times.p50_ms

    @property
    def gigabytes_per_s(self) -> float | None:
        """The rate of traffic at the median."""
        return None if self.gigabytes is None else 1000 * self.gigabytes / self.times.p50_ms

    @property
    def limit_share(self) -> float | None:
        """The time at the machine's best rates as a share of the median: 1 is as fast as the machine can be."""
        return None if self.limit_ms is None else self.limit_ms / self.times.p50_ms


class Ratio(_ReportPart):
    """Times of the runtime and of the published algorithm, medians of interleaved runs."""

    part: str
    regions: int
    tokens: int
    ours_ms: Positive
    eager_ms: Positive

    @property
    def times_as_fast(self) -> float:
        """The speed of the runtime in multiples of the published algorithm's."""
        return self.eager_ms / self.ours_ms


class Comparison(_ReportPart):
    """Ratios of every part, for each number of regions and each length of captions.

    The published algorithm decodes ``eager_steps`` steps whatever the length.
    """

    runs: int
    eager_steps: int
    ratios: tuple[Ratio, ...]
    same_captions: dict[int, int]
    """The captions with exactly the published algorithm's tokens, by the number of regions."""


class Settings(_ReportPart):
    """The options of a run."""

    regions: tuple[int, ...]
    images: int = 1
    tokens: tuple[int, ...]
    runs: int
    warm_up: int
    backend: str
    precision: str
    threads: int | None
    fit: str
    image: str


class Machine(_ReportPart):
    """The machine of a run."""

    cpu: str
    board: str | None = None
    """The board's model, as its device tree gives it."""
    cores: int
    usable_cores: int
    torch_threads: int
    gpu: str | None
    power_mode: str | None
    """The mode of a Jetson, as nvpmodel prints it."""
    load_average: float
    """The average of the minute before the run, in which other work on the machine shows."""
    versions: dict[str, str]


class Limits(_ReportPart):
    """The best rates of the machine with the run's threads, on the backend's device, measured in the same run."""

    copy_gb_per_s: Positive
    """Rate of a large copy; bytes read and bytes written both count."""
    read_gb_per_s: Positive
    """Rate at which a large array is summed."""
    fp32_gflop_per_s: Positive
    """Rate of a large matrix product."""
    bf16_gflop_per_s: Positive

    @property
    def gigabytes_per_s(self) -> float:
        """The better rate of memory."""
        return max(self.copy_gb_per_s, self.read_gb_per_s)


class BundleFacts(_ReportPart):
    """The bundle of a run, by what decides its work."""

    folder: str
    checkpoint: str
    manifest_sha256: str
    backbone: BackboneConfig
    decoder: DecoderConfig
    memory_rows: int
    memory_bytes: int

    @classmethod
    def of(cls, folder: Path) -> BundleFacts:
        """Read them from a bundle's manifest.

        Raises:
            BundleError: the folder holds no bundle.
        """
        manifest = Bundle(folder, verify=False).manifest
        memory = manifest.memory
        return cls(
            folder=str(folder),
            checkpoint=manifest.build.checkpoint,
            manifest_sha256=sha256_of(folder / MANIFEST),
            backbone=manifest.backbone,
            decoder=manifest.decoder,
            memory_rows=memory.num_rows if memory else 0,
            memory_bytes=manifest.files[memory.embeddings].bytes if memory else 0,
        )

    def check_same_work(self, old: BundleFacts, path: Path) -> None:
        """Check that the bundle of the report in ``path`` does the same work.

        Raises:
            PatchcaptionError: it does other work; the message names the differences.
        """
        here, there = (
            {f"backbone.{key}": value for key, value in facts.backbone}
            | {f"decoder.{key}": value for key, value in facts.decoder}
            | {"memory_rows": facts.memory_rows}
            for facts in (self, old)
        )
        differences = [f"{key} {here[key]}, there {there[key]}" for key in here if here[key] != there[key]]
        if differences:
            raise PatchcaptionError(
                f"{path}: it is of another bundle, which does other work: here {'; '.join(differences)}"
            )


class Report(_ReportPart):
    """All that a run measured, and on what."""

    schema_version: Literal[2] = SCHEMA
    made_at: str
    bundle: BundleFacts
    settings: Settings
    machine: Machine
    limits: Limits
    load_ms: float
    """Time to load the captioner, with the sha256 of every file."""
    peak_mib: float
    """Peak resident memory of the process, before limits and comparison were measured."""
    rows: tuple[Row, ...]
    comparison: Comparison | None = None

    @classmethod
    def read(cls, path: Path) -> Report:
        """Read a report that `write` wrote.

        Raises:
            PatchcaptionError: there is none, or it is another version's.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise PatchcaptionError(f"{path}: cannot be read: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            location = ".".join(str(step) for step in first["loc"]) or "the whole file"
            raise PatchcaptionError(
                f"{path}: expected what --json of this version writes: {location}: {first['msg']}; measure again"
            ) from None

    def write(self, path: Path) -> None:
        """Write the report as JSON, whole or not at all.

        Raises:
            PatchcaptionError: the file cannot be written.
        """
        Output(path).write(self.model_dump_json(indent=2).encode() + b"\n")
