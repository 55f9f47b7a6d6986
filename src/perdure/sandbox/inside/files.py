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
FILES_LISTED = 10_000
FOLDERS_DEEP = 32
FLAGS = os.O_CLOEXEC if hasattr(os, "O_CLOEXEC") else 0
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
CAN_WALK = os.open in os.supports_dir_fd and NOFOLLOW != 0


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


def _open_folder(root: str, parts: list[str], *, make: bool) -> int:
    """Return the descriptor of the folder that these parts lead to. Raises OSError at a symlink."""
    place = os.open(root, os.O_RDONLY | os.O_DIRECTORY | FLAGS)
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


def open_to_write(root: str, name: str) -> int:
    """Return a descriptor of a new, empty file of that name; what bore the name before is replaced, never followed.

    Raises Refused.
    """
    parts = check_name(name)
    try:
        if not CAN_WALK:
            os.makedirs(os.path.join(root, *parts[:-1]), exist_ok=True)
            return os.open(os.path.join(root, *parts), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        folder = _open_folder(root, parts[:-1], make=True)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(parts[-1], dir_fd=folder)
            return os.open(parts[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL | NOFOLLOW | FLAGS, 0o644, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise Refused(f"{name!r} can not be written: {error.strerror}") from None


def open_to_read(root: str, name: str) -> tuple[int, int]:
    """Return a descriptor of a regular file and its size. Raises Refused for everything else."""
    parts = check_name(name)
    try:
        if not CAN_WALK:
            place = os.open(os.path.join(root, *parts), os.O_RDONLY)
        else:
            folder = _open_folder(root, parts[:-1], make=False)
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


def listed(root: str) -> tuple[list[list[object]], bool]:
    """Return name, size and time of change (ns) of the regular files below `root`, and whether some were left out.

    Left out are names that `check_name` refuses and what is beyond the bounds of depth and number.
    """
    found: list[list[object]] = []
    cut = False
    for name, known in _walk(root, "", 0):
        if len(found) >= FILES_LISTED:
            return found, True
        try:
            check_name(name)
        except Refused:
            cut = True
            continue
        found.append([name, known.st_size, known.st_mtime_ns])
    return sorted(found, key=lambda one: str(one[0])), cut


def _walk(folder: str, prefix: str, depth: int) -> Iterator[tuple[str, os.stat_result]]:
    try:
        entries = list(os.scandir(folder))
    except OSError:  # gone, or not readable to its own maker
        return
    for entry in entries:
        try:
            known = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        name = f"{prefix}{entry.name}"
        if stat.S_ISREG(known.st_mode):
            yield name, known
        elif stat.S_ISDIR(known.st_mode) and depth < FOLDERS_DEEP and not entry.name.startswith("."):
            yield from _walk(os.path.join(folder, entry.name), f"{name}/", depth + 1)


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
