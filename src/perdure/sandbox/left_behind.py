"""What a server that was killed left behind: its boxes' processes and folders, found again at the next start.

Boxes end by themselves when their server does, because their wardens read from a pipe that it held. This is the second
net: each box is written down (process, when that process began, whose server, folder) in the data folder, and what is
still there at the next start is ended and removed. Mounts and namespaces go with their processes; cgroups are never
made.

Rule: a process is only killed if it is the one that was written down. Ids are given anew; together with the time of its
beginning one is unique.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import time
from pathlib import Path

log = logging.getLogger("perdure.sandbox")

ENDING_SECONDS = 5.0


class Records:
    """The boxes of this server, one small file each, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.me = [os.getpid(), began(os.getpid())]

    def write(self, pid: int, outside: Path | None, path: Path | None = None) -> Path:
        """Write a box down, anew or over an earlier note: `pid` is 0 before it has a process.

        `outside` is its folder on this machine, if it has one.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = path or self.folder / f"{secrets.token_hex(8)}.json"
        note = {"pid": pid, "began": began(pid), "server": self.me, "folder": str(outside) if outside else None}
        half = path.with_suffix(".half")
        half.write_text(json.dumps(note), encoding="utf-8")
        half.replace(path)
        return path

    @staticmethod
    def clear(record: Path, outside: Path | None) -> None:
        """Remove a box's folder, and then the note of it."""
        if outside is not None:
            remove_folder(outside)
        record.unlink(missing_ok=True)

    def sweep(self) -> list[str]:
        """End and remove what servers that are gone have left behind; returns what was found, in words."""
        found: list[str] = []
        for path in sorted(self.folder.glob("*.json")) if self.folder.exists() else []:
            try:
                note = json.loads(path.read_text(encoding="utf-8"))
                owner, box, outside = note["server"], (note["pid"], note["began"]), note["folder"]
            except (OSError, ValueError, KeyError):  # half written by a server that was killed just then
                path.unlink(missing_ok=True)
                continue
            if owner != self.me and began(owner[0]) == owner[1]:
                continue  # another server on the same folder, and it lives
            if owner == self.me:
                continue
            if box[1] and began(box[0]) == box[1]:
                found.append(f"process {box[0]}")
                end_tree(box[0])
            if outside is not None and Path(outside).exists():
                found.append(f"folder {outside}")
            self.clear(path, Path(outside) if outside else None)
        if found:
            log.warning("removed what an earlier server's code sessions left behind: %s", ", ".join(found))
        return found


def began(pid: int) -> int:
    """Return when a process began, in the system's ticks since its start; 0 if it is not there, or can not be known."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[19])


def end_tree(pid: int) -> None:
    """Kill a process and all that descend from it, and wait until they are gone."""
    if not Path("/proc/self/stat").exists():  # no Linux: only the process itself is known
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGTERM)
        return
    pids = [pid, *_descendants(pid)]
    for one in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGKILL)
    deadline = time.monotonic() + ENDING_SECONDS
    while any(_is_there(one) for one in pids) and time.monotonic() < deadline:
        time.sleep(0.01)


def _is_there(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be taken up by its parent."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] not in {"Z", "X"}


def _descendants(pid: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                text = (entry / "stat").read_text(encoding="utf-8", errors="replace")
                parents.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    found: list[int] = []
    line = [pid]
    while line:
        children = parents.get(line.pop(), [])
        found += children
        line += children
    return found


def remove_folder(folder: Path) -> None:
    """Remove a box's folder; the code may have taken rights away from its own folders."""

    def once_more(function: object, path: str, error: BaseException) -> None:
        del function, error
        for one in (Path(path).parent, Path(path)):
            with contextlib.suppress(OSError):
                if not one.is_symlink() and one.is_dir():  # chmod follows a link to wherever the code pointed it
                    one.chmod(0o700)

    for _ in range(3):
        if not folder.exists():
            return
        shutil.rmtree(folder, onerror=lambda function, path, info: once_more(function, path, info[1]))
    log.error("the folder %s of a code session can not be removed", folder)
