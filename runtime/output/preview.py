"""A window that shows the frames of a stream as they are described, by tkinter, which comes with Python."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import Any

from PIL import Image

from runtime.errors import ImageError, PatchcaptionError
from runtime.image import open_image
from runtime.output.drawing import draw_captions
from runtime.system.closeable import Closeable
from runtime.video.stream import FrameCaptions

_CLOSING_EVENTS = ("<q>", "<Q>", "<Escape>", "<Destroy>")
_SHARE_OF_SCREEN = 0.9


class PreviewWindow(Closeable):
    """A window, open until the user closes it or presses q or Escape. All calls come from the thread that made it.

    Raises:
        PatchcaptionError: there is no display, or this Python has no tkinter.
    """

    def __init__(self, title: str) -> None:
        try:
            import tkinter

            from PIL import ImageTk
        except ImportError as error:
            raise PatchcaptionError(
                f"a window needs tkinter, which cannot be imported ({error}): apt install python3-tk, for example"
            ) from None
        self._new_photo = ImageTk.PhotoImage
        try:
            self._root: Any = tkinter.Tk()
        except tkinter.TclError as error:
            raise PatchcaptionError(f"a window needs a display: {error}") from None
        self._lost = tkinter.TclError
        self._root.title(title)
        self._root.resizable(False, False)
        self._root.protocol("WM_DELETE_WINDOW", self._leave)
        for event in _CLOSING_EVENTS:
            self._root.bind(event, lambda _: self._leave())
        self._label: Any = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self._photo: Any = None
        self.is_open = True
        self.update()

    def add(self, described: FrameCaptions) -> None:
        """Show a frame with its captions; one that is no image is passed over."""
        found = [caption for caption in described.captions if caption.error is None]
        try:
            image = draw_captions(open_image(described.frame.image), found)
        except ImageError:
            return
        try:
            self._show(image)
        except self._lost:
            self.is_open = False
        self.update()

    def update(self) -> None:
        """Handle what the user has done with the window."""
        try:
            if self.is_open:
                self._root.update()
        except self._lost:  # the display has gone
            self.is_open = False

    def close(self) -> None:
        """Close the window."""
        self.is_open = False
        with suppress(self._lost):
            self._root.destroy()
        self._root = self._label = self._photo = None
        gc.collect()  # here: Tcl ends the program where an interpreter of its is freed by another thread

    def _show(self, image: Image.Image) -> None:
        room_wh = (self._root.winfo_screenwidth(), self._root.winfo_screenheight())
        scale = min(1.0, *(_SHARE_OF_SCREEN * room / side for room, side in zip(room_wh, image.size, strict=True)))
        if scale < 1:
            image = image.resize([max(1, int(side * scale)) for side in image.size])
        if self._photo is not None and (self._photo.width(), self._photo.height()) == image.size:
            self._photo.paste(image)
            return
        self._photo = self._new_photo(image, master=self._root)
        self._label.configure(image=self._photo)

    def _leave(self) -> None:
        self.is_open = False
