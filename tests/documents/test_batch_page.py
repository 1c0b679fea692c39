"""The page on many images: its commands run, its code reads what they write, and its tables are those of the code."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from runtime.batch.region_files import IMAGE_KEYS, READERS
from runtime.batch.result_files import FORMATS
from runtime.batch.rows import CaptionRow
from runtime.cli.main import main
from tests.conftest import SAMPLE
from tests.documents.test_documents import MANY_IMAGES, PAGES, blocks, command_lines, text_of

COMMANDS = [line for line in command_lines(PAGES) if line.split()[1] == "batch"]
HERE = [line for line in COMMANDS if "--ray" not in line]


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder with all that the commands name the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    Path("engines").mkdir()
    Path("engines/demo").symlink_to(demo_bundle)
    Path("photos").mkdir()
    with Image.open(SAMPLE / "scene.jpg") as scene:
        for number in range(12):
            scene.resize((96, 96)).rotate(30 * number).save(f"photos/{number}.jpg")
    Path("regions.json").write_text(json.dumps([{"kind": "whole_image"}, [10, 10, 60, 80]]))
    data = {"images": [{"id": 1, "file_name": "3.jpg"}], "annotations": [{"image_id": 1, "bbox": [10, 10, 40, 40]}]}
    Path("instances.json").write_text(json.dumps(data))


def arguments(command: str) -> list[str]:
    line = re.sub(r"\$\(\((\w+) \+ 1\)\)", "3", command)
    return shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("command", HERE)
def test_the_commands_run(command: str) -> None:
    assert main(arguments(command)) == 0


def test_there_are_commands_of_each_kind() -> None:
    assert len(HERE) == 3
    assert len(COMMANDS) == 4


def test_the_code_reads_the_results_and_the_parts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    command = [*arguments(next(line for line in HERE if "regions.json" in line)), "--part-images", "4"]
    (_, results), (_, so_far) = blocks("python", [MANY_IMAGES])
    with monkeypatch.context() as patch:
        patch.setattr("runtime.batch.progress.BatchProgress.add", stop)
        assert main(command) == 130
    exec(compile(so_far, "parts", "exec"), {})
    assert "background" in capsys.readouterr().out
    assert main(command) == 0
    assert capsys.readouterr().out == "captions.parquet: 24 rows of 12 images\n"
    exec(compile(results, "results", "exec"), {})
    assert list(pd.read_parquet("captions.parquet").columns) == list(CaptionRow.__dataclass_fields__)


def test_the_tables_are_those_of_the_code() -> None:
    text = text_of(MANY_IMAGES)
    forms = set(re.findall(r"^\| `(\.\w+)` \|", text, flags=re.MULTILINE))
    assert forms == set(READERS) - {".ndjson"}
    columns = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[a-z_`, ]+) \|", text, flags=re.MULTILINE)))
    assert columns == list(CaptionRow.__dataclass_fields__)
    assert all(f"`{key}`" in text for key in IMAGE_KEYS)
    assert all(f"`{suffix}`" in text for suffix in set(FORMATS) - {".ndjson"})
