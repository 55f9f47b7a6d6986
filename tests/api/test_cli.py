"""The command line, as an operator uses it: one line for each mistake, keys, doctor, help."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server import ServerProcess


def perdure(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    return subprocess.run(
        [sys.executable, "-m", "perdure", *arguments],
        cwd=cwd,
        env={**clean, "COLUMNS": "200", **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that an operator's mistake leaves."""
    assert done.returncode == 2, done
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("perdure: ")
    return lines[0]


def test_a_taken_port_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = perdure("serve", "--port", port, "--builtin-model", "scripted", cwd=tmp_path)
    assert "PERDURE_PORT" in refused(done)


def test_a_wrong_setting_is_said_in_one_line(tmp_path: Path) -> None:
    assert "PERDURE_CONCURRENCY" in refused(perdure("serve", cwd=tmp_path, PERDURE_CONCURRENCY="many"))
    assert "is not an http(s) URL" in refused(perdure("serve", "--upstream-url", "localhost", cwd=tmp_path))
    assert "JSON" in refused(perdure("serve", "--model-map", "{", cwd=tmp_path))


def test_a_data_folder_that_can_not_be_made_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = perdure("serve", "--data", "file/data", "--builtin-model", "scripted", "--port", "0", cwd=tmp_path)
    assert "PERDURE_DATA" in refused(done)


def test_a_postgres_that_does_not_answer_is_said_in_one_line(tmp_path: Path) -> None:
    url = "postgresql://somebody:secret@127.0.0.1:1/perdure"
    line = refused(perdure("serve", "--database-url", url, "--builtin-model", "scripted", "--port", "0", cwd=tmp_path))
    assert "127.0.0.1" in line
    assert "secret" not in line


def test_a_file_that_is_no_database_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "perdure-data").mkdir()
    (tmp_path / "perdure-data" / "perdure.db").write_bytes(b"not a database, but long enough to look like a file" * 99)
    assert "perdure.db" in refused(perdure("serve", "--builtin-model", "scripted", "--port", "0", cwd=tmp_path))


def test_an_open_door_is_refused(tmp_path: Path) -> None:
    done = perdure("serve", "--host", "0.0.0.0", "--builtin-model", "scripted", "--port", "0", cwd=tmp_path)
    assert "perdure keys create" in refused(done)


def test_without_any_model_the_server_says_what_to_do(tmp_path: Path) -> None:
    line = refused(perdure("serve", "--builtin-model", "nothing-like-it", "--port", "0", cwd=tmp_path))
    assert "perdure models pull" in line


def test_the_server_announces_url_and_key(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "data")
    try:
        assert server.process.stdout is not None
        assert "OPENAI_API_KEY=perdure" in server.process.stdout.readline()
    finally:
        server.stop()
    assert server.process.returncode == 0


def test_a_variable_that_is_no_setting_is_named_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = perdure("serve", "--data", "file/data", cwd=tmp_path, PERDURE_PROT="1")
    assert "PERDURE_PROT is no setting" in done.stderr


def test_doctor_finds_what_is_wrong_and_what_is_right(tmp_path: Path) -> None:
    good = perdure("doctor", cwd=tmp_path, PERDURE_BUILTIN_MODEL="scripted", PERDURE_PORT="0")
    assert good.returncode == 0, good
    assert "FAIL" not in good.stdout
    bad = perdure(
        "doctor",
        cwd=tmp_path,
        PERDURE_BUILTIN_MODEL="none",
        PERDURE_PORT="0",
        PERDURE_UPSTREAM_URL="http://127.0.0.1:1/v1",
    )
    assert bad.returncode == 1
    assert "FAIL model default: " in bad.stdout
    assert "http://127.0.0.1:1/v1" in bad.stdout


@pytest.mark.parametrize("command", ["serve", "demo", "keys", "models", "doctor"])
def test_every_command_explains_itself(command: str, tmp_path: Path) -> None:
    done = perdure(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage" in done.stdout
