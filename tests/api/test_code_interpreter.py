"""The code interpreter in runs, in the real sandbox: files in and out, figures, state, limits, and what is told."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from openai.types.beta import Assistant
from openai.types.beta.threads import Run

from tests.api.scenes import WEATHER, outputs_for, reached, settled
from tests.sandboxes import code_environment
from tests.server import Client, running_server

CODE: Any = {"type": "code_interpreter"}
PNG = b"\x89PNG\r\n\x1a\n"
SALES = "month,sold\nJan,3\nFeb,5\nMar,8\n"
ANALYSIS = """\
import pandas as pd, matplotlib.pyplot as plt
sales = pd.read_csv('/mnt/data/sales.csv')
print('total', sales.sold.sum())
sales.plot(x='month', y='sold', kind='bar')
plt.show()
sales.to_excel('/mnt/data/sales by month.xlsx', index=False)
sales.sold.max()
"""
LINKED = "Here is [the table](sandbox:/mnt/data/sales by month.xlsx), and nothing at sandbox:/mnt/data/none.csv."


def code(text: str) -> list[dict[str, Any]]:
    return [{"name": "code_interpreter", "arguments": {"code": text}}]


SCRIPT: dict[str, Any] = {
    "rules": [
        {"when": "^analyse$", "call": code(ANALYSIS)},
        {"when": "^total", "role": "tool", "say": LINKED},
        {"when": "^set$", "call": code("x = 41")},
        {"when": "^get$", "call": code("x + 1")},
        {"when": "^break$", "call": code("1/0")},
        {"when": "^sleep$", "call": code("import time\nprint('begun', flush=True)\ntime.sleep(60)")},
        {"when": "^endless$", "call": code("while True: pass")},
        {"when": "^bare$", "call": [{"name": "code_interpreter", "arguments": "print('no JSON at all')"}]},
        {
            "when": "^weather and code$",
            "call": [*code("6 * 7"), {"name": "get_weather", "arguments": {"city": "Seoul"}}],
        },
        {"when": "^look$", "call": code("import os; print(sorted(os.listdir('/mnt/data')))")},
        {"when": "sunny", "role": "tool", "say": "Sunny."},
        {"when": "", "role": "tool", "say": "{output}"},
    ]
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("code")
    script = folder / "script.json"
    script.write_text(json.dumps(SCRIPT), encoding="utf-8")
    settings = {"script": script, "code_environment": code_environment(), "code_wall_seconds": 8}
    with running_server(folder / "data", **settings) as base_url:
        yield base_url


@pytest.fixture
def coder(client: Client) -> Assistant:
    return client.beta.assistants.create(model="gpt-4o", tools=[CODE])


def say(client: Client, coder: Assistant, question: str, thread_id: str | None = None, *files: str) -> Run:
    """Ask on a thread, a new one unless it is given, with files attached; return the ended run."""
    thread_id = thread_id or client.beta.threads.create().id
    attached: Any = [{"file_id": file_id, "tools": [CODE]} for file_id in files]
    client.beta.threads.messages.create(thread_id, role="user", content=question, attachments=attached)
    return settled(client, client.beta.threads.runs.create(thread_id, assistant_id=coder.id))


def answer(client: Client, run: Run) -> str:
    part = client.beta.threads.messages.list(run.thread_id, run_id=run.id).data[0].content[-1]
    assert part.type == "text"
    return part.text.value


def calls_of(client: Client, run: Run) -> list[dict[str, Any]]:
    steps = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id, order="asc").data
    details: list[Any] = [step.step_details.to_dict() for step in steps if step.type == "tool_calls"]
    return [call for one in details for call in one["tool_calls"]]


def upload(client: Client, name: str, content: str) -> str:
    return client.files.create(file=(name, content.encode()), purpose="assistants").id


def test_a_table_is_read_summed_plotted_and_handed_out(client: Client, coder: Assistant) -> None:
    run = say(client, coder, "analyse", None, upload(client, "sales.csv", SALES))
    assert run.status == "completed"
    [call] = calls_of(client, run)
    outputs = call["code_interpreter"]["outputs"]
    assert call["code_interpreter"]["input"] == ANALYSIS
    assert [one["type"] for one in outputs] == ["logs", "image", "logs"]
    assert outputs[0]["logs"] == "total 16\n"
    assert outputs[2]["logs"].strip() in {"8", "np.int64(8)"}
    message = client.beta.threads.messages.list(run.thread_id, run_id=run.id).data[0]
    figure, text = message.content
    assert figure.type == "image_file"
    assert figure.image_file.file_id == outputs[1]["image"]["file_id"]
    file = client.files.retrieve(figure.image_file.file_id)
    assert file.purpose == "assistants_output"
    assert client.files.content(file.id).read().startswith(PNG)
    assert text.type == "text"
    [annotation] = text.text.annotations
    assert annotation.type == "file_path"
    assert text.text.value[annotation.start_index : annotation.end_index] == annotation.text
    assert annotation.text == "sandbox:/mnt/data/sales by month.xlsx"
    table = client.files.retrieve(annotation.file_path.file_id)
    assert table.filename == "sales by month.xlsx"
    book = openpyxl.load_workbook(io.BytesIO(client.files.content(table.id).read()))
    assert [[cell.value for cell in row] for row in book.active.iter_rows()][1:] == [["Jan", 3], ["Feb", 5], ["Mar", 8]]


def test_a_stream_shows_code_as_it_is_written_and_outputs_as_they_come(client: Client, coder: Assistant) -> None:
    file_id = upload(client, "sales.csv", SALES)
    attached: Any = [{"file_id": file_id, "tools": [CODE]}]
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "analyse", "attachments": attached}])
    shown: list[Any] = []
    names: list[str] = []
    with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=coder.id) as stream:
        for event in stream:
            names.append(event.event)
            if event.event == "thread.run.step.delta":
                shown += event.data.to_dict()["delta"]["step_details"]["tool_calls"]  # type: ignore[index]
        message = stream.get_final_messages()[0]
    assert set(shown[0]) == {"index", "id", "type", "code_interpreter"}
    assert shown[0]["code_interpreter"] == {"input": "", "outputs": []}
    assert all("id" not in one for one in shown[1:])
    inputs = [one["code_interpreter"]["input"] for one in shown[1:] if "input" in one["code_interpreter"]]
    assert len(inputs) > 10
    assert "".join(inputs) == ANALYSIS
    outputs = [one["code_interpreter"]["outputs"][0] for one in shown[1:] if "outputs" in one["code_interpreter"]]
    assert [(one["index"], one["type"]) for one in outputs] == [(0, "logs"), (1, "image"), (2, "logs")]
    assert names[-1] == "thread.run.completed"
    assert [part.type for part in message.content] == ["image_file", "text"]
    kept = client.beta.threads.messages.list(thread.id).data[0]
    assert [part.to_dict() for part in message.content] == [part.to_dict() for part in kept.content]


def test_state_lives_with_its_thread_and_nowhere_else(client: Client, coder: Assistant) -> None:
    first = say(client, coder, "set")
    assert answer(client, first) == "The code ran and printed nothing."
    assert answer(client, say(client, coder, "get", first.thread_id)) == "42"
    assert "NameError" in answer(client, say(client, coder, "get"))
    mine, theirs = upload(client, "mine.csv", "a"), upload(client, "theirs.csv", "b")
    assert answer(client, say(client, coder, "look", None, mine)) == "['mine.csv']"
    assert answer(client, say(client, coder, "look", None, theirs)) == "['theirs.csv']"


def test_files_of_one_name_and_odd_names_are_all_there(client: Client, coder: Assistant) -> None:
    ids = [upload(client, name, "x") for name in ("a.csv", "a.csv", "보고서 1.csv", "../../up.csv")]
    names = answer(client, say(client, coder, "look", None, *ids))
    assert names == str(sorted(["a.csv", f"{ids[1]}-a.csv", "보고서 1.csv", "up.csv"]))


def test_files_of_the_assistant_are_there_too(client: Client) -> None:
    file_id = upload(client, "mine.csv", "a")
    resources: Any = {"code_interpreter": {"file_ids": [file_id]}}
    coder = client.beta.assistants.create(model="gpt-4o", tools=[CODE], tool_resources=resources)
    assert answer(client, say(client, coder, "look")) == "['mine.csv']"


def test_a_file_whose_bytes_are_gone_is_told_and_the_others_are_there(
    client: Client, coder: Assistant, tmp_path_factory: pytest.TempPathFactory
) -> None:
    gone, there = upload(client, "gone.csv", "deleted by other hands"), upload(client, "there.csv", "b")
    for path in tmp_path_factory.getbasetemp().glob("code*/data/files/*/*"):
        if path.read_bytes() == b"deleted by other hands":
            path.unlink()
    said = answer(client, say(client, coder, "look", None, gone, there))
    assert said.startswith("['there.csv']")
    assert "gone.csv is not in /mnt/data" in said


def test_what_goes_wrong_is_told_to_the_model(client: Client, coder: Assistant) -> None:
    broken = say(client, coder, "break")
    assert broken.status == "completed"
    assert "ZeroDivisionError" in answer(client, broken)
    endless = say(client, coder, "endless", broken.thread_id)
    assert "longer than 8 seconds" in answer(client, endless)
    assert answer(client, say(client, coder, "set", broken.thread_id)) == "The code ran and printed nothing."


def test_code_without_any_json_runs(client: Client, coder: Assistant) -> None:
    run = say(client, coder, "bare")
    assert answer(client, run) == "no JSON at all"
    assert calls_of(client, run)[0]["code_interpreter"]["input"] == "print('no JSON at all')"


def test_cancelling_stops_the_code_and_keeps_the_session(client: Client, coder: Assistant) -> None:
    thread_id = say(client, coder, "set").thread_id
    client.beta.threads.messages.create(thread_id, role="user", content="sleep")
    run = client.beta.threads.runs.create(thread_id, assistant_id=coder.id)
    reached(client, run, "in_progress")
    deadline = time.monotonic() + 20
    while not any(call["code_interpreter"]["input"] for call in calls_of(client, run)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    client.beta.threads.runs.cancel(run.id, thread_id=thread_id)
    assert settled(client, run).status == "cancelled"
    [step] = client.beta.threads.runs.steps.list(run.id, thread_id=thread_id).data
    assert step.status == "cancelled"
    assert answer(client, say(client, coder, "get", thread_id)) == "42"


def test_functions_beside_code_wait_for_the_program(client: Client) -> None:
    both = client.beta.assistants.create(model="gpt-4o", tools=[CODE, WEATHER])
    run = say(client, both, "weather and code")
    assert run.status == "requires_action"
    ran, asked = calls_of(client, run)
    assert ran["code_interpreter"]["outputs"] == [{"type": "logs", "logs": "42\n"}]
    assert asked["function"]["output"] is None
    done = client.beta.threads.runs.submit_tool_outputs_and_poll(
        run_id=run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, "sunny"), poll_interval_ms=20
    )
    assert answer(client, done) == "Sunny."
    ran, asked = calls_of(client, done)
    assert (ran["code_interpreter"]["input"], asked["function"]["output"]) == ("6 * 7", "sunny")


def test_a_deleted_thread_takes_its_session_along(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps(SCRIPT), encoding="utf-8")
    boxes = tmp_path / "data" / "sandbox" / "live"
    settings = {"script": script, "code_warm_sessions": 0}
    with running_server(tmp_path / "data", **settings) as base_url, Client(base_url) as client:
        coder = client.beta.assistants.create(model="gpt-4o", tools=[CODE])
        run = say(client, coder, "set")
        assert len(list(boxes.glob("*.json"))) == 1
        client.beta.threads.delete(run.thread_id)
        deadline = time.monotonic() + 20
        while list(boxes.glob("*.json")):
            assert time.monotonic() < deadline, "the session is still there"
            time.sleep(0.05)


def test_where_no_code_may_run_the_model_hears_why(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps(SCRIPT), encoding="utf-8")
    with (
        running_server(tmp_path / "data", script=script, code_sandbox="none") as base_url,
        Client(base_url) as client,
    ):
        coder = client.beta.assistants.create(model="gpt-4o", tools=[CODE])
        run = say(client, coder, "set")
        assert run.status == "completed"
        assert "PERDURE_CODE_SANDBOX=none" in answer(client, run)
