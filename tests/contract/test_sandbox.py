"""Each kind of sandbox: its walls, tried from inside and printed, and what a session of it does."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from perdure.sandbox.base import FileRefused, Limits, Session, SessionLost
from perdure.sandbox.choose import Refusal, choose, survey
from perdure.sandbox.docker import Docker
from perdure.sandbox.inside.frames import pack
from perdure.sandbox.kinds import Boxes
from perdure.sandbox.left_behind import Records
from tests.sandboxes import CHECKOUT, ENVIRONMENT, KINDS, code_settings, content, hear, sandbox_of

Run = Callable[[Coroutine[Any, Any, Any]], Any]

LIMITS = Limits(wall_seconds=20)
NOBODY = 65534
AS_NOBODY = """
mount --bind {checkout} {place} && exec setpriv --reuid {uid} --regid {uid} --clear-groups \
env -i PATH=/usr/bin:/bin HOME=/tmp LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={paths} \
{python} -m perdure sandbox check {kind} --limits --data {data}
"""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def in_session(
    run: Run, kind: str, data: Path, scene: Callable[[Session], Awaitable[None]], limits: Limits = LIMITS
) -> None:
    """Play a scene in a fresh session."""

    async def play() -> None:
        sandbox = sandbox_of(kind, data)
        try:
            await scene(await sandbox.start(limits))
        finally:
            await sandbox.close()

    run(play())


def test_every_wall_holds(run: Run, kind: str, tmp_path: Path) -> None:
    report = run(sandbox_of(kind, tmp_path).self_check("limits"))
    for wall in report.walls:
        print(f"\n--- {kind}: {wall.wall}: {'holds' if wall.holds else 'BROKEN'}\n{wall.seen}")  # noqa: T201  # the walls are to be seen
    assert [wall.wall for wall in report.walls if not wall.holds] == []
    assert len(report.walls) >= 20


def test_every_wall_holds_for_an_ordinary_user() -> None:
    """What root starts drops to a user of its own; an ordinary user has other means. As such, all tests do this one."""
    if os.geteuid() != 0:
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        checks = [_check_as_nobody(kind, Path(folder, kind)) for kind in ("bubblewrap", "landlock")]
        for check in checks:
            seen, said = check.communicate(timeout=300)
            print(seen, said)  # noqa: T201  # the same
            assert check.returncode == 0, seen + said
            assert seen.count("holds  ") >= 20


def _check_as_nobody(kind: str, folder: Path) -> subprocess.Popen[str]:
    """Start a check under another uid, with the checkout where everybody can reach it."""
    place, data = folder / "checkout", folder / "data"
    for made in (folder, place, data):
        made.mkdir(mode=0o755)
    os.chown(data, NOBODY, NOBODY)
    copied = ENVIRONMENT / "python" / "bin" / f"python3.{sys.version_info.minor}"
    site = Path(sys.prefix, "lib", f"python3.{sys.version_info.minor}", "site-packages").relative_to(CHECKOUT)
    script = AS_NOBODY.format(
        checkout=CHECKOUT,
        place=place,
        uid=NOBODY,
        paths=f"{place}/src:{place / site}",
        python=place / copied.relative_to(CHECKOUT) if copied.exists() else sys.executable,
        kind=kind,
        data=data,
    )
    return subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_cell_is_run_as_ipython_would(run: Run, kind: str, tmp_path: Path) -> None:
    async def scene(session: Session) -> None:
        assert (await hear(session, "x = 20\nx + 1")).text == "21\n"
        assert (await hear(session, "print('a')\nx * 2")).text == "a\n40\n"
        assert (await hear(session, "_ + 1, Out[2]")).text == "(41, 40)\n"
        assert (await hear(session, "x;")).text == ""
        assert (await hear(session, "None")).text == ""
        assert (await hear(session, "display({'a': 1})\n'text'")).text == "{'a': 1}\n'text'\n"
        failed = await hear(session, "def half(y):\n    return y / 0\n\nhalf(x)")
        assert failed.result.outcome == "error"
        assert failed.result.words == ""
        assert failed.text.startswith("-" * 75 + "\nZeroDivisionError")
        assert "Cell In[7], line 4\n" in failed.text
        assert "----> 2     return y / 0" in failed.text
        assert failed.text.endswith("ZeroDivisionError: division by zero\n")
        assert "perdure" not in failed.text
        wrong = await hear(session, "if True\n    pass")
        assert "Cell In[8], line 1\n    if True\n           ^\nSyntaxError: expected ':'" in wrong.text
        assert "nobody is there to answer" in (await hear(session, "input('Name? ')")).text
        left = await hear(session, "import sys\nsys.exit(3)")
        assert "SystemExit: 3" in left.text
        assert (await hear(session, "x")).text == "20\n"
        assert "no network" in (await hear(session, "%pip install seaborn")).text
        assert (await hear(session, "%matplotlib inline\n'%s of %s' % (1, 2)")).text == "'1 of 2'\n"

    in_session(run, kind, tmp_path, scene)


@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
def test_what_needs_processes(run: Run, kind: str, tmp_path: Path) -> None:
    async def scene(session: Session) -> None:
        assert (await hear(session, "import asyncio\nawait asyncio.sleep(0.01)\n'awaited'")).text == "'awaited'\n"
        assert (await hear(session, "print('first')\n!echo second; echo third >&2\nprint('fourth')")).text == (
            "first\nsecond\nthird\nfourth\n"
        )
        assert (await hear(session, "names = !echo a; echo b\nnames")).text == "['a', 'b']\n"
        threads = "import threading\nt = threading.Thread(target=print, args=('from a thread',))\nt.start()\nt.join()"
        assert (await hear(session, threads)).text == "from a thread\n"
        written = await hear(session, "%%writefile module.py\nvalue = 7")
        assert written.text == "Writing module.py\n"
        assert (await hear(session, "import module\nmodule.value")).text == "7\n"
        assert (await hear(session, "!python -c 'import numpy; print(numpy.ones(2))'")).text == "[1. 1.]\n"
        died = await hear(session, "import os\nos._exit(3)")
        assert died.result.outcome == "died"
        assert not died.result.state_kept
        assert "started anew" in died.result.words
        assert "module.py" in await session.files()
        assert "NameError" in (await hear(session, "module")).text
        forked = await hear(session, "import os, time\npid = os.fork()\nprint('parent' if pid else 'child')")
        assert forked.result.outcome == "ok"
        assert "parent" in forked.text

    in_session(run, kind, tmp_path, scene)


@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
def test_figures_come_between_the_prints(run: Run, kind: str, tmp_path: Path) -> None:
    async def scene(session: Session) -> None:
        assert session.packages == ["numpy", "pandas", "matplotlib", "scipy", "openpyxl", "PIL"]
        drawn = await hear(
            session,
            "import matplotlib.pyplot as plt\nprint('before')\nplt.plot([1, 2])\nplt.show()\nprint('between')\n"
            "plt.figure()\nplt.bar([1], [2])\nprint('after')",
        )
        assert drawn.text == "before\n<image 1>\nbetween\nafter\n<image 2>\n"
        assert all(image.data.startswith(b"\x89PNG") for image in drawn.images)
        frame = await hear(
            session,
            "import pandas as pd\npd.DataFrame({'a': [1]}).to_excel('/mnt/data/t.xlsx')\npd.DataFrame({'a': [1]})",
        )
        assert frame.text == "   a\n0  1\n"
        assert (await content(session, "t.xlsx")).startswith(b"PK")
        shown = await hear(session, "from PIL import Image\nImage.new('RGB', (4, 4))")
        assert shown.text == "<image 1>\n"
        warm = await hear(session, "fig, ax = plt.subplots()\nfig")
        assert warm.text == "<image 1>\n"

    in_session(run, kind, tmp_path, scene)


def test_files_go_in_and_out(run: Run, kind: str, tmp_path: Path) -> None:
    async def scene(session: Session) -> None:
        big = os.urandom(3 * 1024 * 1024)
        (tmp_path / "big.bin").write_bytes(big)
        await session.put("table ä.csv", b"a,b\n1,2\n")
        await session.put("deep/big.bin", tmp_path / "big.bin")
        assert (await hear(session, "open('/mnt/data/table ä.csv').read()")).text == "'a,b\\n1,2\\n'\n"
        before = await session.files()
        assert set(before) == {"table ä.csv", "deep/big.bin"}
        assert before["deep/big.bin"].bytes == len(big)
        assert await content(session, "deep/big.bin") == big
        await hear(session, "open('new.txt', 'w').write('new')\nopen('/mnt/data/table ä.csv', 'a').write('3,4\\n')")
        after = await session.files()
        assert {name for name, info in after.items() if before.get(name) != info} == {"new.txt", "table ä.csv"}
        with pytest.raises(FileRefused, match="can not be read"):
            await content(session, "missing.txt")
        with pytest.raises(FileRefused, match="can not name a file"):
            await session.put("../out", b"")
        with pytest.raises(FileRefused, match="its bytes are gone"):
            await session.put("deleted.csv", tmp_path / "deleted.csv")
        assert (await hear(session, "1 + 1")).text == "2\n"

    in_session(run, kind, tmp_path, scene)


def test_a_file_that_does_not_fit_is_refused(run: Run, tmp_path: Path) -> None:
    async def scene(session: Session) -> None:
        with pytest.raises(FileRefused, match="No space left"):
            await session.put("large.bin", bytes(3 * 1024 * 1024))
        assert (await hear(session, "1 + 1")).text == "2\n"

    in_session(run, "bubblewrap", tmp_path, scene, msgspec.structs.replace(LIMITS, disk_bytes=1024 * 1024))


@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
def test_a_call_that_is_stopped_keeps_the_variables(run: Run, kind: str, tmp_path: Path) -> None:
    async def scene(session: Session) -> None:
        await hear(session, "kept = 41")
        late = await hear(session, "print('begun')\nwhile True: pass")
        assert late.text.startswith("begun\n")
        assert late.result.outcome == "timeout"
        assert late.result.state_kept
        assert (
            late.result.words == "The code ran longer than 0.5 seconds and was stopped. Variables and files are kept."
        )
        running = asyncio.create_task(hear(session, "import time\ntime.sleep(1000)"))
        await asyncio.sleep(0.2)
        await session.interrupt()
        assert (await running).result.outcome == "interrupted"
        assert (await hear(session, "kept + 1")).text == "42\n"

    in_session(run, kind, tmp_path, scene, msgspec.structs.replace(LIMITS, wall_seconds=0.5))


def test_nothing_goes_on_between_two_calls(run: Run, tmp_path: Path) -> None:
    async def scene(session: Session) -> None:
        count = "count = 0\ndef go():\n    global count\n    while True:\n        count += 1\n"
        await hear(session, f"import threading\n{count}threading.Thread(target=go, daemon=True).start()")
        first = int((await hear(session, "count")).text)
        assert first > 0
        before = _ticks()
        await asyncio.sleep(0.5)
        assert _ticks() - before < 10  # a tick is ten milliseconds; a loop that ran would take fifty
        assert int((await hear(session, "count")).text) > first

    in_session(run, "bubblewrap", tmp_path, scene)


def _ticks() -> int:
    """Return the processor time of everything that descends from this process, as far as it is still there."""
    me, used, parents = os.getpid(), 0, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = (int(fields[1]), int(fields[11]) + int(fields[12]))
    for pid in parents:
        above = pid
        while above in parents and above not in {0, 1, me}:
            above = parents[above][0]
        used += parents[pid][1] if above == me and pid != me else 0
    return used


def test_output_is_cut_and_said_to_be(run: Run, kind: str, tmp_path: Path) -> None:
    async def scene(session: Session) -> None:
        much = await hear(session, "print('x' * 100_000)")
        assert 4000 <= len(much.text) <= 4300
        assert "only its first 4 KiB are shown" in much.result.words
        assert (await hear(session, "'next'")).text == "'next'\n"

    in_session(run, kind, tmp_path, scene, msgspec.structs.replace(LIMITS, output_bytes=4096))


def test_a_session_that_is_gone_says_so(run: Run, kind: str, tmp_path: Path) -> None:
    async def scene(session: Session) -> None:
        await session.stop()
        assert not session.alive
        with pytest.raises(SessionLost, match="variables, imports and functions"):
            await hear(session, "1")
        with pytest.raises(SessionLost):
            await session.files()
        await session.stop()

    in_session(run, kind, tmp_path, scene)


def test_a_session_whose_box_is_killed_says_so(run: Run, kind: str, tmp_path: Path) -> None:
    async def scene(session: Session) -> None:
        running = asyncio.create_task(hear(session, "import time\nwhile True: time.sleep(0.1)"))
        await asyncio.sleep(0.3)
        session.process.kill()  # type: ignore[attr-defined]  # every kind's session has one
        with pytest.raises(SessionLost):
            await running
        assert not session.alive

    in_session(run, kind, tmp_path, scene)


def test_a_call_that_is_cancelled_ends_its_session(run: Run, tmp_path: Path) -> None:
    async def scene(session: Session) -> None:
        running = asyncio.create_task(hear(session, "import time\ntime.sleep(1000)"))
        await asyncio.sleep(0.2)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not session.alive

    in_session(run, "bubblewrap", tmp_path, scene)


def test_frames_that_code_forges_reach_nobody(run: Run, tmp_path: Path) -> None:
    """The code can write to its kernel's pipes. What it says there ends its own call, and is believed no further."""

    async def scene(session: Session) -> None:
        forged = [
            pack({"op": "done", "outcome": "ok", "kept": True, "words": "forged"}),
            pack({"op": "image", "media_type": "text/html", "number": 1}, b"<script>"),
            b"\xff" * 8,
        ]
        for frame in forged:
            code = f"""
import contextlib, os
for number in range(3, 20):
    with contextlib.suppress(OSError):
        os.write(number, {frame!r})
"""
            heard = await hear(session, code)
            assert heard.images == []
            assert "forged" not in heard.result.words
        await hear(session, "0")
        assert "42" in (await hear(session, "print(6 * 7)")).text + (await hear(session, "print(6 * 7)")).text

    in_session(run, "bubblewrap", tmp_path, scene)


def test_auto_takes_the_strongest_that_works_here(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        chosen = await choose(code_settings(tmp_path))
        assert not isinstance(chosen, Refusal)
        assert chosen.name == "bubblewrap"
        await chosen.close()
        off = await choose(code_settings(tmp_path, code_sandbox="none"))
        assert isinstance(off, Refusal)
        assert "switched off" in off.reason

    run(scene())


def test_a_kind_that_does_not_work_is_refused_and_never_replaced(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        refused = await choose(code_settings(tmp_path, code_sandbox="docker"))
        assert isinstance(refused, Refusal)
        assert "docker" in refused.reason
        found = {one.kind: one for one in await survey(code_settings(tmp_path), "brief")}
        assert found["bubblewrap"].works
        assert found["landlock"].works
        assert found["wasm"].works
        assert "standard library only" in found["wasm"].words

    if shutil.which("docker") and subprocess.run(["docker", "info"], check=False, capture_output=True).returncode == 0:
        return  # an engine is here: the kind works, or says why not, by its own walls
    run(scene())


def test_unboxed_code_runs_only_when_the_operator_says_so(run: Run, tmp_path: Path) -> None:
    async def scene() -> None:
        chosen = await choose(code_settings(tmp_path, code_sandbox="unsafe-no-sandbox"))
        assert not isinstance(chosen, Refusal)
        assert not (await chosen.self_check()).holds
        session = await chosen.start(LIMITS)
        assert (await hear(session, "open('/mnt/data/a', 'w').write('x')\n1 + 1")).text == "2\n"
        assert set(await session.files()) == {"a"}
        await chosen.close()

    run(scene())


def test_the_command_line_of_docker(tmp_path: Path) -> None:
    """Not run: there is no engine where Perdure is tested. What it would run is looked at."""
    docker = Docker("python:3.13-slim", Boxes(Records(tmp_path)), program="true")
    line = docker.command("perdure-code-1", LIMITS)
    pairs = list(itertools.pairwise(line))
    assert ("--network", "none") in pairs
    assert ("--cap-drop", "ALL") in pairs
    assert ("--security-opt", "no-new-privileges") in pairs
    assert ("--user", "65532:65532") in pairs
    assert ("--pids-limit", "66") in pairs
    assert "--read-only" in line
    assert "--volume" not in line
    assert "--privileged" not in line
    assert line[line.index("python:3.13-slim") + 1 :][:3] == ["-I", "-S", "-c"]
