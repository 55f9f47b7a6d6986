"""The process that runs the model's code: takes a cell from the warden, runs it, says that it is done.

Its standard output and error are one pipe to the warden, by descriptor, so that child processes and C code are heard
as well. Two more pipes carry frames. Everything here may be taken over by the code; nothing outside believes it.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import site
import sys
import types
from typing import Any

from . import frames
from .cell import DATA, Shell

PRELOADS = ("numpy", "pandas", "matplotlib.pyplot")


class Kernel:
    """Speaks over the two descriptors `reads` and `writes`."""

    def __init__(self, reads: int, writes: int, config: dict[str, Any]) -> None:
        self.reads, self.writes = reads, writes
        self.pid = os.getpid()
        self.alias = config.get("data", DATA)
        self.busy = False
        self.images = 0
        self.reader = frames.FrameReader()
        self.font_cache: str = config.get("font_cache", "")
        self.shell = Shell(self._send_image, self.alias)
        if config.get("by_descriptor"):
            _change_modes_by_descriptor()

    def serve(self, preload: bool) -> None:
        """Run cells until the warden closes its end."""
        signal.signal(signal.SIGINT, self._interrupt)
        os.register_at_fork(after_in_child=self._silence)
        _open_streams()
        site.main()
        sys.path.insert(0, "")  # modules that the code writes can be imported
        if self.font_cache:
            shutil.copytree(self.font_cache, os.environ["MPLCONFIGDIR"], dirs_exist_ok=True)
        self.shell.install()
        if preload:
            _preload()
        self._send({"op": "ready", "python": sys.version.split()[0], "packages": known_packages()})
        while True:
            for head, body in self._read():
                if head["op"] == "run":
                    self._run(body.decode("utf-8", "replace"))

    def _read(self) -> list[frames.Frame]:
        data = os.read(self.reads, frames.CHUNK_BYTES)
        if not data:  # the warden is gone
            os._exit(0)
        return list(self.reader.feed(data))

    def _run(self, code: str) -> None:
        signal.signal(signal.SIGINT, self._interrupt)  # the code of an earlier cell may have changed it
        self.busy = True
        try:
            answer = self.shell.run(code)
        except KeyboardInterrupt:  # it came between the cell's end and here
            answer = {"outcome": "error", "hint": ""}
        self.busy = False
        if os.getpid() != self.pid:  # a fork of the code that came to the end of the cell: it ends here
            os._exit(0)
        self._send({"op": "done", **answer})

    def _interrupt(self, number: int, frame: types.FrameType | None) -> None:
        del number, frame
        if self.busy:
            raise KeyboardInterrupt

    def _silence(self) -> None:
        """In a fork of the code: it must not speak for the kernel."""
        self.writes = os.open(os.devnull, os.O_WRONLY)

    def _send_image(self, media_type: str, data: bytes) -> None:
        """Send an image and wait until it is taken: what is printed after it must not overtake it."""
        if len(data) > frames.BODY_BYTES or os.getpid() != self.pid:
            return
        self.images += 1
        self._send({"op": "image", "media_type": media_type, "number": self.images}, data)
        while not any(head.get("number") == self.images for head, _ in self._read()):
            continue

    def _send(self, head: dict[str, Any], body: bytes = b"") -> None:
        packed = memoryview(frames.pack(head, body))
        while packed:
            packed = packed[os.write(self.writes, packed) :]


def _open_streams() -> None:
    """Point Python's streams at the descriptors, line by line, so that prints and child processes keep their order."""
    sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115  # for the life of the process
    for name, number in (("stdout", 1), ("stderr", 2)):
        raw = io.FileIO(number, "wb", closefd=False)
        buffered = io.BufferedWriter(raw, 64 * 1024)
        stream = io.TextIOWrapper(buffered, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _preload() -> None:
    """Import what most code begins with, so that it waits for none of it."""
    import importlib  # noqa: PLC0415  # only a warm session needs it

    for name in PRELOADS:
        try:
            importlib.import_module(name)
        except ImportError:  # not in this environment
            continue


def known_packages() -> list[str]:
    """Return which of the packages that models like to use are there."""
    import importlib.util  # noqa: PLC0415

    wanted = ("numpy", "pandas", "matplotlib", "scipy", "openpyxl", "PIL")
    return [name for name in wanted if importlib.util.find_spec(name) is not None]


def _change_modes_by_descriptor() -> None:
    """Let os.chmod and os.utime work by descriptor, where the filter forbids them by path.

    By path they would reach the server's own files: Landlock does not look at them.
    """

    def chmod(path: Any, mode: int, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> None:
        if isinstance(path, int):
            os.fchmod(path, mode)
            return
        flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow_symlinks else os.O_NOFOLLOW)
        place = os.open(path, flags, dir_fd=dir_fd)
        try:
            os.fchmod(place, mode)
        finally:
            os.close(place)

    def utime(
        path: Any, times: Any = None, *, ns: Any = None, dir_fd: Any = None, follow_symlinks: bool = True
    ) -> None:
        given = {"ns": ns} if ns is not None else {}
        place = path
        if not isinstance(path, int):
            flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow_symlinks else os.O_NOFOLLOW)
            place = os.open(path, flags, dir_fd=dir_fd)
        try:
            by_path_or_descriptor(place, times, **given)
        finally:
            if place != path:
                os.close(place)

    by_path_or_descriptor = os.utime
    os.chmod = chmod
    os.utime = utime
