"""Export and import of files and vector stores, and what was written down of the hosted API's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import VectorStore

from tests.api.scenes import refused as refusal_of
from tests.api.test_backup import answer
from tests.api.test_cli import perdure, refused
from tests.api.test_exchange import exported, imported, write_lines
from tests.api.test_vector_stores import TEXTS, filled
from tests.s3_server import new_bucket, s3_server
from tests.server import Client, running_server

QUERY = "When are refunds paid?"
HOSTED_FILE: dict[str, Any] = {
    "id": "file-hosted1",
    "object": "file",
    "bytes": 53,
    "created_at": 1699009709,
    "filename": "../refunds.txt",
    "purpose": "assistants",
    "status": "processed",
    "status_details": None,
}
HOSTED_STORE: dict[str, Any] = {
    "id": "vs_hosted",
    "object": "vector_store",
    "created_at": 1699009710,
    "name": None,
    "usage_bytes": 1234,
    "file_counts": {"in_progress": 0, "completed": 1, "failed": 0, "cancelled": 0, "total": 1},
    "status": "completed",
    "expires_after": None,
    "expires_at": None,
    "last_active_at": 1699009711,
    "metadata": {},
}
HOSTED_STORE_FILE: dict[str, Any] = {
    "id": "file-hosted1",
    "object": "vector_store.file",
    "created_at": 1699009711,
    "usage_bytes": 1234,
    "vector_store_id": "vs_hosted",
    "status": "completed",
    "last_error": None,
    "chunking_strategy": {"type": "other"},
}


def wait_until_read(client: Client, store_id: str) -> VectorStore:
    for one in client.vector_stores.files.list(store_id):
        client.vector_stores.files.poll(one.id, vector_store_id=store_id, poll_interval_ms=20)
    return client.vector_stores.retrieve(store_id)


def with_everything(client: Client) -> tuple[str, str, str]:
    """Make a store, an assistant and a thread that name files; return the ids of store, assistant and thread."""
    store = filled(client, metadata={"k": "v"}, expires_after={"anchor": "last_active_at", "days": 3})
    file = client.files.create(file=("표.csv", b"a,b\xed\x91\x9c"), purpose="assistants")
    client.vector_stores.files.create(store.id, file_id=file.id, attributes={"year": 2026})
    wait_until_read(client, store.id)
    resources: Any = {"code_interpreter": {"file_ids": [file.id]}, "file_search": {"vector_store_ids": [store.id]}}
    assistant = client.beta.assistants.create(model="gpt-4o", tool_resources=resources)
    thread = client.beta.threads.create(tool_resources={"code_interpreter": {"file_ids": [file.id]}})
    return store.id, assistant.id, thread.id


def test_files_and_vector_stores_come_back_and_are_read_again(data: Path, tmp_path: Path) -> None:
    folder, new = tmp_path / "bytes", tmp_path / "new"
    with running_server(data, embedding_model="hashing") as url, Client(url) as client:
        store_id, assistant_id, thread_id = with_everything(client)
        lines = exported(data, "--files", str(folder))
        files = client.files.list(order="asc").data
        content = {one.id: client.files.content(one.id).read() for one in files}
        paths = ["/files?order=asc", f"/assistants/{assistant_id}", f"/threads/{thread_id}"]
        before = {path: answer(url, path) for path in paths}
        found = client.vector_stores.search(store_id, query=QUERY).to_dict()
        listed = client.vector_stores.files.list(store_id, order="asc").data
        stored = client.vector_stores.retrieve(store_id)
    assert {one.name: one.read_bytes() for one in folder.iterdir()} == content
    file = write_lines(tmp_path / "export.jsonl", *lines)
    said = imported(new, file, "--files", str(folder))
    assert said == "imported 4 files, 1 vector store, 4 vector store files, 1 assistant, 1 thread\n"
    assert "imported nothing; 11 there already" in imported(new, file), "the bytes are needed once"
    with running_server(new, embedding_model="hashing") as url, Client(url) as client:
        again = wait_until_read(client, store_id)
        assert again.to_dict() == {
            **stored.to_dict(),
            "last_active_at": again.last_active_at,
            "expires_at": again.expires_at,
        }
        assert {path: answer(url, path) for path in paths} == before
        assert client.vector_stores.search(store_id, query=QUERY).to_dict() == found
        assert client.vector_stores.files.list(store_id, order="asc").data == listed
        assert {one: client.files.content(one).read() for one in content} == content
        assert "imported nothing; 11 there already" in imported(new, file, "--files", str(folder))
        client.files.delete(files[-1].id)
        for shown in (client.beta.assistants.retrieve(assistant_id), client.beta.threads.retrieve(thread_id)):
            assert shown.to_dict()["tool_resources"]["code_interpreter"] == {"file_ids": []}  # type: ignore[index]
        assert client.vector_stores.retrieve(store_id).file_counts.total == 3


def test_a_running_server_reads_what_is_imported(data: Path, tmp_path: Path) -> None:
    """Also into a bucket; files that failed stay so."""
    with running_server(data, embedding_model="hashing") as url, Client(url) as client:
        store = filled(client)
        broken = client.files.create(file=("a.pdf", b"%PDF-1.7 and nothing"), purpose="assistants")
        client.vector_stores.files.create_and_poll(file_id=broken.id, vector_store_id=store.id, poll_interval_ms=20)
        file = write_lines(tmp_path / "export.jsonl", *exported(data, "--files", str(tmp_path / "bytes")))
    with s3_server() as s3, pytest.MonkeyPatch.context() as patch:
        bucket = new_bucket(s3, patch)
        with (
            running_server(tmp_path / "new", embedding_model="hashing", blobs_url=bucket) as url,
            Client(url) as client,
        ):
            given = ("--files", str(tmp_path / "bytes"), "--blobs-url", bucket, "--project", "default")
            assert "imported 4 files" in imported(tmp_path / "new", file, *given)
            read = wait_until_read(client, store.id)
            assert (read.file_counts.completed, read.file_counts.failed) == (3, 1)
            assert client.vector_stores.search(store.id, query=QUERY).data[0].filename == "refunds.txt"
        assert not (tmp_path / "new" / "files").exists()
        done = perdure(
            "export", "a", "--files", "b", "--data", str(tmp_path / "new"), "--blobs-url", bucket, cwd=tmp_path
        )
        assert done.returncode == 0
        assert {one.name: one.read_bytes() for one in (tmp_path / "b").iterdir()} == {
            one.name: one.read_bytes() for one in (tmp_path / "bytes").iterdir()
        }


def test_files_without_bytes_are_skipped_and_may_come_later(data: Path, tmp_path: Path) -> None:
    with running_server(data, embedding_model="hashing") as url, Client(url) as client:
        store_id, assistant_id, _ = with_everything(client)
        file_id = client.files.list(order="desc").data[0].id
        file = write_lines(tmp_path / "export.jsonl", *exported(data, "--files", str(tmp_path / "bytes")))
    new = tmp_path / "new"
    said = imported(new, file, status=1)
    assert f"the bytes of {file_id} are not in the export: name the folder that has them with --files" in said
    assert f"{file_id} is not in the project" in said
    assert "imported 1 vector store, 1 assistant, 1 thread\nrefused: 8, named above" in said
    spoilt = tmp_path / "bytes" / file_id
    whole = spoilt.read_bytes()
    spoilt.write_bytes(whole[:-1])
    assert f"has 5 bytes, but {file_id} has 6" in imported(new, file, "--files", str(tmp_path / "bytes"), status=1)
    spoilt.write_bytes(whole[:-1] + b"x")
    said = imported(new, file, "--files", str(tmp_path / "bytes"), status=1)
    assert f"does not have the SHA-256 that the line has of {file_id}" in said
    spoilt.unlink()
    assert f"are missing: there is no {spoilt}" in imported(new, file, "--files", str(tmp_path / "bytes"), status=1)
    assert len([one for one in (new / "files").rglob("*") if one.is_file()]) == 3
    spoilt.write_bytes(whole)
    said = imported(new, file, "--files", str(tmp_path / "bytes"))
    assert "imported 1 file, 1 vector store file; 9 there already" in said
    with running_server(new, embedding_model="hashing") as url, Client(url) as client:
        assert wait_until_read(client, store_id).file_counts.completed == 4
        client.files.delete(file_id)
        shown = client.beta.assistants.retrieve(assistant_id).to_dict()["tool_resources"]
        assert shown["code_interpreter"] == {"file_ids": []}  # type: ignore[index]


def test_what_programs_wrote_down_of_the_hosted_api_is_taken(data: Path, tmp_path: Path) -> None:
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / "file-hosted1").write_text(TEXTS["refunds.txt"])
    newest_first = [{**HOSTED_STORE, "id": f"vs_hosted{n}", "created_at": 1699009710 + n} for n in (3, 2, 1)]
    lines = [{**HOSTED_FILE, "bytes": len(TEXTS["refunds.txt"])}, *newest_first, HOSTED_STORE, HOSTED_STORE_FILE]
    file = write_lines(tmp_path / "hosted.jsonl", *lines)
    said = imported(data, file, "--files", str(tmp_path / "bytes"))
    assert said == "imported 1 file, 4 vector stores, 1 vector store file\n"
    with running_server(data, embedding_model="hashing") as url, Client(url) as client:
        assert client.files.retrieve("file-hosted1").filename == "refunds.txt"
        assert [one.id for one in client.vector_stores.list(order="asc")][1:] == [
            "vs_hosted1",
            "vs_hosted2",
            "vs_hosted3",
        ]
        assert wait_until_read(client, "vs_hosted").name == ""
        assert client.vector_stores.search("vs_hosted", query=QUERY).data[0].file_id == "file-hosted1"
        (read,) = client.vector_stores.files.list("vs_hosted")
        assert read.chunking_strategy is not None
        assert read.chunking_strategy.type == "static"
    bad = {
        **HOSTED_STORE_FILE,
        "chunking_strategy": {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 90}},
    }
    line = refused(perdure("import", str(write_lines(file, bad)), "--data", str(data), cwd=tmp_path))
    assert "line 1: Invalid 'chunking_strategy.static.chunk_overlap_tokens'" in line


def test_a_store_whose_time_is_over_comes_as_expired_with_its_files_listed(data: Path, tmp_path: Path) -> None:
    (tmp_path / "bytes").mkdir()
    (tmp_path / "bytes" / "file-hosted1").write_bytes(b"x" * 53)
    over = {**HOSTED_STORE, "expires_after": {"anchor": "last_active_at", "days": 1}, "expires_at": 1699096111}
    file = write_lines(tmp_path / "hosted.jsonl", HOSTED_FILE, over, HOSTED_STORE_FILE)
    imported(data, file, "--files", str(tmp_path / "bytes"))
    assert "imported nothing; 3 there already" in imported(data, file)
    with running_server(data, embedding_model="hashing") as url, Client(url) as client:
        assert client.vector_stores.retrieve("vs_hosted").status == "expired"
        assert [one.status for one in client.vector_stores.files.list("vs_hosted")] == ["completed"]
        assert refusal_of(client.vector_stores.search, "vs_hosted", query=QUERY).status == 400
    gone = {**HOSTED_FILE, "id": "file-gone", "expires_at": 1699096111}
    (tmp_path / "bytes" / "file-gone").write_bytes(b"x" * 53)
    said = imported(data, write_lines(file, gone), "--files", str(tmp_path / "bytes"), status=1)
    assert "line 1: file-gone has expired" in said
    assert len([one for one in (data / "files").rglob("*") if one.is_file()]) == 1


def test_threads_come_with_the_files_and_stores_that_they_name(data: Path, tmp_path: Path) -> None:
    with running_server(data, embedding_model="hashing") as url, Client(url) as client:
        attached, drawn, inside, other = (
            client.files.create(file=(f"{name}.txt", name.encode()), purpose="assistants").id
            for name in ("attached", "drawn", "inside", "other")
        )
        store = client.vector_stores.create(file_ids=[inside])
        client.vector_stores.create(name="other", file_ids=[other])
        search: Any = {"file_search": {"vector_store_ids": [store.id]}}
        assistant = client.beta.assistants.create(model="gpt-4o", tool_resources=search)
        message: Any = {
            "role": "user",
            "content": [
                {"type": "text", "text": f'see "{other}"'},
                {"type": "image_file", "image_file": {"file_id": drawn}},
            ],
            "attachments": [{"file_id": attached, "tools": [{"type": "code_interpreter"}]}],
        }
        thread = client.beta.threads.create(messages=[message])
        client.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id)
        lines = exported(data, "--thread", thread.id)
        assert [one["id"] for one in lines if one["object"] == "file"] == [attached, drawn, inside]
        assert [one["id"] for one in lines if one["object"] == "vector_store"] == [store.id]
        expiring = client.files.create(
            file=b"x", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600}
        )
        exported(data, "--files", str(tmp_path / "bytes"))
        assert len(list((tmp_path / "bytes").iterdir())) == 5
        (blob,) = [one for one in (data / "files").rglob("*") if one.is_file() and one.read_bytes() == b"x"]
        blob.unlink()
        (tmp_path / "bytes" / expiring.id).unlink()
        done = perdure("export", "all", "--files", str(tmp_path / "bytes"), "--data", str(data), cwd=tmp_path)
        assert f"the bytes of these are not where the server keeps files: {expiring.id}\n" in done.stderr
        with pytest.raises(openai.InternalServerError):
            client.files.content(expiring.id)
        assert json.loads(answer(url, f"/files/{expiring.id}"))["expires_at"]
