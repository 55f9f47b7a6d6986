"""Frames between server, warden and kernel: eight bytes of lengths, a JSON object, and bytes that go with it.

Rule: a reader trusts no length: above its bound it raises BadFrame, and the other side is given up.
"""

from __future__ import annotations

import json
import struct
from typing import Any, Dict, Iterator, Tuple  # 3.9 evaluates the alias below

LENGTHS = struct.Struct(">II")
HEAD_BYTES = 8 * 1024 * 1024
BODY_BYTES = 16 * 1024 * 1024
CHUNK_BYTES = 256 * 1024

Frame = Tuple[Dict[str, Any], bytes]  # the same


class BadFrame(Exception):
    """What came is no frame, or a larger one than anybody here sends."""


def pack(head: dict[str, Any], body: bytes = b"") -> bytes:
    """Return one frame."""
    text = json.dumps(head, separators=(",", ":")).encode()
    return LENGTHS.pack(len(text), len(body)) + text + body


def check_lengths(lengths: bytes) -> tuple[int, int]:
    """Return how long head and body are. Raises BadFrame above the bounds."""
    head, body = LENGTHS.unpack(lengths)
    if head > HEAD_BYTES or body > BODY_BYTES:
        raise BadFrame(f"a frame of {head} and {body} bytes")
    return head, body


def parse_head(text: bytes) -> dict[str, Any]:
    """Return the head. Raises BadFrame."""
    try:
        head = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"a head that is no JSON: {type(error).__name__}") from None
    if not isinstance(head, dict) or not isinstance(head.get("op"), str):
        raise BadFrame("a head without an op")
    return head


class FrameReader:
    """Takes bytes as they come and gives whole frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete now. Raises BadFrame."""
        self._buffer += data
        while len(self._buffer) >= LENGTHS.size:
            head, body = check_lengths(bytes(self._buffer[: LENGTHS.size]))
            end = LENGTHS.size + head + body
            if len(self._buffer) < end:
                return
            whole = bytes(self._buffer[LENGTHS.size : end])
            del self._buffer[:end]
            yield parse_head(whole[:head]), whole[head:]
