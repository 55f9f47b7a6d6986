"""`perdure demo` as a process of its own: what it shows, and that nothing of it is left."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from tests.run_tutorial import shape_of

ADDRESS = re.compile(r"on http://127\.0\.0\.1:(\d+)/v1, model 'scripted'\.$", re.MULTILINE)
QUESTIONS = 6


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """An empty folder to start the demo in; the place for temporary files is `tmp` in it."""
    (tmp_path / "tmp").mkdir()
    return tmp_path


def start(place: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PERDURE_", "OPENAI_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "perdure", "demo", *arguments],
        cwd=place,
        env={**plain, "TMPDIR": str(place / "tmp"), "PYTHONIOENCODING": "utf-8", "COLUMNS": "80", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )


def write_script(place: Path, script: object) -> str:
    path = place / "script.json"
    path.write_text(json.dumps(script))
    return str(path)


def assert_nothing_is_left(place: Path, shown: str, process: subprocess.Popen[str]) -> None:
    assert list((place / "tmp").iterdir()) == []
    assert {one.name for one in place.iterdir()} <= {"tmp", "script.json"}
    found = ADDRESS.search(shown)
    assert found is not None, shown
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(found[1]))) != 0
    if os.name == "posix":
        with pytest.raises(ProcessLookupError):  # the whole group of processes is gone
            os.killpg(process.pid, 0)


def test_the_demo_holds_the_conversation_and_leaves_nothing(place: Path) -> None:
    with start(place, "--model", "scripted") as process:
        shown, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert [one for one in shape_of(shown) if one.startswith("[")] == ["[USER]", "[ASSISTANT]"] * QUESTIONS
    assert "3 threads at once:" in shown
    assert shown.index("3 threads at once:") < shown.index("선형대수")
    assert "\nYou said: 방정식 `3x + 11 = 14`는 어떻게 푸나요?\n" in shown
    times = re.findall(r"^\(first token after \d+\.\d\d s, whole answer after \d+\.\d\d s\)$", shown, re.MULTILINE)
    assert len(times) == QUESTIONS
    assert "\x1b" not in shown, "no escape codes where there is no terminal"
    assert_nothing_is_left(place, shown, process)


def read_until(stream: IO[str], text: str) -> str:
    shown = ""
    while text not in shown:
        line = stream.readline()
        assert line, shown
        shown += line
    return shown


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + 15)])
def test_a_demo_that_is_interrupted_leaves_nothing(place: Path, number: signal.Signals, status: int) -> None:
    script = write_script(place, {"otherwise": {"say": "one two three", "delay_seconds": 30}})
    with start(place, "--model", "scripted", PERDURE_SCRIPT=script) as process:
        assert process.stdout is not None
        shown = read_until(process.stdout, "[ASSISTANT]")
        process.send_signal(number)
        rest, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert "Traceback" not in errors
    assert "The demo is over" not in rest
    assert_nothing_is_left(place, shown, process)


@pytest.mark.parametrize("when", ["3x", "선형대수"], ids=["one thread", "three at once"])
def test_a_run_that_fails_is_said_in_one_line(place: Path, when: str) -> None:
    script = write_script(place, {"rules": [{"when": when, "fail": {"status": 400, "message": "No, thank you."}}]})
    with start(place, "--model", "scripted", PERDURE_SCRIPT=script) as process:
        shown, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = errors.splitlines()
    assert line.startswith("perdure: the model gave no answer: ")
    assert "No, thank you." in line
    assert_nothing_is_left(place, shown, process)


def test_weights_that_are_not_there_are_said_in_one_line(place: Path) -> None:
    with start(place, "--model", "no-such-model") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    (line,) = errors.splitlines()
    assert "there is no 'no-such-model'" in line
    assert list((place / "tmp").iterdir()) == []


def test_without_the_official_client_one_line_says_what_to_install(place: Path) -> None:
    hide = (
        "import importlib.util as util, sys\n"
        "find = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'openai' else find(name, package)\n"
        "sys.argv[0] = 'perdure'\n"
        "from perdure.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", hide, "demo", "--model", "scripted"],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.strip().endswith("pip install 'perdure[demo]'`")


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_on_a_terminal_three_answers_grow_side_by_side(place: Path) -> None:
    import pty  # noqa: PLC0415  # not there on Windows

    ours, theirs = pty.openpty()
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PERDURE_", "OPENAI_"))}
    with subprocess.Popen(
        [sys.executable, "-m", "perdure", "demo", "--model", "scripted"],
        cwd=place,
        env={**plain, "TMPDIR": str(place / "tmp"), "TERM": "xterm-256color", "COLUMNS": "60", "LINES": "40"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:  # how Linux says that the other end is closed
            pass
        os.close(ours)
        assert process.wait(30) == 0
    text = shown.decode()
    assert "╭─ 선형대수는 무엇을 배우는 과목인가요? ─" in text
    assert "│ You said: 선형대수는 무엇을 배우는 과목인가요?" in text
    assert "╰─" in text
    assert text.rstrip().endswith("The demo is over; its server and its folder are gone.")
    assert list((place / "tmp").iterdir()) == []
