"""Which Python a box gets."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from perdure.errors import OperatorError
from perdure.sandbox.base import Limits
from perdure.sandbox.environment import (
    NOTE,
    build_environment,
    find_environment,
    open_to_all,
    plain_environment,
)
from perdure.sandbox.words import cut, ended, hinted, size
from perdure.settings import read_settings


def test_without_a_built_one_it_is_the_plain_interpreter(tmp_path: Path) -> None:
    found = find_environment(read_settings(data=tmp_path))
    assert found == plain_environment()
    assert found.packages == {}
    assert "perdure sandbox build" in found.about
    assert not any(root.is_relative_to(sys.prefix) for root in found.roots) or sys.prefix == sys.base_prefix


def test_a_built_one_is_found_by_its_note(tmp_path: Path) -> None:
    (tmp_path / "sandbox-env").mkdir()
    note = tmp_path / "sandbox-env" / NOTE
    note.write_text(json.dumps({"roots": ["/opt/python"], "packages": {"numpy": "1"}}))
    found = find_environment(read_settings(data=tmp_path))
    assert found.python == tmp_path / "sandbox-env" / "venv" / "bin" / "python"
    assert found.roots == [Path("/opt/python"), tmp_path / "sandbox-env"]
    assert found.about == "numpy 1"
    note.write_text("{")
    assert find_environment(read_settings(data=tmp_path)) == plain_environment()


def test_what_others_can_not_reach_is_known(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "file").write_text("x")
    assert not open_to_all(tmp_path / "file")
    assert open_to_all(Path("/usr/bin"))
    assert not open_to_all(tmp_path / "missing")


def test_a_build_that_fails_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OperatorError, match="can not be"):
        build_environment(read_settings(data=tmp_path, code_environment=tmp_path / "file" / "env"), lambda _: None)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(OperatorError, match="something else"):
        build_environment(read_settings(data=tmp_path, code_environment=tmp_path), lambda _: None)
    assert (tmp_path / "kept.txt").exists()


def test_limits_are_told_in_words() -> None:
    limits = Limits()
    assert ended("memory", limits, kept=False) == (
        "The code used more than 1 GiB of memory and was stopped. The interpreter was started anew: variables, imports "
        "and functions are gone; files in /mnt/data are kept."
    )
    assert ended("ok", limits, kept=True) == ""
    assert hinted("file", limits) == "Limit: a file may be 128 MiB long."
    assert "256 KiB" in cut(limits)
    assert [size(1), size(1536), size(3 * 1024**3)] == ["1 bytes", "1.5 KiB", "3 GiB"]
    assert Limits.of(read_settings()).memory_bytes == 1024**3
