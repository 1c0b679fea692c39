"""What a run found, as a file that a later run can be compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime.bundle import MANIFEST, Architecture, Bundle, DecoderSettings, sha256_of
from runtime.errors import PatchcaptionError
from runtime.system.files import write_output

SCHEMA: Literal[1] = 1

Positive = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Times(_Part):
    """How long something took, in milliseconds."""

    first_ms: float
    """The first call; it is in none of the other numbers."""
    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs_ms: tuple[float, ...]
    """The timed runs, after the first call and the warm-up."""

    @property
    def best_ms(self) -> float:
        """What other work on the machine disturbs least."""
        return min(self.runs_ms)

    @classmethod
    def of(cls, samples_ms: Sequence[float], warm_up: int) -> Times:
        """Of the samples of one first call, ``warm_up`` calls that do not count, and the timed runs."""
        runs_ms = tuple(samples_ms[1 + warm_up :])
        p50, p90, p99 = np.percentile(runs_ms, (50, 90, 99)).tolist()
        return cls(first_ms=samples_ms[0], p50_ms=p50, p90_ms=p90, p99_ms=p99, runs_ms=runs_ms)


class Row(_Part):
    """One stage, or several together, for one number of regions and one length of captions."""

    stage: str
    regions: int | None = None
    """None where it does not depend on them; so with `tokens`."""
    tokens: int | None = None
    times: Times
    images_per_s: float | None = None
    regions_per_s: float | None = None
    gflop: float | None = None
    """The work that there is (`benchmarks.timing.work`); so with `gigabytes`."""
    gigabytes: float | None = None
    limit_ms: float | None = None
    """How long this machine takes for that work at its best rates."""

    @property
    def key(self) -> tuple[str, int | None, int | None]:
        return self.stage, self.regions, self.tokens

    @property
    def gflop_per_s(self) -> float | None:
        return None if self.gflop is None else 1000 * self.gflop / self.times.p50_ms

    @property
    def gigabytes_per_s(self) -> float | None:
        return None if self.gigabytes is None else 1000 * self.gigabytes / self.times.p50_ms

    @property
    def limit_share(self) -> float | None:
        """How near it is to the machine's limit: the larger of its shares of the rates of memory and arithmetic."""
        return None if self.limit_ms is None else self.limit_ms / self.times.p50_ms


class Ratio(_Part):
    """Ours against the published algorithm, medians of interleaved runs."""

    part: str
    regions: int
    tokens: int
    ours_ms: Positive
    eager_ms: Positive

    @property
    def times_as_fast(self) -> float:
        return self.eager_ms / self.ours_ms


class Comparison(_Part):
    """Every part, each number of regions and each length; eager decodes ``eager_steps`` whatever the length."""

    runs: int
    eager_steps: int
    ratios: tuple[Ratio, ...]
    same_captions: dict[int, int]
    """For each number of regions, how many of the captions have exactly eager's tokens."""


class Settings(_Part):
    """What was asked for."""

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


class Machine(_Part):
    """Where it ran."""

    cpu: str
    board: str | None = None
    """Its model as the device tree gives it; None where there is none."""
    cores: int
    usable_cores: int
    torch_threads: int
    gpu: str | None
    power_mode: str | None
    """Of a Jetson, as nvpmodel says it."""
    load_average: float
    """Of the last minute when the run began: other work on the machine shows here."""
    versions: dict[str, str]


class Limits(_Part):
    """The machine's best rates with the run's threads, on the backend's device, measured in the same run."""

    copy_gb_per_s: Positive
    """A large copy; what is read and what is written both count."""
    read_gb_per_s: Positive
    """The sum of a large array."""
    fp32_gflop_per_s: Positive
    """A large matrix product."""
    bf16_gflop_per_s: Positive

    @property
    def gigabytes_per_s(self) -> float:
        return max(self.copy_gb_per_s, self.read_gb_per_s)


class BundleFacts(_Part):
    """What was timed."""

    folder: str
    checkpoint: str
    manifest_sha256: str
    architecture: Architecture
    decoding: DecoderSettings
    memory_rows: int
    memory_bytes: int

    @classmethod
    def of(cls, folder: Path) -> BundleFacts:
        """
        Raises:
            BundleError: no bundle there.
        """
        manifest = Bundle(folder, verify=False).manifest
        memory = manifest.memory
        return cls(
            folder=str(folder),
            checkpoint=manifest.build.checkpoint,
            manifest_sha256=sha256_of(folder / MANIFEST),
            architecture=manifest.architecture,
            decoding=manifest.decoding,
            memory_rows=memory.rows if memory else 0,
            memory_bytes=manifest.files[memory.embeddings].bytes if memory else 0,
        )

    def check_same_work(self, old: BundleFacts, path: Path) -> None:
        """
        Raises:
            PatchcaptionError: the bundle of the report in ``path`` does other work; it says in what.
        """
        here, there = (
            {f"architecture.{key}": value for key, value in facts.architecture}
            | {f"decoding.{key}": value for key, value in facts.decoding}
            | {"memory_rows": facts.memory_rows}
            for facts in (self, old)
        )
        unlike = [f"{key} {here[key]}, there {there[key]}" for key in here if here[key] != there[key]]
        if unlike:
            raise PatchcaptionError(f"{path}: it is of another bundle, which does other work: here {'; '.join(unlike)}")


class Report(_Part):
    """All of it."""

    schema_version: Literal[1] = SCHEMA
    made_at: str
    bundle: BundleFacts
    settings: Settings
    machine: Machine
    limits: Limits
    load_ms: float
    """From the folder to a captioner, sha256 of every file included."""
    peak_mib: float
    """Resident memory of the process at its highest, before limits and comparison were measured."""
    rows: tuple[Row, ...]
    comparison: Comparison | None = None

    @classmethod
    def read(cls, path: Path) -> Report:
        """
        Raises:
            PatchcaptionError: no report there, or one of another version.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise PatchcaptionError(f"{path}: cannot be read: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(step) for step in first["loc"]) or "the whole file"
            raise PatchcaptionError(
                f"{path}: expected what --json of this version writes: {place}: {first['msg']}; measure again"
            ) from None

    def write(self, path: Path) -> None:
        """
        Raises:
            PatchcaptionError: the file cannot be written.
        """
        with write_output(path) as part:
            part.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
