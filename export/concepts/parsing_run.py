"""A run of the scene graph parser over many captions, which goes on where an earlier one was interrupted.

Captions that are alike are parsed once, longest first. Each batch is appended to the file when it is done, so that what
a killed run has written is how the file of a whole run begins.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from export.checkpoint import CheckpointError
from export.concepts.graph_file import CAPTION, GRAPH, PARSER, graph_line, parse_line, parser_line
from export.concepts.graph_parser import GraphParser
from export.unfinished_work import lock_if_possible
from runtime.system.files import follow_links
from runtime.system.outputs import write_whole


def write_graphs(
    captions: Sequence[str], parser: GraphParser, out: Path, batch_size: int, on_progress: Callable[[int], None]
) -> int:
    """Append the graphs of those captions to a file that it does not hold yet.

    Args:
        batch_size: captions parsed at once; for one batch size the file is the same, interrupted or not.
        on_progress: called with the number of captions that are done.

    Returns:
        the number of captions that are not alike.

    Raises:
        CheckpointError: another parser, or another program, has written the file; or another run is at work there.
        OSError: the disk is full or cannot be written to.
    """
    distinct = sorted(dict.fromkeys(captions), key=lambda caption: -len(caption))
    with _claimed(out) as file:
        done = _written_captions(file, parser.identity, out)
        count = sum(caption in done for caption in distinct)
        on_progress(count)
        for start in range(0, len(distinct), batch_size):
            batch = distinct[start : start + batch_size]
            if all(caption in done for caption in batch):
                continue
            graphs = zip(batch, parser.parse(batch), strict=True)  # all of them: a graph depends on its batch's padding
            lines = [graph_line(caption, graph) for caption, graph in graphs if caption not in done]
            write_whole(file, "".join(lines).encode())
            count += len(lines)
            on_progress(count)
        os.fsync(file.fileno())
    return len(distinct)


@contextmanager
def _claimed(out: Path) -> Iterator[io.FileIO]:
    """Open a file to append to, and keep others out."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with io.FileIO(os.open(follow_links(out), flags, 0o666), "r+") as file:
        if not lock_if_possible(file.fileno()):
            raise CheckpointError(f"{out}: another run is at work there; wait for its end")
        yield file


def _written_captions(file: io.FileIO, identity: str, out: Path) -> set[str]:
    """Return the captions that a file has graphs of; leave its position behind the last whole line.

    What follows the last line break is what a killed run could not finish, and is cut off.
    """
    contents = file.readall()
    end = contents.rfind(b"\n") + 1
    if end == 0:
        if parser_line(identity).encode().startswith(contents):
            file.seek(0)
            file.truncate()
            write_whole(file, parser_line(identity).encode())
            return set()
        raise _foreign(out)
    try:
        header, *lines = contents[:end].decode("utf-8").split("\n")[:-1]
    except UnicodeDecodeError:
        raise _foreign(out) from None
    _check_parser(header, identity, out)
    done = set()
    for number, line in enumerate(lines, 2):
        fields = parse_line(line)
        if fields is None or not isinstance(fields.get(CAPTION), str) or not isinstance(fields.get(GRAPH), str):
            raise CheckpointError(
                f"{out}: line {number} is no graph of a caption; name another file, or remove that line"
            )
        done.add(fields[CAPTION])
    file.seek(end)
    file.truncate()
    return done


def _check_parser(header: str, identity: str, out: Path) -> None:
    fields = parse_line(header)
    if fields is None or set(fields) != {PARSER}:
        raise _foreign(out)
    if fields[PARSER] != identity:
        raise CheckpointError(f"{out}: another parser has written it; finish it with that one, or name another file")


def _foreign(out: Path) -> CheckpointError:
    return CheckpointError(
        f"{out}: another program has written it, and this command would append to it; name another file"
    )
