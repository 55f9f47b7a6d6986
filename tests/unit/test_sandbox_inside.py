"""What runs inside a box, as far as it is pure: frames, names of files, commands in cells, tracebacks."""

from __future__ import annotations

import ast
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.sandbox.bundle import INSIDE, boot_bytes
from perdure.sandbox.inside import files, frames, trace
from perdure.sandbox.inside.cell import hint_of
from perdure.sandbox.inside.commands import rewrite
from perdure.sandbox.inside.telling import Telling


def test_it_is_written_for_old_pythons() -> None:
    for path in INSIDE.glob("*.py"):
        text = path.read_text()
        ast.parse(text, feature_version=(3, 9))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert not (node.module or "").startswith("perdure"), path
    assert boot_bytes({"limits": {}})[:8].isdigit()


@given(st.lists(st.tuples(st.text(), st.binary(max_size=300)), max_size=5), st.integers(1, 50))
def test_frames_survive_any_cut(sent: list[tuple[str, bytes]], step: int) -> None:
    stream = b"".join(frames.pack({"op": "x", "text": text}, body) for text, body in sent)
    reader, got = frames.FrameReader(), []
    for begin in range(0, len(stream), step):
        got += list(reader.feed(stream[begin : begin + step]))
    assert [(head["text"], body) for head, body in got] == sent


@given(st.binary(min_size=8, max_size=64))
def test_what_is_no_frame_is_never_more_than_a_bad_one(data: bytes) -> None:
    try:
        list(frames.FrameReader().feed(data))
    except frames.BadFrame:
        return


@given(st.text(max_size=40))
def test_a_name_that_is_taken_stays_inside(name: str) -> None:
    try:
        parts = files.check_name(name)
    except files.Refused:
        return
    path = os.path.normpath(f"/mnt/data/{name}")
    assert path == "/mnt/data/" + "/".join(parts)
    assert not any(letter in name for letter in "\n\r\t\x1b\\\x00\u2028")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/../b", "/a", "a//b", "a/", "a\nb", "a\x00b", "\\a", "a" * 2000]
)
def test_names_that_are_refused(name: str, tmp_path: Path) -> None:
    folder = files.Folder(str(tmp_path))
    for use in (folder.open_to_write, folder.open_to_read):
        with pytest.raises(files.Refused):
            use(name)


def test_links_and_pipes_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("outside")
    root = tmp_path / "data"
    root.mkdir()
    folder = files.Folder(str(root))
    (root / "link").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    (root / "kept.txt").write_text("kept")
    (root / "a\nb").write_text("strange")
    (root / "deep").mkdir()
    (root / "deep" / "up").symlink_to("..")
    for name in ("link", "folder/outside.txt", "pipe", "deep"):
        with pytest.raises(files.Refused):
            folder.open_to_read(name)
    with pytest.raises(files.Refused):
        folder.open_to_write("folder/new.txt")
    found, cut = folder.listed()
    assert [one[:2] for one in found] == [["kept.txt", 4]]
    assert cut
    os.close(folder.open_to_write("link"))
    os.close(folder.open_to_write("pipe"))
    assert stat.S_ISREG((root / "link").lstat().st_mode)
    assert outside.read_text() == "outside"
    assert files.space_used(str(root), 100)[1] == 7


def test_a_folder_is_held_even_if_its_path_leads_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "key.txt").write_text("secret")
    root = tmp_path / "data"
    root.mkdir()
    (root / "own.txt").write_text("own")
    folder = files.Folder(str(root))
    root.rename(tmp_path / "moved")
    root.symlink_to(tmp_path / "secrets")
    assert [one[0] for one in folder.listed()[0]] == ["own.txt"]
    with pytest.raises(files.Refused):
        folder.open_to_read("key.txt")
    with pytest.raises(OSError, match="directory"):
        files.Folder(str(root))


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("!ls -l", "get_ipython().system('ls -l')"),
        ("  x = 1\n", None),
        ("x = !ls", "x = get_ipython().getoutput('ls')"),
        ("%pip install a", "get_ipython().run_line_magic('pip', 'install a')"),
        ("if True:\n    !ls\n    y = 2", "if True:\n    get_ipython().system('ls')\n    y = 2"),
        ('text = """\n!ls\n%magic\n"""\n!pwd', 'text = """\n!ls\n%magic\n"""\nget_ipython().system(\'pwd\')'),
        ("x = 7\nx\\\n% 4", "x = 7\nx\\\n% 4"),
        ("'%d' % 3", "'%d' % 3"),
    ],
)
def test_only_what_python_stumbles_at_is_a_command(code: str, wanted: str | None) -> None:
    if wanted is None:
        with pytest.raises(SyntaxError):
            rewrite(code, "<cell 1>")
    else:
        assert rewrite(code, "<cell 1>")[1] == wanted


def test_a_chain_of_exceptions_is_told_oldest_first() -> None:
    def fail() -> None:
        try:
            os.environ.copy().pop("a variable that nobody sets")
        except KeyError as error:
            raise ValueError("second") from error

    with pytest.raises(ValueError, match="second") as failed:
        fail()
    text = trace.show(failed.value, 1)
    assert text.index("KeyError: 'a variable") < text.index("direct cause") < text.index("ValueError: second")


def test_an_exception_that_names_itself_its_cause_comes_to_an_end() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert "ValueError: a" in trace.show(first, 1)
    assert hint_of(first) == ""
    assert hint_of(MemoryError()) == "memory"
    assert hint_of(OSError(28, "full")) == "disk"


def test_prints_are_put_together_and_bounded() -> None:
    telling = Telling(10, "/real/folder")
    telling.add_prints("äö".encode()[:3])
    telling.add_prints("äö".encode()[3:] + b"/real/folder/and more")
    telling.add_image("image/png", b"png")
    assert telling.end()
    got = list(frames.FrameReader().feed(bytes(telling.waiting)))
    assert [head["op"] for head, _ in got] == ["logs", "image"]
    assert got[0][1].decode() == "äö/real/"
    assert not telling.flooded
    telling.add_prints(b"x" * 1000)
    assert telling.flooded
