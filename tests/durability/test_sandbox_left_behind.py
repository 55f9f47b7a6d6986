"""Code sessions leave nothing behind: not after fifty of them, and not after kill -9 of the server that owned them."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from perdure.sandbox.base import Limits
from perdure.sandbox.choose import records_of
from perdure.sandbox.left_behind import Records, began, remove_folder
from tests.sandboxes import code_settings, hear, processes_with, sandbox_of, until_gone

OWNER = """
import asyncio, sys
from pathlib import Path
from perdure.sandbox.base import Limits
from perdure.sandbox.choose import make_kind
from perdure.settings import Settings

async def tell(output):
    pass

async def main():
    settings = Settings(data=Path(sys.argv[1]))
    code = f"import subprocess\\nsubprocess.Popen(['sleep', '{sys.argv[2]}'], start_new_session=True)\\n"
    calls = []
    for kind in ("bubblewrap", "landlock", "wasm"):
        sandbox = make_kind(kind, settings)
        for busy in (False, True):
            session = await sandbox.start(Limits())
            text = code if kind != "wasm" else ""
            await session.run(text + f"open('/mnt/data/{sys.argv[2]}', 'w').write('x')", tell)
            if busy:
                calls.append(asyncio.create_task(session.run("while True: pass", tell)))
    await asyncio.sleep(0.2)
    print("ready", flush=True)
    await asyncio.gather(*calls)

asyncio.run(main())
"""


def outside(mark: str) -> tuple[list[str], list[str], set[str]]:
    """Return what these sessions could leave on this machine: mounts, folders with a file named by the mark, cgroups.

    Others may run sessions of their own here meanwhile.
    """
    mounts = [
        line for line in Path("/proc/self/mounts").read_text().splitlines() if "perdure" in line or "/mnt" in line
    ]
    folders = [str(path) for path in Path(tempfile.gettempdir()).glob(f"perdure-box-*/data/{mark}")]
    groups = {str(path) for path in Path("/sys/fs/cgroup").glob("**/*perdure*")}
    return mounts, folders, groups


def own_mark() -> str:
    """Return a number of seconds that nobody else sleeps."""
    return f"{secrets.randbelow(10**9) + 10**9}.25"


def sleeper(mark: str) -> str:
    """Return the command line of what the code started; the mark alone is on its owner's, too."""
    return f"sleep\0{mark}"


@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
def test_fifty_sessions_leave_nothing(kind: str, tmp_path: Path) -> None:
    mark = own_mark()
    before = outside(mark)
    code = f"import subprocess\nsubprocess.Popen(['sleep', '{mark}'], start_new_session=True)\n"
    code += f"open('{mark}', 'w').close()\n6 * 7"

    async def one(number: int) -> None:
        session = await sandbox.start(Limits())
        assert (await hear(session, code)).text == "42\n"
        if number % 5 == 0:  # some are killed, not stopped
            session.process.kill()  # type: ignore[attr-defined]  # every kind's session has one
        await session.stop()

    async def play() -> None:
        turns = asyncio.Semaphore(5)

        async def in_turn(number: int) -> None:
            async with turns:
                await one(number)

        await asyncio.gather(*(in_turn(number) for number in range(50)))
        assert await until_gone(sleeper(mark)) == []
        await sandbox.close()

    sandbox = sandbox_of(kind, tmp_path)
    asyncio.run(play())
    assert outside(mark) == before
    assert list(records_of(code_settings(tmp_path)).folder.glob("*")) == []


@pytest.mark.parametrize("stopped", [False, True])
def test_kill_of_the_server_leaves_nothing(stopped: bool, tmp_path: Path) -> None:
    """Its boxes end by themselves; those that can not (stopped here), and folders, the next server removes."""
    mark = own_mark()
    before = outside(mark)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path), mark], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    records = records_of(code_settings(tmp_path))
    boxes = [json.loads(path.read_text()) for path in records.folder.glob("*.json")]
    assert len(boxes) == 6
    assert len(processes_with(sleeper(mark))) == 4
    if stopped:
        for pid in _below(owner.pid):
            os.kill(pid, signal.SIGSTOP)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    if not stopped:
        assert asyncio.run(until_gone(sleeper(mark))) == []
    found = records.sweep()
    assert any(one.startswith("folder") for one in found)
    assert any(one.startswith("process") for one in found) or not stopped
    assert asyncio.run(until_gone(sleeper(mark))) == []
    for box in boxes:
        assert asyncio.run(_ended(box["pid"], box["began"]))
    assert outside(mark) == before
    assert records.sweep() == []


async def _ended(pid: int, when: int) -> bool:
    for _ in range(200):
        if began(pid) != when or _is_zombie(pid):
            return True
        await asyncio.sleep(0.05)
    return False


def _is_zombie(pid: int) -> bool:
    """Whether it only waits for its parent to take it up: in a container nobody may do so."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _below(pid: int) -> list[int]:
    """Return the processes that descend from this one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def test_a_living_servers_sessions_are_left_alone(tmp_path: Path) -> None:
    """Another server on the same folder is not swept away, and neither is a process that got an old number."""
    records = Records(tmp_path)
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        mine = records.write(bystander.pid, None)
        other = Records(tmp_path)
        other.me = [os.getppid(), began(os.getppid())]
        theirs = other.write(bystander.pid, None)
        note = json.loads(theirs.read_text())
        note["server"] = [2**22 - 1, 1]  # a server that is gone
        note["began"] += 1  # and whose session's number was given to another process since
        gone = tmp_path / "gone.json"
        gone.write_text(json.dumps(note))
        (tmp_path / "half.json").write_text('{"pid": 1')
        assert records.sweep() == []
        assert bystander.poll() is None
        assert mine.exists()
        assert theirs.exists()
        assert not gone.exists()
        assert not (tmp_path / "half.json").exists()
    finally:
        bystander.kill()
        bystander.wait()


def test_removing_a_folder_follows_no_link(tmp_path: Path) -> None:
    """The code may have closed its folders and pointed links at the server's files."""
    kept = tmp_path / "kept.txt"
    kept.write_text("kept")
    kept.chmod(0o640)
    box = tmp_path / "box"
    (box / "closed").mkdir(parents=True)
    (box / "closed" / "file").write_text("x")
    (box / "link").symlink_to(kept)
    (box / "closed" / "out").symlink_to(tmp_path)
    (box / "closed").chmod(0)
    remove_folder(box)
    assert not box.exists()
    assert kept.read_text() == "kept"
    assert kept.stat().st_mode & 0o777 == 0o640
