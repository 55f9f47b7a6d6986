"""`perdure vector-stores`, as an operator uses it against a running server."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.api.test_cli import perdure, refused
from tests.server import Client, running_server

Do = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_server(tmp_path_factory.mktemp("cli") / "data", embedding_model="hashing") as base_url:
        yield base_url


@pytest.fixture
def do(url: str, tmp_path: Path) -> Do:
    return lambda *words: perdure("vector-stores", *words, cwd=tmp_path, OPENAI_BASE_URL=url, OPENAI_API_KEY="k")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty documents, one of them deeper down, and what must be left out."""
    docs = tmp_path / "docs"
    (docs / "deeper").mkdir(parents=True)
    (docs / ".git").mkdir()
    (docs / ".git" / "config").write_text("hidden")
    (docs / "empty.txt").write_text("")
    for number in range(19):
        (docs / f"{number:02}.txt").write_text(f"Document {number} is about topic{number}.")
    (docs / "deeper" / "last.md").write_text("# Refunds\n\nThey take fourteen days.")
    return docs


def names_in(client: Client, name: str) -> list[str]:
    """The paths of all files in the store of that name."""
    (store,) = [one for one in client.vector_stores.list(limit=100).data if one.name == name]
    return sorted(str((one.attributes or {})["path"]) for one in client.vector_stores.files.list(store.id, limit=100))


def test_a_folder_is_added_and_again_only_what_changed(do: Do, folder: Path, client: Client) -> None:
    done = do("add", "Handbook", str(folder))
    assert (done.returncode, done.stdout.split(" (")[0]) == (
        0,
        "Handbook: 20 files read, 0 were there already, 0 failed",
    )
    assert len(names_in(client, "Handbook")) == 20
    assert "docs/deeper/last.md" in names_in(client, "Handbook")
    uploaded = len(client.files.list().data)

    done = do("add", "Handbook", str(folder))
    assert "0 files read, 20 were there already" in done.stdout
    assert len(client.files.list().data) == uploaded

    (folder / "00.txt").write_text("Quite another text about zebras.")
    (folder / "new.txt").write_text("A new one.")
    done = do("add", "Handbook", str(folder))
    assert "2 files read, 19 were there already" in done.stdout
    assert len(names_in(client, "Handbook")) == 21
    assert len(client.files.list().data) == uploaded + 1

    done = do("search", "Handbook", "zebras", "--results", "1")
    assert done.returncode == 0
    assert "docs/00.txt" in done.stdout
    assert "    Quite another text about zebras." in done.stdout
    assert "Handbook" in do("list").stdout


def test_failures_are_named_and_tried_again(do: Do, folder: Path, client: Client) -> None:
    (folder / "broken.pdf").write_bytes(b"this is no pdf")
    done = do("add", "Broken", str(folder))
    assert done.returncode == 1
    assert "failed  docs/broken.pdf: " in done.stdout
    assert "1 failed" in done.stdout
    uploaded = len(client.files.list().data)
    done = do("add", "Broken", str(folder))
    assert (done.returncode, "1 files read, 20 were there already, 1 failed" in done.stdout) == (1, True)
    assert len(client.files.list().data) == uploaded


def test_a_rebuild(do: Do, folder: Path) -> None:
    do("add", "Again", str(folder))
    done = do("rebuild", "Again")
    assert (done.returncode, done.stdout) == (0, "Again: 20 files, 0 failed\n")


def test_mistakes_are_one_line(do: Do, tmp_path: Path) -> None:
    assert "there is no folder" in refused(do("add", "X", "nowhere"))
    assert "vector-stores list" in refused(do("search", "Nobody", "x"))
    assert "vector-stores list" in refused(do("rebuild", "Nobody"))
    away = perdure("vector-stores", "list", "--url", "http://127.0.0.1:9/v1", cwd=tmp_path)
    assert "does not answer" in refused(away)
