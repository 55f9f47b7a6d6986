"""Process 1 of a box: speaks with the server, forks the kernel, ends what goes beyond its limits.

It runs none of the model's code and is out of its reach: in a process namespace nothing inside can signal process 1,
and without one the kernel's Landlock or filter forbids it; its memory is closed by PR_SET_DUMPABLE. Its own end is the
end of everything inside, and it ends when the server's end of its pipe closes, however the server went.

Rules: it never waits for the kernel or for the server (a full pipe must not blind the watch), and between two calls
everything but itself stands still (SIGSTOP), so nothing goes on computing where nobody waits for it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from typing import Any

from . import frames, walls
from .desk import Desk
from .kernel import Kernel
from .processes import Processes
from .telling import Telling
from .watch import Watch

TICK_SECONDS = 0.05
SLOW_TICK_SECONDS = 0.1
"""Where every process of the machine has to be looked at."""
GRACE_SECONDS = 2.0
START_SECONDS = 60.0
DESCRIPTORS = 256
"""More than a warden ever has open."""


class Warden:
    """Serves one session. `config` is the server's first frame; `sandbox/process.py` says what is in it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.limits: dict[str, int] = config["limits"]
        self.processes = Processes(own_namespace=config["own_namespace"], server=config.get("server", 0))
        self.telling = Telling(self.limits["output_bytes"], config["data"])
        self.watch = Watch(self.limits, self.processes, config)
        self.desk = Desk(config["data"], self._send_now)
        self.server = frames.FrameReader()
        self.kernel = 0
        self.stopping = ""
        self.kernel_in = self.kernel_out = self.prints = -1
        self.reader = frames.FrameReader()
        self.silent = False
        """Whether nobody holds the writing end of the kernel's prints any more."""

    def serve(self) -> None:
        """Serve until the server closes its end or says stop."""
        os.set_blocking(1, False)
        self._start_kernel(preload=self.config["preload"])
        ready = self._wait_for("ready", START_SECONDS)
        if ready is None:
            sys.stderr.write("the kernel did not start\n")
            return
        self._stand_still()
        self._send_now(ready)
        while True:
            data = os.read(0, frames.CHUNK_BYTES)
            if not data:
                return
            for head, body in self.server.feed(data):
                if head["op"] == "stop":
                    return
                if head["op"] == "run":
                    self._run(body, head["wall_seconds"])
                elif head["op"] != "interrupt":  # one that came after the end of what it meant
                    self.desk.serve(head, body)

    # ---- the kernel

    def _start_kernel(self, *, preload: bool) -> None:
        for old in (self.kernel_in, self.kernel_out, self.prints):
            if old >= 0:
                os.close(old)
        to_read, self.kernel_in = os.pipe()
        self.kernel_out, to_write = os.pipe()
        self.prints, to_print = os.pipe()
        self.reader = frames.FrameReader()
        self.silent = False
        self.kernel = os.fork()
        if self.kernel == 0:
            self._become_kernel(to_read, to_write, to_print, preload)
        for theirs in (to_read, to_write, to_print):
            os.close(theirs)
        os.set_blocking(self.prints, False)
        os.set_blocking(self.kernel_out, False)

    def _become_kernel(self, to_read: int, to_write: int, to_print: int, preload: bool) -> None:
        """Turn the forked process into a kernel; it never returns."""
        try:
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, 0)
            os.dup2(to_print, 1)
            os.dup2(to_print, 2)
            low, high = sorted((to_read, to_write))
            for begin, end in ((3, low), (low + 1, high), (high + 1, DESCRIPTORS)):
                os.closerange(begin, end)  # the server's pipes, the folder's descriptor, and whatever comes to be here
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            walls.prctl(walls.PR_SET_PDEATHSIG, signal.SIGKILL)
            walls.prctl(walls.PR_SET_DUMPABLE, 1)
            os.setpgid(0, 0)
            os.environ.update(self.config["environment"])
            os.chdir(self.config["data"])
            walls.build(self.config, self.config.get("files"))
            Kernel(to_read, to_write, self.config).serve(preload)
        except BaseException:  # noqa: BLE001  # whatever it is, this process must not go on as a second warden
            sys.excepthook(*sys.exc_info())
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(1)

    def _restart_kernel(self) -> None:
        """End everything of the session and begin with a fresh kernel; files stay."""
        self.processes.kill_all()
        self._start_kernel(preload=False)
        if self._wait_for("ready", START_SECONDS) is None:
            raise RuntimeError("the kernel did not start again")

    def _wait_for(self, op: str, seconds: float) -> dict[str, Any] | None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            select.select([self.kernel_out, self.prints], [], [], TICK_SECONDS)
            said = _read(self.prints)
            if said:
                sys.stderr.write(said.decode("utf-8", "replace"))
            for head, _ in self.reader.feed(_read(self.kernel_out) or b""):
                if head["op"] == op:
                    return head
            if self._kernel_ended():
                return None
        return None

    def _kernel_ended(self) -> bool:
        """Take up children that ended; returns whether the kernel is among them."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == self.kernel:
                return True
            if pid == 0:
                return False

    def _stand_still(self) -> None:
        self.processes.signal_all(signal.SIGSTOP)

    # ---- one call

    def _run(self, code: bytes, wall_seconds: float) -> None:
        self.telling.begin()
        self.watch.begin(wall_seconds)
        self.processes.signal_all(signal.SIGCONT)
        answer = self._hand_over(code) or self._until_done()
        answer["cut"] = self.telling.end()
        if not answer["kept"]:
            self._restart_kernel()
        self._stand_still()
        answer["op"] = "done"
        self.telling.add_frame(answer)
        while self.telling.waiting:
            select.select([], [1], [])
            self._tell_server()

    def _hand_over(self, code: bytes) -> dict[str, Any] | None:
        """Give the code to the kernel; an answer if it can not take it."""
        os.set_blocking(self.kernel_in, False)
        left = memoryview(frames.pack({"op": "run"}, code))
        while left:
            if self._kernel_ended():
                return self._answer("died")
            with contextlib.suppress(BlockingIOError):
                try:
                    left = left[os.write(self.kernel_in, left) :]
                    continue
                except BrokenPipeError:
                    return self._answer("died")
            if self.watch.overdue():
                return self._answer("timeout")
            select.select([], [self.kernel_in], [], TICK_SECONDS)
        return None

    def _until_done(self) -> dict[str, Any]:
        """Pass on what the kernel says until it is done, or until it has to be ended."""
        reason, asked_at = "", 0.0
        tick = TICK_SECONDS if self.processes.own_namespace else SLOW_TICK_SECONDS
        next_look = time.monotonic() + tick
        while True:
            writable = [1] if self.telling.waiting else []
            heard = [0, self.kernel_out, *([] if self.silent else [self.prints])]
            ready, _, _ = select.select(heard, writable, [], TICK_SECONDS)
            done = self._listen()
            self._tell_server()
            if done is not None:
                return self._answer(done["outcome"], reason=reason, hint=str(done.get("hint", "")))
            if 0 in ready and self._interrupted() and not reason:
                reason, asked_at = "interrupted", self._interrupt()
            now = time.monotonic()
            if now < next_look and self.kernel_out not in ready:
                continue
            next_look = now + tick
            if self._kernel_ended():
                return self._answer("died")
            found = self.watch.look()
            if found in {"memory", "disk", "processes"}:
                return self._answer(found)
            if found and not reason:
                reason, asked_at = found, self._interrupt()
            if not reason and self.telling.flooded:
                reason, asked_at = "output", self._interrupt()
            if reason and now > asked_at + GRACE_SECONDS:
                return self._answer(reason)

    def _answer(self, outcome: str, *, reason: str = "", hint: str = "") -> dict[str, Any]:
        """Return what became of the call. With a reason the kernel was interrupted and came back: its state is kept."""
        told = outcome in {"ok", "error"}
        return {"outcome": outcome, "reason": reason, "hint": hint if told else "", "kept": told}

    def _interrupt(self) -> float:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.kernel, signal.SIGINT)
        return time.monotonic()

    def _interrupted(self) -> bool:
        """Whether the server asks for an end of the call. Its closing its end is the end of everything."""
        data = os.read(0, frames.CHUNK_BYTES)
        if not data:
            self.processes.signal_all(signal.SIGKILL)
            raise SystemExit(0)
        return any(head["op"] in {"interrupt", "stop"} for head, _ in self.server.feed(data))

    def _listen(self) -> dict[str, Any] | None:
        """Take what the kernel printed and said; returns its `done`.

        What it printed before it said something is in the pipe already, so the prints go first.
        """
        said = _read(self.kernel_out)
        while not self.silent:
            printed = _read(self.prints)
            self.silent = printed == b""
            self.telling.add_prints(printed or b"")
            if printed is None or len(printed) < frames.CHUNK_BYTES:
                break
        if said == b"":  # the code closed the kernel's end
            return {"outcome": "died"}
        try:
            for head, body in self.reader.feed(said or b""):
                if head["op"] == "image":
                    self.telling.add_image(str(head.get("media_type")), body)
                    self._acknowledge(head.get("number"))
                elif head["op"] == "done" and head.get("outcome") in {"ok", "error"}:
                    return head
        except frames.BadFrame:  # forged by the code
            return {"outcome": "died"}
        return None

    def _acknowledge(self, number: Any) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # it does not read: then it does not wait either
            os.write(self.kernel_in, frames.pack({"op": "taken", "number": number if isinstance(number, int) else 0}))

    # ---- the server

    def _tell_server(self) -> None:
        self.telling.write_to(1)

    def _send_now(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Send a frame and wait until it is taken; between calls only, while everything else stands still."""
        left = memoryview(frames.pack(head, body))
        while left:
            select.select([], [1], [])
            with contextlib.suppress(BlockingIOError):
                left = left[os.write(1, left) :]


def _read(number: int) -> bytes | None:
    """Return what there is; None for nothing, b"" at the end."""
    try:
        return os.read(number, frames.CHUNK_BYTES)
    except BlockingIOError:
        return None


def _fork_from_keeper(server: int) -> None:
    """Go on in a fork, and leave behind a process that ends the session's processes should this one be killed.

    Where no namespace goes with its process 1, they would live on: orphans come to the keeper, their subreaper. Should
    the keeper be killed, this process hears of it, and ends them. Both at once is what nothing here survives.
    """
    walls.prctl(walls.PR_SET_CHILD_SUBREAPER, 1)
    warden = os.fork()
    if warden == 0:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        walls.prctl(walls.PR_SET_PDEATHSIG, signal.SIGTERM)
        return
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    while os.waitpid(-1, 0)[0] != warden:
        continue
    Processes(own_namespace=False, server=server).kill_all()
    os._exit(0)


def main(config: dict[str, Any]) -> None:
    """Drop what is not needed, then serve. Whatever ends this function ends the session."""
    if config.get("uid"):
        walls.drop_to(config["uid"])
    walls.prctl(walls.PR_SET_NO_NEW_PRIVS, 1)
    if not config["own_namespace"]:
        _fork_from_keeper(config["server"])
    if config.get("scope_signals"):
        walls.scope_signals()
    walls.prctl(walls.PR_SET_DUMPABLE, 0)
    walls.prctl(walls.PR_SET_CHILD_SUBREAPER, 1)
    if config["die_with_parent"]:  # after the change of uid, which would clear it; root's bubblewrap may not signal us
        walls.prctl(walls.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a handler is the one thing that lets the code signal process 1
    warden = Warden(config)
    try:
        warden.serve()
    except BrokenPipeError:  # the server is gone
        return
    finally:
        warden.processes.kill_all()
