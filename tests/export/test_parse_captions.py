"""Parsing captions into scene graphs: a small T5 beside its own tokens, runs that are killed and go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import T5ForConditionalGeneration

from export import parse_captions
from export.concepts.graph_file import read_graph_lines
from export.concepts.graph_parser import GraphParser, load_graph_parser
from export.concepts.parsing_run import write_graphs
from tests.children import run_child
from tests.export.small_parser import WORDS, write_parser

CAPTIONS = ["a dog", "a cat on a ball", "man", "a man on a dog 's ball", "a dog", " cat ", "a ball on a dog on a man"]
CAPTIONS += [""]
BATCH = 3


@pytest.fixture(scope="session")
def parser_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parser")
    write_parser(folder)
    return folder


@pytest.fixture(scope="session")
def parser(parser_folder: Path) -> GraphParser:
    return load_graph_parser(str(parser_folder), "cpu")


@pytest.fixture(scope="session")
def whole_file(parser: GraphParser, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a run writes that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole") / "graphs.jsonl"
    write_graphs(CAPTIONS, parser, out, BATCH, print)
    return out.read_bytes()


def test_graphs_are_what_the_model_writes_greedily(parser: GraphParser, parser_folder: Path) -> None:
    model = T5ForConditionalGeneration.from_pretrained(parser_folder).eval()
    captions = ["a dog on a ball", "man"]
    texts = []
    for caption in captions:
        ids = torch.tensor([[WORDS.index(word) for word in f"Generate Scene Graph: {caption} </s>".split()]])
        written = [0]
        with torch.inference_mode():
            while len(written) < 128 and written[-1] != 1:
                logits = model(input_ids=ids, decoder_input_ids=torch.tensor([written])).logits[0, -1]
                written.append(int(logits.argmax()))
        words = [WORDS[token] for token in written if token > 2]
        text = " ".join(words).replace("Generate Scene Graph:", "")
        for mark in (" .", " ,", " n't", " 's"):
            text = text.replace(mark, mark[1:])
        texts.append(" ".join(text.replace("(", " ( ").replace(")", " ) ").replace(",", " , ").split()))
    assert parser.parse(captions) == texts
    assert len(texts[0].split()) > 20
    assert texts[0] != texts[1] != ""


def test_long_captions_are_cut(parser: GraphParser) -> None:
    long = "a dog " * 500
    assert parser.parse([long]) == parser.parse([long[: 6 * 100]])


def test_graphs_are_written_once_for_each_caption_the_longest_first(whole_file: bytes, parser: GraphParser) -> None:
    header, *lines = whole_file.decode().splitlines()
    assert json.loads(header) == {"parser": parser.identity}
    written = [json.loads(line) for line in lines]
    assert [line["caption"] for line in written] == sorted(dict.fromkeys(CAPTIONS), key=len, reverse=True)
    batches = [written[start : start + BATCH] for start in range(0, len(written), BATCH)]
    for batch in batches:
        assert [line["graph"] for line in batch] == parser.parse([line["caption"] for line in batch])


def test_a_run_goes_on_from_wherever_it_was_killed(whole_file: bytes, parser: GraphParser, tmp_path: Path) -> None:
    lines = [index + 1 for index, byte in enumerate(whole_file) if byte == ord("\n")]
    for end in (0, 5, lines[0] - 1, lines[0], lines[1] + 9, lines[3], lines[4] - 1, lines[-1] - 1, lines[-1]):
        (tmp_path / "graphs.jsonl").write_bytes(whole_file[:end])
        progress: list[int] = []
        write_graphs(CAPTIONS, parser, tmp_path / "graphs.jsonl", BATCH, progress.append)
        assert (tmp_path / "graphs.jsonl").read_bytes() == whole_file, end
        assert progress[0] == max(0, whole_file[:end].count(b"\n") - 1)
        assert progress[-1] == len(set(CAPTIONS))
        assert progress == sorted(progress)


KILLED = """
import os, signal, sys
from export import parse_captions
from export.concepts import parsing_run

def write(file, data, write=parsing_run.write_whole):
    if b"caption" in data and len(done) == 1:
        os.write(file.fileno(), data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    done.extend([data] * (b"caption" in data))
    write(file, data)

done = []
parsing_run.write_whole = write
parse_captions.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_file(
    whole_file: bytes, parser_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "captions.json").write_text(json.dumps(CAPTIONS))
    out = tmp_path / "graphs.jsonl"
    arguments = [
        str(tmp_path / "captions.json"),
        "--out",
        str(out),
        "--parser",
        str(parser_folder),
        "--batch-size",
        "3",
    ]
    assert run_child(KILLED, *arguments).returncode == -9
    assert whole_file.startswith(out.read_bytes())
    assert 0 < len(out.read_bytes()) < len(whole_file)
    assert parse_captions.main(arguments) == 0
    assert out.read_bytes() == whole_file
    assert "graphs.jsonl: the scene graphs of 7 captions" in " ".join(capsys.readouterr().out.split())


def test_captions_that_are_new_are_added(whole_file: bytes, parser: GraphParser, tmp_path: Path) -> None:
    (tmp_path / "graphs.jsonl").write_bytes(whole_file)
    assert write_graphs([*CAPTIONS, "a ball"], parser, tmp_path / "graphs.jsonl", BATCH, print) == 8
    assert (tmp_path / "graphs.jsonl").read_bytes().startswith(whole_file)
    assert set(read_graph_lines(tmp_path / "graphs.jsonl")) == {*CAPTIONS, "a ball"}


def test_the_files_of_others_are_left_alone(
    whole_file: bytes, parser_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "captions.txt").write_text("a dog\n")
    header, first = whole_file.split(b"\n")[:2]
    cases = {
        b'{"caption": "a", "graph": "b"}\n': "another program has written it",
        b"notes": "another program has written it",
        b"\xff\n": "another program has written it",
        b'{"parser": "t5 0"}\n': "another parser has written it",
        header + b"\n" + first + b"\n[]\n": "line 3 is no graph of a caption",
    }
    for contents, message in cases.items():
        (tmp_path / "out.jsonl").write_bytes(contents)
        assert run(tmp_path / "captions.txt", tmp_path / "out.jsonl", parser_folder) == 1
        assert f"out.jsonl: {message}" in " ".join(capsys.readouterr().err.split())
        assert (tmp_path / "out.jsonl").read_bytes() == contents


def run(captions: Path, out: Path, parser_folder: Path, *more: str) -> int:
    return parse_captions.main([str(captions), "--out", str(out), "--parser", str(parser_folder), *more])


def test_too_many_captions_at_once_are_named(
    parser_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(T5ForConditionalGeneration, "generate", fail)
    (tmp_path / "captions.txt").write_text("a dog\na cat\n")
    assert run(tmp_path / "captions.txt", tmp_path / "out.jsonl", parser_folder) == 1
    assert "error: --batch-size 2: the device has no memory for so many captions" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(
    parser_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(T5ForConditionalGeneration, "generate", interrupt)
    (tmp_path / "captions.txt").write_text("a dog\n")
    assert run(tmp_path / "captions.txt", tmp_path / "out.jsonl", parser_folder) == 130
    assert "interrupted; the same command goes on from here" in capsys.readouterr().err


def test_mistakes_are_one_line_before_the_work(
    parser_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    captions, out = tmp_path / "captions.json", tmp_path / "out.jsonl"
    captions.write_text('["a dog"]')
    (tmp_path / "bad.json").write_text('["\\ud800"]')
    (tmp_path / "empty").mkdir()
    cases = [
        (run(tmp_path / "gone.txt", out, parser_folder), "gone.txt: no such file"),
        (run(tmp_path / "bad.json", out, parser_folder), "bad.json: caption 0: it is not UTF-8"),
        (run(captions, tmp_path / "nowhere" / "out.jsonl", parser_folder), "nowhere does not exist"),
        (run(captions, captions, parser_folder), "is read, and would be overwritten"),
        (run(captions, out, tmp_path / "empty"), "--parser"),
        (run(captions, out, captions), "expected a folder of transformers, or a repository of the hub, got a file"),
        (run(captions, out, parser_folder, "--device", "banana"), "cannot be loaded: Expected one of cpu"),
        (run(captions, Path("/dev/null"), parser_folder), "expected a file, which can be gone on with"),
    ]
    errors = capsys.readouterr().err.strip().splitlines()
    assert [code for code, _ in cases] == [1] * len(cases)
    assert len(errors) == len(cases)
    for error, (_, message) in zip(errors, cases, strict=True):
        assert error.startswith("error: ")
        assert message in error
    assert not out.exists()
