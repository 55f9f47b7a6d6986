"""Files of the session, from inside: put, get and list below one folder.

Rule: the code may have laid symlinks, pipes and strange names there. A path is walked from the folder's own descriptor
with no symlink followed at any step, and only regular files are read or replaced.
"""

from __future__ import annotations

import contextlib
import os
import stat
import unicodedata
from typing import Iterator  # 3.9's own abc differs in nothing we use

NAME_BYTES = 1024
FILES_LISTED = 5000
FOLDERS_DEEP = 32
FLAGS = os.O_CLOEXEC if hasattr(os, "O_CLOEXEC") else 0
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
CAN_WALK = os.open in os.supports_dir_fd and os.scandir in os.supports_fd and NOFOLLOW != 0
"""Not so in WebAssembly, whose machine resolves every path below the one folder that there is."""


class Refused(Exception):
    """A name or a file that is not taken; the text says why."""


def check_name(name: str) -> list[str]:
    """Return the parts of a relative name. Raises Refused for one that could lead out, or garble a log."""
    parts = name.split("/")
    try:
        long = len(name.encode()) > NAME_BYTES
    except UnicodeEncodeError:
        raise Refused("the name is no Unicode text") from None
    if not name or long or any(part in {"", ".", ".."} for part in parts) or len(parts) > FOLDERS_DEEP:
        raise Refused(f"{name!r} can not name a file below /mnt/data")
    if any(unicodedata.category(letter) in {"Cc", "Zl", "Zp", "Cs"} or letter == "\\" for letter in name):
        raise Refused(f"{name!r} has control characters or backslashes in it")
    return parts


class Folder:
    """A folder of the session's, held by its descriptor from before the code's first line.

    Its path may lead elsewhere afterwards: the code can put a symlink in its place where no mount keeps it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.place = os.open(path, os.O_RDONLY | os.O_DIRECTORY | NOFOLLOW | FLAGS) if CAN_WALK else -1

    def _open(self, parts: list[str], *, make: bool) -> int:
        """Return the descriptor of the folder that these parts lead to. Raises OSError at a symlink."""
        place = os.open(".", os.O_RDONLY | os.O_DIRECTORY | FLAGS, dir_fd=self.place)
        for part in parts:
            try:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o755, dir_fd=place)
                deeper = os.open(part, os.O_RDONLY | os.O_DIRECTORY | NOFOLLOW | FLAGS, dir_fd=place)
            finally:
                os.close(place)
            place = deeper
        return place

    def open_to_write(self, name: str) -> int:
        """Return a descriptor of a new, empty file; what bore the name before is replaced, never followed.

        Raises Refused.
        """
        parts = check_name(name)
        try:
            if not CAN_WALK:
                return self._open_by_path(parts)
            folder = self._open(parts[:-1], make=True)
            try:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(parts[-1], dir_fd=folder)
                return os.open(parts[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | FLAGS, 0o644, dir_fd=folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise Refused(f"{name!r} can not be written: {error.strerror}") from None

    def _open_by_path(self, parts: list[str]) -> int:
        path = os.path.join(self.path, *parts)
        for depth in range(1, len(parts)):  # not os.makedirs: there is no / to begin at
            with contextlib.suppress(FileExistsError):
                os.mkdir(os.path.join(self.path, *parts[:depth]))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def open_to_read(self, name: str) -> tuple[int, int]:
        """Return a descriptor of a regular file and its size. Raises Refused for everything else."""
        parts = check_name(name)
        try:
            if not CAN_WALK:
                place = os.open(os.path.join(self.path, *parts), os.O_RDONLY)
            else:
                folder = self._open(parts[:-1], make=False)
                try:
                    # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever
                    flags = os.O_RDONLY | os.O_NONBLOCK | NOFOLLOW | FLAGS
                    place = os.open(parts[-1], flags, dir_fd=folder)
                finally:
                    os.close(folder)
        except OSError as error:
            raise Refused(f"{name!r} can not be read: {error.strerror}") from None
        known = os.fstat(place)
        if not stat.S_ISREG(known.st_mode):
            os.close(place)
            raise Refused(f"{name!r} is no regular file")
        return place, known.st_size

    def listed(self) -> tuple[list[list[object]], bool]:
        """Return name, size and time of change (ns) of the regular files, and whether some were left out.

        Left out are names that `check_name` refuses and what is beyond the bounds of depth and number.
        """
        found: list[list[object]] = []
        cut = False
        for name, known in self._walk():
            if len(found) >= FILES_LISTED:
                return found, True
            try:
                check_name(name)
            except Refused:
                cut = True
                continue
            found.append([name, known.st_size, known.st_mtime_ns])
        return sorted(found, key=lambda one: str(one[0])), cut

    def _walk(self) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the regular files below, each folder opened from its parent's descriptor; dot folders are passed by."""
        line: list[list[str]] = [[]]
        while line:
            parts = line.pop()
            try:
                place: int | str = self._open(parts, make=False) if CAN_WALK else os.path.join(self.path, *parts)
            except OSError:  # gone, or not open to its own maker
                continue
            try:
                for name, known in _entries(place):
                    if stat.S_ISREG(known.st_mode):
                        yield "/".join([*parts, name]), known
                    elif stat.S_ISDIR(known.st_mode) and len(parts) < FOLDERS_DEEP and not name.startswith("."):
                        line.append([*parts, name])
            finally:
                if isinstance(place, int):
                    os.close(place)


def _entries(place: int | str) -> Iterator[tuple[str, os.stat_result]]:
    try:
        entries = list(os.scandir(place))
    except OSError:
        return
    for entry in entries:
        with contextlib.suppress(OSError):
            yield entry.name, entry.stat(follow_symlinks=False)


def space_used(root: str, most_files: int) -> tuple[int, int]:
    """Return how many bytes and files lie below `root`; counting stops a little above `most_files`."""
    used = count = 0
    folders = [root]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:
            continue
        for entry in entries:
            count += 1
            if count > most_files:
                return used, count
            with contextlib.suppress(OSError):
                known = entry.stat(follow_symlinks=False)
                used += getattr(known, "st_blocks", -(-known.st_size // 512)) * 512
                if stat.S_ISDIR(known.st_mode):
                    folders.append(entry.path)
    return used, count
