"""Export and import, as an operator does them, and lists of the hosted API as its users have written them down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2

from tests.api.scenes import WEATHER, asked, hanging, settled, write_script
from tests.api.test_cli import perdure, refused
from tests.server import Client, running_server, server_process

HOSTED_ASSISTANT: dict[str, Any] = {
    "id": "asst_hosted",
    "object": "assistant",
    "created_at": 1699009709,
    "name": "Math Tutor",
    "description": None,
    "model": "gpt-4o",
    "instructions": None,
    "tools": [{"type": "code_interpreter"}],
    "tool_resources": {"code_interpreter": {"file_ids": []}},
    "metadata": {},
    "top_p": 1.0,
    "temperature": 0.5,
    "response_format": "auto",
}
HOSTED_THREAD: dict[str, Any] = {
    "id": "thread_hosted",
    "object": "thread",
    "created_at": 1699012949,
    "metadata": {"user": "u1"},
    "tool_resources": {},
}


def hosted_message(number: int, role: str = "user") -> dict[str, Any]:
    """Return a message as the hosted API answered: without a status."""
    return {
        "id": f"msg_hosted{number}",
        "object": "thread.message",
        "created_at": 1699012950 + number,
        "assistant_id": "asst_hosted" if role == "assistant" else None,
        "thread_id": "thread_hosted",
        "run_id": "run_hosted" if role == "assistant" else None,
        "role": role,
        "content": [{"type": "text", "text": {"value": f"said {number}", "annotations": []}}],
        "metadata": {},
    }


def write_lines(path: Path, *objects: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in objects), encoding="utf-8")
    return path


def exported(data: Path, *options: str) -> list[dict[str, Any]]:
    done = perdure("export", "--data", str(data), *options, cwd=data.parent)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert (lines[0]["object"], lines[-1]) == (
        "perdure.export",
        {"object": "perdure.export.end", "objects": len(lines) - 2},
    )
    return lines[1:-1]


def imported(data: Path, file: Path, *options: str, status: int = 0) -> str:
    done = perdure(
        "import", str(file), "--data", str(data), *options, cwd=data.parent, PERDURE_EMBEDDING_MODEL="hashing"
    )
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    return done.stderr


def answers(url: str, paths: list[str], key: str = "any") -> dict[str, bytes]:
    with httpx2.Client(headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
        return {path: client.get(url + path).raise_for_status().content for path in paths}


def paths_of(lines: list[dict[str, Any]]) -> list[str]:
    """Return the paths of the objects, and of all lists in both orders."""
    paths = []
    for one in lines:
        if one["object"] == "assistant":
            paths.append(f"/assistants/{one['id']}")
        elif one["object"] == "thread":
            paths.append(f"/threads/{one['id']}")
            paths += [f"/threads/{one['id']}/{kind}?limit=100&order=asc" for kind in ("messages", "runs")]
        elif one["object"] == "thread.run":
            paths += [f"/threads/{one['thread_id']}/runs/{one['id']}{end}" for end in ("", "/steps?limit=100")]
        elif one["object"] == "thread.message":
            paths.append(f"/threads/{one['thread_id']}/messages/{one['id']}")
    return ["/assistants?limit=100", "/threads?limit=100", "/threads?limit=100&metadata[user]=u1", *paths]


def test_an_export_comes_back_byte_for_byte(data: Path, tmp_path: Path) -> None:
    """Both servers run all the while."""
    with server_process(data, script=write_script(tmp_path)) as server, Client(server.url) as client:
        beta = client.beta
        called = asked(client, "weather")
        assert called.required_action is not None
        call = called.required_action.submit_tool_outputs.tool_calls[0]
        output: Any = {"tool_call_id": call.id, "output": "warm; 따뜻함 \0 🦦"}
        beta.threads.runs.submit_tool_outputs(called.id, thread_id=called.thread_id, tool_outputs=[output])
        settled(client, called)
        asked(client, "break")
        gone = beta.threads.create(messages=[{"role": "user", "content": "gone"}])
        kept = beta.threads.create(metadata={"user": "u1", "nul": "a\0b"})
        for number in range(250):  # several in one second, and more than are read at once
            beta.threads.messages.create(kept.id, role="user", content=f"number {number}")
        first = beta.threads.messages.list(kept.id, order="asc").data[0]
        beta.threads.messages.delete(first.id, thread_id=kept.id)
        beta.threads.delete(gone.id)
        beta.assistants.create(model="gpt-4o", temperature=0.3, tools=[WEATHER])
        lines = exported(data)
        assert (gone.id in str(lines), first.id in str(lines)) == (False, False)
        paths = paths_of(lines)
        before = answers(server.url, paths)
        file = write_lines(tmp_path / "export.jsonl")
        said = perdure("export", str(file), "--force", "--data", str(data), cwd=tmp_path).stderr
        with server_process(tmp_path / "new") as other:
            assert imported(tmp_path / "new", file) == said.replace("exported", "imported")
            assert answers(other.url, paths) == before
            assert f"imported nothing; {len(lines)} there already" in imported(tmp_path / "new", file)
            with Client(other.url) as again:
                run = again.beta.threads.runs.create(kept.id, assistant_id=called.assistant_id)
                assert settled(again, run).status == "completed"
                again.beta.threads.delete(kept.id)
            assert "imported 1 thread, 249 messages" in imported(tmp_path / "new", file)
            assert answers(other.url, [f"/threads/{kept.id}"]) == {f"/threads/{kept.id}": before[f"/threads/{kept.id}"]}
    shown = json.loads(before[f"/threads/{kept.id}"])
    assert next(one for one in lines if one["id"] == kept.id) == {**shown, "x_perdure": {"project": "default"}}


def test_lists_of_the_hosted_api_are_taken_as_they_were_written_down(data: Path, tmp_path: Path) -> None:
    """Newest first, as its lists came, without statuses, and with an object that can not be imported."""
    run: dict[str, Any] = {
        "id": "run_hosted",
        "object": "thread.run",
        "created_at": 1699012951,
        "assistant_id": "asst_hosted",
        "thread_id": "thread_hosted",
        "status": "completed",
        "started_at": 1699012951,
        "completed_at": 1699012952,
        "model": "gpt-4o",
        "instructions": None,
        "tools": [],
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "max_completion_tokens": None,
        "truncation_strategy": {"type": "auto", "last_messages": None},
        "response_format": "auto",
        "tool_choice": "auto",
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }
    spoken = [hosted_message(1), hosted_message(2, "assistant"), hosted_message(3), hosted_message(4)]
    file = write_lines(tmp_path / "hosted.jsonl", HOSTED_ASSISTANT, HOSTED_THREAD, *reversed(spoken), run)
    assert imported(data, file) == "imported 1 assistant, 1 thread, 4 messages, 1 run\n"
    assert imported(data, file) == "imported nothing; 7 there already\n"
    file.write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n".join(file.read_bytes().splitlines()) + b'\n{"object":"upload"}')
    said = imported(data, file, status=1)
    assert "left out: 1 of kind 'upload', which can not be imported" in said
    with running_server(data) as url, Client(url) as client:
        messages = client.beta.threads.messages.list("thread_hosted", order="asc").data
        assert [one.id for one in messages] == [one["id"] for one in spoken]
        assert {one.status for one in messages} == {"completed"}
        assert client.beta.assistants.retrieve("asst_hosted").instructions is None
        assert client.beta.threads.runs.retrieve("run_hosted", thread_id="thread_hosted").usage is not None
        again = client.beta.threads.runs.create("thread_hosted", assistant_id="asst_hosted")
        assert settled(client, again).status == "completed"
        newest = client.beta.threads.messages.list("thread_hosted", limit=1).data[0]
        assert newest.content[0].to_dict()["text"] == {"value": "You said: said 4", "annotations": []}


def test_active_runs_come_ended_and_their_threads_are_free(data: Path, tmp_path: Path) -> None:
    with running_server(data, script=write_script(tmp_path)) as url, Client(url) as client:
        waiting, at_work = asked(client, "weather"), hanging(client)
        file = write_lines(tmp_path / "export.jsonl", *exported(data))
    imported(tmp_path / "new", file)
    assert "imported nothing" in imported(tmp_path / "new", file)
    with running_server(tmp_path / "new") as url, Client(url) as client:
        for run in (waiting, at_work):
            ended = client.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)
            assert (ended.status, ended.required_action) == ("expired", None)
            assert ended.last_error is not None
            assert "does not take runs up" in ended.last_error.message
            steps = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id).data
            assert {step.status for step in steps} == {"expired"}
            again = client.beta.threads.runs.create(run.thread_id, assistant_id=run.assistant_id)
            assert settled(client, again).status == "completed"


def test_what_is_there_is_never_overwritten(data: Path, tmp_path: Path) -> None:
    second = {**HOSTED_THREAD, "id": "thread_other"}
    imported(data, write_lines(tmp_path / "one.jsonl", HOSTED_ASSISTANT, HOSTED_THREAD, second, hosted_message(1)))
    file = write_lines(
        tmp_path / "two.jsonl",
        {**HOSTED_ASSISTANT, "name": "Another"},
        {**HOSTED_THREAD, "metadata": {}},
        hosted_message(1),
        {**hosted_message(2), "thread_id": "thread_other"},
        {**hosted_message(3), "thread_id": "thread_unknown"},
    )
    said = imported(data, file, status=1).splitlines()
    assert said == [
        "line 1: asst_hosted exists already and is not the same; it stays as it is",
        "line 2: thread_hosted exists already and is not the same; it stays as it is",
        "line 3: thread_hosted, which it belongs to, was refused",
        "line 5: its thread thread_unknown is not in the project: its line must stand above",
        "imported 1 message",
        "refused: 4, named above; nothing was overwritten",
    ]
    names = [one["name"] for one in exported(data) if one["object"] == "assistant"]
    assert names == ["Math Tutor"]
    assert "line 1: asst_hosted exists" in imported(data, file, "--project", "other", status=1)


def test_a_line_that_can_not_be_read_ends_the_import_and_is_named(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(json.dumps(HOSTED_THREAD) + "\n{not json}\n")
    line = refused(perdure("import", str(file), "--data", str(data), cwd=tmp_path))
    assert line.startswith("perdure: line 2: it is no JSON")
    no_role = {name: value for name, value in hosted_message(1).items() if name != "role"}
    line = refused(perdure("import", str(write_lines(file, HOSTED_THREAD, no_role)), "--data", str(data), cwd=tmp_path))
    assert "line 2: this thread.message can not be read: Object missing required field `role`" in line
    assert imported(data, write_lines(file, HOSTED_THREAD, hosted_message(1))).startswith("imported ")
    assert "can not be read" in refused(perdure("import", "nothing.jsonl", "--data", str(data), cwd=tmp_path))


def test_an_export_that_was_cut_off_is_noticed(data: Path, tmp_path: Path) -> None:
    imported(data, write_lines(tmp_path / "one.jsonl", HOSTED_ASSISTANT, HOSTED_THREAD))
    perdure("export", "two.jsonl", "--data", str(data), cwd=tmp_path)
    whole = (tmp_path / "two.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut.jsonl").write_text("".join(whole[:-1]))
    assert "the export was cut off" in imported(tmp_path / "new", tmp_path / "cut.jsonl", status=1)
    (tmp_path / "joined.jsonl").write_text("".join(whole * 2))
    assert "there already" in imported(tmp_path / "new", tmp_path / "joined.jsonl")


def test_projects_and_threads_narrow_an_export_down(data: Path, tmp_path: Path) -> None:
    key = perdure("keys", "create", "--project", "second", "--data", str(data), cwd=tmp_path).stdout.strip()
    own = perdure("keys", "create", "--data", str(data), cwd=tmp_path).stdout.strip()
    with running_server(data) as url:
        with Client(url, key=key) as client:
            other = asked(client, "hello")
        with Client(url, key=own) as client:
            one, two = asked(client, "one"), asked(client, "two")
    assert {line["x_perdure"]["project"] for line in exported(data)} == {"default", "second"}
    assert {line["x_perdure"]["project"] for line in exported(data, "--project", "second")} == {"second"}
    lines = exported(data, "--thread", two.thread_id, "--thread", other.thread_id)
    assert {line["id"] for line in lines if line["object"] in {"assistant", "thread", "thread.run"}} == {
        *(two.assistant_id, two.thread_id, two.id),
        *(other.assistant_id, other.thread_id, other.id),
    }
    assert one.thread_id not in str(lines)
    there = f"there is no thread '{two.thread_id}' in the project 'second'"
    given = ("--thread", two.thread_id, "--project", "second", "--data", str(data))
    assert there in refused(perdure("export", *given, cwd=tmp_path))
    assert "there is no project 'third'" in refused(
        perdure("export", "--project", "third", "--data", str(data), cwd=tmp_path)
    )
    imported(tmp_path / "new", write_lines(tmp_path / "export.jsonl", *lines))
    assert len(exported(tmp_path / "new", "--project", "second")) == len(lines) / 2
    imported(tmp_path / "newer", tmp_path / "export.jsonl", "--project", "third")
    assert len(exported(tmp_path / "newer", "--project", "third")) == len(lines)


def test_a_pipe_carries_an_export_from_one_folder_to_the_next(data: Path, tmp_path: Path) -> None:
    imported(data, write_lines(tmp_path / "one.jsonl", HOSTED_ASSISTANT, HOSTED_THREAD, hosted_message(1)))
    assert "there is nothing to export" in refused(perdure("export", "--data", "nowhere", cwd=tmp_path))
    python = subprocess.list2cmdline([sys.executable, "-m", "perdure"])
    command = f"{python} export --data {data} | {python} import - --data {tmp_path / 'new'}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)  # noqa: S602
    assert "imported 1 assistant, 1 thread, 1 message" in done.stderr
    assert exported(tmp_path / "new") == exported(data)
