"""Server-sent events out of bytes: what stands behind `data:`, nothing else.

Rule: bytes may be cut anywhere, inside a character or a line end too; only whole lines are looked at.
"""

from __future__ import annotations

EVENT_BYTES = 16 * 1024 * 1024
"""Longest event. An upstream that sends more is out of order, and we do not fill the memory for it."""


class EventTooLongError(ValueError):
    """An event is longer than EVENT_BYTES."""


class EventLines:
    """Gathers `data:` lines into events. Comments, `event:`, `id:` and `retry:` are passed over."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of each event that ends in this piece."""
        if len(self._rest) + self._size + len(piece) > EVENT_BYTES:
            raise EventTooLongError
        if b"\n" not in piece:
            self._rest += piece
            return []
        lines = (bytes(self._rest) + piece).split(b"\n")
        self._rest = bytearray(lines.pop())
        return [event for line in lines if (event := self._take(line.removesuffix(b"\r"))) is not None]

    def end(self) -> bytes | None:
        """Return the data that no empty line closed: some servers forget the last one."""
        last = bytes(self._rest).removesuffix(b"\r")
        self._rest.clear()
        if last:
            self._take(last)
        return self._take(b"")

    def _take(self, line: bytes) -> bytes | None:
        if not line:
            event = b"\n".join(self._data) if self._data else None
            self._data, self._size = [], 0
            return event
        if line.startswith(b"data:"):
            data = line[5:].removeprefix(b" ")
            self._data.append(data)
            self._size += len(data)
        return None
