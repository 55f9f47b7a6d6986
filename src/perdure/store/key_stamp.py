"""A number that changes whenever keys change, shared by all processes on one data folder.

Every request asks whether its key is in force. Asking the database each time costs more than the rest of the door, so a
server remembers what a key opened for as long as this number stays the same. It lies in a mapped file: reading it is
reading memory, and `perdure keys revoke` in another process is seen by the very next request.
"""

from __future__ import annotations

import mmap
import os
import secrets
from pathlib import Path

from perdure.errors import OperatorError

FILE = "perdure.keys"
SIZE = 8


class KeyStamp:
    """The number in `folder`. `open` makes the file if it is not there."""

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memory

    @classmethod
    def open(cls, folder: Path) -> KeyStamp:
        """Map the file. Raises OperatorError."""
        try:
            descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                _take_room(descriptor)
                return cls(mmap.mmap(descriptor, SIZE))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OperatorError(f"the file {folder / FILE} can not be used: {error.strerror}") from None

    def read(self) -> bytes:
        """Return the number, as bytes to compare."""
        return self._memory[:SIZE]

    def change(self) -> None:
        """Change the number. Call it after the commit that changed keys."""
        self._memory[:SIZE] = secrets.token_bytes(SIZE)

    def close(self) -> None:
        """Let go of the file."""
        self._memory.close()


def _take_room(descriptor: int) -> None:
    """Give the file its blocks on the disk: on a full one, touching memory mapped to a hole would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, SIZE)  # changes nothing that is there
    elif os.fstat(descriptor).st_size < SIZE:
        os.write(descriptor, bytes(SIZE))
