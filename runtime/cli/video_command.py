"""`patchcaption video`: captions over the frames of files, cameras and URLs."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from runtime.captioner import Captioner
from runtime.cli import exits
from runtime.cli.captioner_arguments import decoding_keywords, load_captioner
from runtime.cli.output_arguments import check_outputs
from runtime.cli.region_arguments import regions_or_whole_image
from runtime.cli.video_arguments import add_video_arguments
from runtime.cli.video_outputs import VideoOutputs, named_outputs
from runtime.errors import PatchcaptionError, RegionError, VideoError
from runtime.output.preview import PreviewWindow
from runtime.output.video_file import video_format
from runtime.video.merging import MergedStreams
from runtime.video.stream import CaptionStream, FrameCaptions

_SECONDS_PER_LOOK = 0.05
"""How long the window may be left alone."""


def add_video(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.set_defaults(run=run_video)
    add_video_arguments(parser)


def run_video(options: argparse.Namespace) -> int:
    """Caption every frame of the sources; without a file for the captions, print new ones with their time."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise VideoError(f"tqdm cannot be imported ({error}): pip install 'patchcaption[video]'") from None
    check_outputs(named_outputs(options), options, *map(Path, options.sources))
    if options.save:
        video_format(options.save)
    with ExitStack() as stack:
        window = stack.enter_context(PreviewWindow("patchcaption")) if options.show else None
        captioner = stack.enter_context(load_captioner(options))
        run = _Run(options, captioner, stack)
        if not run.streams:
            return exits.UNUSABLE
        outputs = VideoOutputs(options, [stream.source for stream in run.streams], stack, tqdm.write, window)
        bar = stack.enter_context(tqdm(total=run.frame_count, unit=" frames", disable=None))
        if run.follow(outputs, bar, window):
            outputs.finish()
    run.reasons.report()
    return exits.UNUSABLE if run.has_failed else exits.DONE


class _Run:
    """The streams of the sources, and what became of them.

    Attributes:
        streams: those that could be opened.
        has_failed: whether one of several was lost, or could not be opened; a single one raises its error.
        reasons: why frames and regions were passed over.
    """

    def __init__(self, options: argparse.Namespace, captioner: Captioner, stack: ExitStack) -> None:
        self._options = options
        self._has_several = len(options.sources) > 1
        self.has_failed, self.reasons = False, _Reasons()
        self.streams, self._names = list[CaptionStream](), list[str]()
        for source in options.sources:
            try:
                self.streams.append(stack.enter_context(self._open(captioner, source)))
            except VideoError as error:
                self._fail(error)
            else:
                self._names.append(source)
        self._merged = stack.enter_context(MergedStreams(self.streams))

    @property
    def frame_count(self) -> int | None:
        """How many frames are described; None where that is not known."""
        counts = [stream.source.frame_count for stream in self.streams]
        known = [-(-count // self._options.every) for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def follow(self, outputs: VideoOutputs, bar: Any, window: PreviewWindow | None) -> bool:
        """Give the frames to the outputs; return whether the sources have come to their ends before these."""
        while True:
            while window is not None and window.is_open and not self._merged.wait(_SECONDS_PER_LOOK):
                window.update()
            if window is not None and not window.is_open:
                return False
            arrival = self._merged.get()
            if arrival is None:
                return True
            number, described = arrival
            if not isinstance(described, FrameCaptions):
                self._fail(described)
                continue
            self.reasons.add(described, f"{self._names[number]}: " if self._has_several else "")
            outputs.add(described, self._names[number])
            if not outputs.are_left:
                return False
            bar.update()
            bar.set_postfix(self._counts())

    def _open(self, captioner: Captioner, source: str) -> CaptionStream:
        options = self._options
        return captioner.stream(
            int(source) if source.isdecimal() else source,
            regions_or_whole_image(options),
            policy=options.policy,
            every=options.every,
            reuse=options.reuse or None,
            **decoding_keywords(options),
            on_bad=options.on_bad,
            timeout_s=options.timeout,
            reconnect_s=options.reconnect,
            start_s=options.start,
            end_s=options.end,
        )

    def _fail(self, error: BaseException) -> None:
        """Say why one of several streams has ended; raise where it is the only one, or an error of another kind."""
        if not self._has_several or not isinstance(error, PatchcaptionError):
            raise error
        exits.note(f"{error}")
        self.has_failed = True

    def _counts(self) -> dict[str, int]:
        return {
            "dropped": sum(stream.dropped for stream in self.streams),
            "broken": sum(stream.source.decode_errors for stream in self.streams),
            "bad": sum(stream.bad_frames + stream.bad_regions for stream in self.streams),
            "reconnects": sum(stream.source.reconnects for stream in self.streams),
        }


class _Reasons:
    """Why frames and regions were passed over: the first reason, and how many there were."""

    def __init__(self) -> None:
        self._first, self._bad, self._described = "", 0, 0

    def add(self, described: FrameCaptions, place: str = "") -> None:
        """Count a frame and its regions.

        Args:
            place: where it comes from, for a reason.
        """
        for reason in (described.error, *(caption.error for caption in described.captions)):
            if reason is not None:
                self._first = self._first or f"{place}frame {described.frame.number}: {reason}"
                self._bad += 1
        self._described += sum(caption.error is None for caption in described.captions)

    def report(self) -> None:
        """Say on stderr what was passed over.

        Raises:
            RegionError: it was all that there was.
        """
        if self._bad and not self._described:
            raise RegionError(self._first)
        if self._bad:
            exits.note(f"{self._bad} without a caption, the first: {self._first}")
