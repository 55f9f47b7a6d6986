"""Backup and restore of files and vector stores: from and into folders and buckets, into SQLite and Postgres."""

from __future__ import annotations

import json
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import openai
import pytest

from perdure.archive import MANIFEST, Manifest
from tests.api.scenes import refused as refusal_of
from tests.api.test_backup import answer
from tests.api.test_cli import perdure, refused
from tests.api.test_vector_stores import TEXTS, filled
from tests.postgres_server import postgres_server
from tests.s3_server import client_of, new_bucket, s3_server
from tests.server import Client, running_server

LARGE = os.urandom(1 << 20) * 7
QUERIES = ["When are refunds paid?", "환불", "lamp price", "Korea parcels nine days"]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def buckets(s3: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two buckets."""
    return [new_bucket(s3, monkeypatch) for _ in range(2)]


@pytest.fixture(scope="module")
def database_url() -> Iterator[str]:
    with postgres_server() as url:
        yield url


class Place(NamedTuple):
    """Where a server keeps everything."""

    data: Path
    blobs_url: str | None = None
    database_url: str | None = None

    @property
    def settings(self) -> dict[str, str]:
        given = {"blobs_url": self.blobs_url, "database_url": self.database_url}
        return {name: value for name, value in given.items() if value is not None}

    def run(self, command: str, file: Path, *options: str) -> Any:
        variables = {f"PERDURE_{name.upper()}": value for name, value in self.settings.items()}
        return perdure(command, str(file), "--data", str(self.data), *options, cwd=file.parent, **variables)

    def does(self, command: str, file: Path, *options: str) -> str:
        done = self.run(command, file, *options)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        said: str = done.stderr
        return said

    def serve(self) -> Any:
        return running_server(self.data, embedding_model="hashing", **self.settings)


class Kept(NamedTuple):
    """What clients see: answers by path, results of searches, and bytes by file id."""

    answers: dict[str, bytes]
    found: list[Any]
    content: dict[str, bytes]


def seen(url: str, client: Client, store_id: str) -> Kept:
    ids = [one.id for one in client.files.list(order="asc")]
    paths = ["/files", "/vector_stores", f"/vector_stores/{store_id}/files", "/assistants"]
    paths += [f"/vector_stores/{store_id}/files/{one.id}/content" for one in client.vector_stores.files.list(store_id)]
    return Kept(
        {path: answer(url, path) for path in paths},
        [client.vector_stores.search(store_id, query=query).to_dict()["data"] for query in QUERIES],
        {one: client.files.content(one).read() for one in ids},
    )


def made(url: str) -> tuple[str, Kept]:
    """Make files of several sizes, a vector store, an assistant, and an upload that is under way."""
    with Client(url) as client:
        store = filled(client)
        large = client.files.create(file=("large.bin", LARGE), purpose="assistants")
        client.files.create(file=("empty", b""), purpose="batch")
        given: Any = {"code_interpreter": {"file_ids": [large.id]}, "file_search": {"vector_store_ids": [store.id]}}
        client.beta.assistants.create(model="gpt-4o", tool_resources=given)
        upload = client.uploads.create(bytes=4, filename="a", mime_type="text/plain", purpose="assistants")
        client.uploads.parts.create(upload.id, data=b"part")
        kept = seen(url, client, store.id)
        assert all(kept.found)
        return store.id, kept


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("folder", "folder"),
        ("folder", "bucket"),
        ("bucket", "folder"),
        ("bucket", "bucket"),
        ("folder", "postgres"),
        ("bucket", "postgres and bucket"),
    ],
)
def test_bytes_and_searches_are_the_same(
    source: str, target: str, buckets: list[str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    here = Place(tmp_path / "data", buckets[0] if source == "bucket" else None)
    there = Place(tmp_path / "new", buckets[1] if "bucket" in target else None)
    force = []
    if "postgres" in target:
        there = there._replace(database_url=request.getfixturevalue("database_url"))
        force = ["--force"]  # another of these tests may have been here
    with here.serve() as url:
        store_id, before = made(url)
        assert "5 files, 1 vector store" in here.does("backup", tmp_path / "backup.zip")
    there.does("restore", tmp_path / "backup.zip", *force)
    assert (there.data / "files").exists() == ("bucket" not in target)
    with there.serve() as url, Client(url) as client:
        assert seen(url, client, store_id) == before
        (assistant,) = client.beta.assistants.list()
        large = assistant.to_dict()["tool_resources"]["code_interpreter"]["file_ids"][0]  # type: ignore[index]
        client.files.delete(large)
        assert client.beta.assistants.retrieve(assistant.id).to_dict()["tool_resources"]["code_interpreter"] == {  # type: ignore[index]
            "file_ids": []
        }


def test_only_what_rows_name_is_in_a_backup(tmp_path: Path) -> None:
    here, there = Place(tmp_path / "data"), Place(tmp_path / "new")
    with here.serve() as url, Client(url) as client:
        file = client.files.create(file=b"content", purpose="assistants")
        for name in ("ab/abandoned", ".incoming/half"):
            (here.data / "files" / name).parent.mkdir(exist_ok=True)
            (here.data / "files" / name).write_bytes(b"bytes")
        here.does("backup", tmp_path / "backup.zip")
    there.does("restore", tmp_path / "backup.zip")
    assert [one.read_bytes() for one in (there.data / "files").rglob("*") if one.is_file()] == [b"content"]
    with there.serve() as url, Client(url) as client:
        assert client.files.content(file.id).read() == b"content"


def test_files_that_are_deleted_during_a_backup_are_deleted_in_it(buckets: list[str], tmp_path: Path) -> None:
    here, there = Place(tmp_path / "data", buckets[0]), Place(tmp_path / "new")
    with here.serve() as url, Client(url) as client:
        ids = [client.files.create(file=(f"{n}.txt", b"text"), purpose="assistants").id for n in range(40)]
        deleting = threading.Thread(target=lambda: [client.files.delete(one) for one in ids[:30]])
        deleting.start()
        here.does("backup", tmp_path / "backup.zip")
        deleting.join()
    there.does("restore", tmp_path / "backup.zip")
    with there.serve() as url, Client(url) as client:
        left = [one.id for one in client.files.list(order="asc")]
        assert left[-10:] == ids[30:]
        assert {client.files.content(one).read() for one in left} == {b"text"}


def edited(source: Path, target: Path, *, without: str) -> None:
    """Write a backup as it is when a blob was deleted meanwhile."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        manifest = msgspec.json.decode(old.read(MANIFEST), type=Manifest)
        members = {name: one for name, one in manifest.members.items() if not name.endswith(without)}
        for name in members:
            new.writestr(name, old.read(name))
        changed = msgspec.structs.replace(manifest, members=members, gone=[without])
        new.writestr(MANIFEST, msgspec.json.encode(changed))


def test_what_named_a_file_that_was_deleted_meanwhile_names_it_no_more(tmp_path: Path) -> None:
    here, there = Place(tmp_path / "data"), Place(tmp_path / "new")
    with here.serve() as url, Client(url) as client:
        store = filled(client)
        gone = next(one.id for one in client.files.list() if one.filename == "prices.csv")
        resources: Any = {"code_interpreter": {"file_ids": [gone]}}
        thread = client.beta.threads.create(tool_resources=resources)
        here.does("backup", tmp_path / "whole.zip")
    (blob,) = [
        one.name
        for one in (here.data / "files").rglob("*")
        if one.is_file() and one.read_bytes() == TEXTS["prices.csv"].encode()
    ]
    edited(tmp_path / "whole.zip", tmp_path / "backup.zip", without=blob)
    there.does("restore", tmp_path / "backup.zip")
    with there.serve() as url, Client(url) as client:
        assert refusal_of(client.files.retrieve, gone).status == 404
        assert client.vector_stores.retrieve(store.id).file_counts.total == 2
        named = client.beta.threads.retrieve(thread.id).to_dict()["tool_resources"]
        assert named["code_interpreter"] == {"file_ids": []}  # type: ignore[index]


def test_bytes_that_are_not_where_they_should_be_are_named(tmp_path: Path) -> None:
    here, there = Place(tmp_path / "data"), Place(tmp_path / "new")
    with here.serve() as url, Client(url) as client:
        file = client.files.create(file=b"content", purpose="assistants")
        kept = client.files.create(file=b"kept", purpose="assistants")
    (blob,) = [one for one in (here.data / "files").rglob("*") if one.is_file() and one.read_bytes() == b"content"]
    blob.unlink()
    done = here.run("backup", tmp_path / "backup.zip")
    assert done.returncode == 1
    assert (
        f"the bytes of 1 files are NOT in the backup, as they are not where the server keeps files: {blob.name}. "
        in (done.stderr)
    )
    there.does("restore", tmp_path / "backup.zip")
    with there.serve() as url, Client(url) as client:
        assert client.files.retrieve(file.id) == file
        with pytest.raises(openai.InternalServerError, match="not where the server keeps files"):
            client.files.content(file.id)
        assert client.files.content(kept.id).read() == b"kept"


def test_a_bucket_with_something_else_in_it_is_left_alone(s3: str, buckets: list[str], tmp_path: Path) -> None:
    here, there = Place(tmp_path / "data", buckets[0]), Place(tmp_path / "new", buckets[1])
    with here.serve() as url, Client(url) as client:
        file = client.files.create(file=b"content", purpose="assistants")
    here.does("backup", tmp_path / "backup.zip")
    with there.serve() as url, Client(url) as client:
        client.files.create(file=b"other", purpose="assistants")
    line = refused(Place(tmp_path / "newer", buckets[1]).run("restore", tmp_path / "backup.zip"))
    assert "it has 1 blobs that are not in the backup" in line
    assert sorted(one.name for one in (tmp_path / "newer").iterdir()) == ["perdure.lock", "perdure.pid"]
    said = there.does("restore", tmp_path / "backup.zip", "--force")
    assert "1 files that were in the bucket before belong to nothing now" in said
    objects = client_of(s3).list_objects_v2(Bucket=buckets[1].split("/")[2])["Contents"]
    assert sorted(one["Size"] for one in objects) == [5, 7]
    with there.serve() as url, Client(url) as client:
        assert client.files.content(file.id).read() == b"content"
    again = here.does("restore", tmp_path / "backup.zip", "--force")
    assert "belong to nothing" not in again, "all that is in the bucket is the backup's own"


def test_a_bucket_that_is_away_or_forgotten_is_said(buckets: list[str], tmp_path: Path) -> None:
    here = Place(tmp_path / "data", buckets[0])
    with here.serve() as url, Client(url) as client:
        client.files.create(file=b"content", purpose="assistants")
    here.does("backup", tmp_path / "backup.zip")
    away = here._replace(blobs_url=buckets[0].replace("s3://blobs", "s3://none"))
    for place in (away, here._replace(blobs_url=None)):
        done = place.run("backup", tmp_path / "other.zip", "--force")
        assert done.returncode == 1
        assert "Is PERDURE_BLOBS_URL as for the server?" in done.stderr
    done = away.run("restore", tmp_path / "backup.zip", "--force")
    assert done.returncode == 2
    assert "can not reach the place where it keeps files" in done.stderr.splitlines()[-1]
    with here.serve() as url, Client(url) as client:
        assert json.loads(answer(url, "/files"))["data"]
