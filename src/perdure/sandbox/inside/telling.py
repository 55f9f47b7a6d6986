"""What goes out of a call: prints put together into pieces, images, and a bound to all of it.

Rule: nothing here waits. What the server does not take yet is kept, and it is bounded, because prints and images are.
"""

from __future__ import annotations

import codecs
import os
import time
from typing import Any

from . import frames

PIECE_BYTES = 16 * 1024
PIECE_SECONDS = 0.05
FLOOD = 64
IMAGES = 32
IMAGES_BYTES = 32 * 1024 * 1024
DATA = "/mnt/data"


class Telling:
    """The outputs of one call after the other.

    `limit` bounds the text of a call, in bytes; `real` is where /mnt/data is.
    """

    def __init__(self, limit: int, real: str) -> None:
        self.limit = limit
        self.real = real if real != DATA else ""
        self.waiting = bytearray()
        self.begin()

    def begin(self) -> None:
        """Begin a call."""
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.text: list[str] = []
        self.text_size = 0
        self.text_since = 0.0
        self.printed = self.images = self.images_bytes = 0

    @property
    def flooded(self) -> bool:
        """Whether the code prints so far beyond the limit that it means no good."""
        return self.printed > self.limit * FLOOD

    def add_prints(self, data: bytes) -> None:
        """Take what was printed; beyond the limit it is counted and dropped."""
        room = max(0, self.limit - self.printed)
        self.printed += len(data)
        self._add_text(self.decoder.decode(data[:room]))

    def add_image(self, media_type: str, data: bytes) -> None:
        """Take an image; too many are dropped, and said so."""
        self.images += 1
        self.images_bytes += len(data)
        if self.images > IMAGES or self.images_bytes > IMAGES_BYTES:
            if self.images == IMAGES + 1:
                self._add_text("[more images are left out]\n")
            return
        self._flush()
        self.add_frame({"op": "image", "media_type": media_type}, data)

    def add_frame(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Take a frame for the server."""
        self.waiting += frames.pack(head, body)

    def end(self) -> bool:
        """End the call: everything is ready to go; returns whether text was cut."""
        self._add_text(self.decoder.decode(b"", True))
        self._flush()
        return self.printed > self.limit

    def write_to(self, number: int) -> None:
        """Write as much as is taken without waiting. Raises BrokenPipeError."""
        if self.text and time.monotonic() - self.text_since > PIECE_SECONDS:
            self._flush()
        while self.waiting:
            try:
                sent = os.write(number, self.waiting[: frames.CHUNK_BYTES])
            except BlockingIOError:
                return
            del self.waiting[:sent]

    def _add_text(self, text: str) -> None:
        if not text:
            return
        if not self.text:
            self.text_since = time.monotonic()
        self.text.append(text)
        self.text_size += len(text)
        if self.text_size > PIECE_BYTES:
            self._flush()

    def _flush(self) -> None:
        text = "".join(self.text)
        self.text.clear()
        self.text_size = 0
        if self.real:
            text = text.replace(self.real, DATA)
        if text:
            self.add_frame({"op": "logs"}, text.encode("utf-8", "replace"))
