"""Hands files in and out: the frames put, data, end, get and files, served for one folder."""

from __future__ import annotations

import os
from typing import Any, Callable

from . import files, frames


class Desk:
    """Serves one folder; `send` takes the frames of the answers."""

    def __init__(self, root: str, send: Callable[..., None]) -> None:
        self.root = root
        self._folder = files.Folder(root)
        self._send = send
        self._writing: int | None = None
        self._refused = ""

    def serve(self, head: dict[str, Any], body: bytes) -> None:
        """Serve one frame. A file that can not be had is an answer (`failed`), never an exception."""
        op = head["op"]
        if op == "files":
            found, cut = self._folder.listed()
            self._send({"op": "files", "files": found, "cut": cut})
        elif op == "put":
            self._begin(head["name"])
        elif op == "data":
            self._write(body)
        elif op == "end":
            self._end()
        elif op == "get":
            self._get(head["name"])

    def _begin(self, name: str) -> None:
        self._refused, self._writing = "", None
        try:
            self._writing = self._folder.open_to_write(name)
        except files.Refused as refusal:
            self._refused = str(refusal)

    def _write(self, body: bytes) -> None:
        left = memoryview(body)
        while left and self._writing is not None and not self._refused:
            try:
                left = left[os.write(self._writing, left) :]
            except OSError as error:
                self._refused = f"the file can not be written: {error.strerror}"

    def _end(self) -> None:
        if self._writing is not None:
            os.close(self._writing)
            self._writing = None
        self._send({"op": "failed", "words": self._refused} if self._refused else {"op": "put"})

    def _get(self, name: str) -> None:
        try:
            place, size = self._folder.open_to_read(name)
        except files.Refused as refusal:
            self._send({"op": "failed", "words": str(refusal)})
            return
        with os.fdopen(place, "rb") as file:
            while size > 0:
                piece = file.read(min(size, frames.CHUNK_BYTES))
                if not piece:
                    break
                size -= len(piece)
                self._send({"op": "data"}, piece)
        self._send({"op": "end"})
