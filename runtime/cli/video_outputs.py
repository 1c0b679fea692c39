"""Where the described frames of `patchcaption video` go."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TypeAlias

from runtime.cli import exits
from runtime.errors import PatchcaptionError
from runtime.output.csv_table import csv_table
from runtime.output.json_lines import json_lines
from runtime.output.preview import PreviewWindow
from runtime.output.subtitles import SUBRIP, WEBVTT, subtitles
from runtime.output.video_file import AnnotatedVideo, annotated_video
from runtime.system.outputs import Output
from runtime.system.standard_streams import one_line, show
from runtime.video.frames import Source
from runtime.video.stream import FrameCaptions

Sink: TypeAlias = Callable[[FrameCaptions, str], object]
"""Takes a frame and the name of its source."""

_OF_ONE_SOURCE = ("--save", "--srt", "--vtt")


def named_outputs(options: argparse.Namespace) -> Mapping[str, Output | None]:
    """Return the outputs by their flags.

    Raises:
        PatchcaptionError: one is of one source only, and there are several.
    """
    outputs = {
        "--save": options.save,
        "--jsonl": options.jsonl,
        "--csv": options.csv,
        "--srt": options.srt,
        "--vtt": options.vtt,
    }
    if len(options.sources) > 1:
        given = [flag for flag in _OF_ONE_SOURCE if outputs[flag] is not None] + ["--show"] * options.show
        if given:
            raise PatchcaptionError(
                f"{given[0]}: expected one source, got {len(options.sources)}: only --jsonl and --csv hold several"
            )
    return outputs


class VideoOutputs:
    """The files, the printed lines and the window that take the frames.

    Args:
        sources: those of the frames.
        stack: closes the files.
        write: prints a line beside the bar of progress.
        window: None where there is none.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        sources: Sequence[Source],
        stack: ExitStack,
        write: Callable[..., object],
        window: PreviewWindow | None,
    ) -> None:
        self._options, self._stack = options, stack
        self._video: AnnotatedVideo | None = None
        self._has_several = len(options.sources) > 1
        self._sinks = [*self._rows(), *self._of_one_source(sources)]
        if not any((options.jsonl, options.csv, options.srt, options.vtt)):
            file = sys.stderr if options.save is not None and options.save.is_stdout else sys.stdout
            self._sinks.insert(0, partial(_print_new_captions, self._has_several, partial(write, file=file)))
        if window is not None:
            self._sinks.append(lambda described, _: window.add(described))

    @property
    def are_left(self) -> bool:
        """Whether anybody takes more frames."""
        return bool(self._sinks)

    def add(self, described: FrameCaptions, source: str) -> None:
        """Give a frame to all. A pipe whose reader has gone takes no more, while the others go on."""
        self._sinks = [sink for sink in self._sinks if _takes(sink, described, source)]

    def finish(self) -> None:
        """Write what goes beyond the last frame of a source that has come to its end."""
        if self._video is not None:
            self._video.add_rest_of_sound()

    def _rows(self) -> list[Sink]:
        sinks: list[Sink] = []
        if self._options.jsonl:
            lines = self._stack.enter_context(json_lines(self._options.jsonl, exits.note))
            sinks.append(lambda described, source: lines.add(described, source if self._has_several else None))
        if self._options.csv:
            sinks.append(self._stack.enter_context(csv_table(self._options.csv, exits.note)).add)
        return sinks

    def _of_one_source(self, sources: Sequence[Source]) -> list[Sink]:
        """Open the outputs of one source. Subtitles go with the video that is saved, where there is one."""
        options, source = self._options, sources[0]
        rate = source.rate and source.rate / options.every
        sinks: list[Sink] = []
        for output, style in ((options.srt, SUBRIP), (options.vtt, WEBVTT)):
            if output:
                start_s = options.start if options.save else 0.0
                recorder = self._stack.enter_context(subtitles(output, exits.note, style, rate, start_s))
                sinks.append(lambda described, _, add=recorder.add: add(described))  # type: ignore[misc]
        if options.save:
            if source.has_sound and source.sound is None:
                exits.note(f"{options.save}: without sound: that of a camera or a live URL is not kept")
            self._video = video = self._stack.enter_context(
                annotated_video(options.save, exits.note, rate, source.sound, options.start)
            )
            sinks.append(lambda described, _: video.add(described))
        return sinks


def _takes(sink: Sink, described: FrameCaptions, source: str) -> bool:
    """Give a frame to a sink; return False if it is a pipe whose reader has gone."""
    try:
        sink(described, source)
    except BrokenPipeError:
        return False
    return True


def _print_new_captions(
    names_source: bool, write: Callable[[str], object], described: FrameCaptions, source: str
) -> None:
    seconds = described.frame.seconds
    time = f"{seconds:8.2f} s" if seconds is not None else f"frame {described.frame.number:>4}"
    place = f"{one_line(source)}  {time}" if names_source else time
    for number, caption in enumerate(described.captions):
        if not caption.reused and caption.error is None:
            show(f"{place}  {number}  {caption.score:.3f}  {one_line(caption.text)}", write)
