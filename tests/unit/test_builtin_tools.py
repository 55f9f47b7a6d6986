"""Built-in tools as a model sees them, citations, and code while it is written."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from perdure.domain.builtin_tools import builtin_tools, name_of, queries_of, sources_of, told_of_code, told_of_search
from perdure.domain.citations import CitationReader, Cited, citation, file_path, links_in, marker
from perdure.domain.deltas import calls_of_deltas, parts_of_deltas
from perdure.domain.json_text import CodeReader
from perdure.domain.transcript import transcript, undelivered_images
from perdure.wire.events import MessageDelta, MessageDeltaBody, StepDelta, StepDeltaBody
from perdure.wire.messages import Message
from perdure.wire.runs import Run
from perdure.wire.steps import FOUND_TEXT, CodeInterpreterCall, RunStep, shown_step

SOURCES = {(4, 0): "file-a", (4, 1): "file-b", (5, 0): "file-a"}


def run(*tools: dict[str, Any], **fields: Any) -> Run:
    given: dict[str, Any] = {
        "id": "run_1",
        "created_at": 1,
        "assistant_id": "asst_1",
        "thread_id": "thread_1",
        "status": "in_progress",
        "expires_at": 601,
        "model": "m",
        "instructions": "Be brief.",
        "tools": list(tools),
        "tool_resources": {},
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "reasoning_effort": None,
        "tool_choice": "auto",
        "max_completion_tokens": None,
        "max_prompt_tokens": None,
        "truncation_strategy": {"type": "auto"},
        "response_format": "auto",
        "parallel_tool_calls": True,
        **fields,
    }
    return msgspec.convert(given, Run)


def step(*calls: dict[str, Any], status: str = "completed") -> RunStep:
    details = {"type": "tool_calls", "tool_calls": list(calls)}
    given = {"id": "step_1", "created_at": 1, "run_id": "run_1", "assistant_id": "asst_1", "thread_id": "thread_1"}
    return msgspec.convert(
        {**given, "type": "tool_calls", "status": status, "expires_at": 1, "step_details": details}, RunStep
    )


def search_call(call_id: str, *files: str) -> dict[str, Any]:
    results = [
        {
            "file_id": f"file-{name}",
            "file_name": f"{name}.txt",
            "score": 0.5,
            "content": [{"type": "text", "text": f"says {name}"}],
            "x_page": 2,
        }
        for name in files
    ]
    ranking = {"ranker": "default_2024_08_21", "score_threshold": 0.0}
    search = {"ranking_options": ranking, "results": results, "x_queries": ["what?"]}
    return {"id": call_id, "type": "file_search", "file_search": search}


def code_call(call_id: str, *outputs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    code = {"input": "1+1", "outputs": list(outputs), **fields}
    return {"id": call_id, "type": "code_interpreter", "code_interpreter": code}


SEARCH, CODE = {"type": "file_search"}, {"type": "code_interpreter"}
LOGS = {"type": "logs", "logs": "2\n"}
FIGURE = {"type": "image", "image": {"file_id": "file-fig"}}


# -- offers


def test_only_tools_that_the_run_has_and_the_server_can_do_are_offered() -> None:
    both = run(SEARCH, CODE)
    names = [tool["function"]["name"] for tool in builtin_tools(both, ["file_search", "code_interpreter"])]
    assert names == ["file_search", "code_interpreter"]
    assert [tool["function"]["name"] for tool in builtin_tools(both, ["code_interpreter"])] == ["code_interpreter"]
    assert builtin_tools(run(CODE), ["file_search"]) == []


def test_a_function_keeps_its_name_from_a_built_in_tool() -> None:
    own = {"type": "function", "function": {"name": "file_search", "parameters": {}}}
    assert name_of(run(own, SEARCH), "file_search") == "builtin_file_search"
    assert name_of(run(SEARCH), "file_search") == "file_search"
    assert name_of(run(own), "code_interpreter") is None


@pytest.mark.parametrize(
    ("arguments", "queries"),
    [
        ('{"queries": ["a", " b ", "a", ""]}', ["a", "b"]),
        ('{"query": "a"}', ["a"]),
        ('{"queries": "a"}', ["a"]),
        ('"a"', ["a"]),
        ("what is a", ["what is a"]),
        ("", []),
        ("{}", []),
        ('{"queries": [1, null, "x"]}', ["x"]),
        (json.dumps({"queries": [str(n) for n in range(9)]}), ["0", "1", "2", "3", "4"]),
    ],
)
def test_queries_are_read_out_of_what_models_write(arguments: str, queries: list[str]) -> None:
    assert queries_of(arguments) == queries


# -- citations


def cut(text: str, size: int) -> list[str | Cited]:
    reader = CitationReader(SOURCES)
    parts = [part for at in range(0, len(text), size) for part in reader.feed(text[at : at + size])]
    return parts + reader.end()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    "text",
    [
        "Cats 🐈 sleep【4:0†a.txt】 a lot【5:0†source】.",
        "【4:1†b】",
        "unknown 【9:9†x】, broken 【4:0†never ends",
        "【【4:0†a】】 【4:0】 【4:】",
        "no markers at all",
        "【4:0†" + "x" * 500 + "】",
    ],
)
def test_text_cut_into_markers_is_the_same_text(text: str, size: int) -> None:
    parts = cut(text, size)
    assert "".join(part.text if isinstance(part, Cited) else part for part in parts) == text
    cited = [part for part in parts if isinstance(part, Cited)]
    assert [part.text for part in cited] == [part.text for part in cut(text, 1000) if isinstance(part, Cited)]
    at = 0
    for part in parts:
        if isinstance(part, Cited):
            annotation = citation(part, at)
            assert text[annotation["start_index"] : annotation["end_index"]] == annotation["text"]
        at += len(part.text if isinstance(part, Cited) else part)


def test_markers_name_their_files() -> None:
    parts = cut("a【4:0†a.txt】b【4:1】c【9:9†x】", 1000)
    assert parts == ["a", Cited("【4:0†a.txt】", "file-a"), "b", Cited("【4:1】", "file-b"), "c【9:9†x】"]


def test_text_is_not_held_back_without_need() -> None:
    reader = CitationReader(SOURCES)
    assert reader.feed("plain ") == ["plain "]
    assert reader.feed("【no marker") == ["【no marker"]
    assert reader.feed(" then 【4:0†na") == [" then "]


def test_a_marker_stands_any_file_name() -> None:
    assert marker(4, 0, "a】\n【b .txt") == "【4:0†a b .txt】"
    assert CitationReader(SOURCES).feed(marker(4, 0, "x" * 2000))[0] == Cited(marker(4, 0, "x" * 2000), "file-a")


def test_links_to_files_are_found() -> None:
    text = "See [the table](sandbox:/mnt/data/my table (1).csv) or sandbox:/mnt/data/b.png. Not sandbox:/etc/passwd."
    links = links_in(text)
    assert [link.path for link in links] == ["/mnt/data/my table (1).csv", "/mnt/data/b.png"]
    for link in links:
        annotation = file_path(link, "file-x")
        assert text[annotation["start_index"] : annotation["end_index"]] == annotation["text"]


# -- code while it is written


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (json.dumps({"code": 'print("é\\n🐈")\nx = {1: 2}'}), 'print("é\\n🐈")\nx = {1: 2}'),
        ('{"input": "1+1"}', "1+1"),
        ('{"why": "sum", "code": "1+1"}', "1+1"),
        ("print(1)\n", "print(1)\n"),
        ("{1, 2} | {3}", "{1, 2} | {3}"),
        ("[1, 2][0]", "[1, 2][0]"),
        ('"1+1"', "1+1"),
        ("{}", ""),
        ('{"code": "x = 1', "x = 1"),
    ],
)
def test_code_is_read_while_it_is_written(arguments: str, code: str, size: int) -> None:
    reader = CodeReader()
    shown = [reader.feed(arguments[at : at + size]) for at in range(0, len(arguments), size)]
    assert "".join([*shown, reader.end()]) == code == reader.code


# -- the transcript


def user(text: str) -> Message:
    given = {
        "id": "msg_1",
        "created_at": 1,
        "assistant_id": None,
        "thread_id": "thread_1",
        "run_id": None,
        "role": "user",
    }
    rest: dict[str, Any] = {
        "status": "completed",
        "incomplete_details": None,
        "incomplete_at": None,
        "completed_at": 1,
        "metadata": {},
    }
    content = [{"type": "text", "text": {"value": text, "annotations": []}}]
    return msgspec.convert({**given, **rest, "content": content, "attachments": []}, Message)


def test_a_search_is_shown_with_markers_that_name_its_files() -> None:
    steps = [step(search_call("call_1", "a", "b")), step(search_call("call_2", "a"))]
    assert sources_of(steps) == SOURCES
    shown = transcript(run(SEARCH), [user("hi")], steps).own
    assert shown[0]["tool_calls"][0]["function"] == {"name": "file_search", "arguments": '{"queries":["what?"]}'}
    assert shown[1]["content"] == "【4:0†a.txt】 (page 2)\nsays a\n\n【4:1†b.txt】 (page 2)\nsays b"
    assert shown[3]["content"].startswith("【5:0†a.txt】")


def test_what_was_found_for_a_model_stands_in_its_instructions() -> None:
    parts = transcript(run(SEARCH), [user("hi")], [step(search_call("call_1", "a"))], found_is_given=True)
    assert parts.own == []
    assert parts.instructions[0]["content"].startswith("Be brief.\n\nPassages from the user's files")
    assert "【4:0†a.txt】 (page 2)\nsays a" in parts.instructions[0]["content"]


def test_nothing_found_is_said_in_words() -> None:
    [call] = step(search_call("call_1")).step_details.tool_calls  # type: ignore[union-attr]
    assert told_of_search(call.file_search, 4) == "Nothing was found. Try other words."  # type: ignore[union-attr]


def test_code_that_was_broken_off_is_not_run_again_unseen() -> None:
    broken = step(code_call("call_1", LOGS, x_state="began"), code_call("call_2"), status="failed")
    shown = transcript(run(CODE), [user("hi")], [broken]).own
    assert [message["role"] for message in shown] == ["assistant", "tool"]
    assert len(shown[0]["tool_calls"]) == 1
    assert shown[1]["content"].startswith("2\nThe call was interrupted")
    never_began = step(code_call("call_1"), search_call("call_2", "a"), status="failed")
    assert transcript(run(CODE), [user("hi")], [never_began]).own == []


def test_code_is_told_with_its_outputs_and_what_else_is_to_say() -> None:
    def told(*outputs: dict[str, Any], **fields: Any) -> str:
        return told_of_code(
            msgspec.convert({"input": "", "outputs": list(outputs), "x_state": "ended", **fields}, CodeInterpreterCall)
        )

    assert told(LOGS) == "2"
    assert told() == "The code ran and printed nothing."
    assert told(LOGS, FIGURE, x_words="Stopped after 60 s.") == (
        "2\n[A figure was drawn and is shown to the user: file-fig]\nStopped after 60 s."
    )


def test_figures_wait_for_the_next_message() -> None:
    drawn = step(code_call("call_1", LOGS, FIGURE, x_state="ended"))
    message = msgspec.convert(
        {
            **msgspec.to_builtins(drawn),
            "type": "message_creation",
            "step_details": {"type": "message_creation", "message_creation": {"message_id": "msg_2"}},
        },
        RunStep,
    )
    assert undelivered_images([drawn]) == ["file-fig"]
    assert undelivered_images([drawn, message]) == []
    assert undelivered_images([drawn, message, drawn]) == ["file-fig"]


# -- what goes out, and deltas added up


def test_found_text_and_our_own_fields_go_out_only_where_asked_for() -> None:
    whole = step(search_call("call_1", "a"), code_call("call_2", LOGS, x_state="ended", x_words="Well."))
    assert shown_step(whole, found_text=True) is whole
    text = msgspec.json.encode(shown_step(whole, found_text=False)).decode()
    assert "x_" not in text
    assert "says a" not in text
    assert '"score":0.5' in text
    assert '"logs":"2\\n"' in text
    assert FOUND_TEXT.endswith("results[*].content")


def test_deltas_of_a_message_add_up() -> None:
    annotation = {
        "type": "file_citation",
        "text": "【4:0†a】",
        "start_index": 3,
        "end_index": 9,
        "file_citation": {"file_id": "file-a"},
    }
    shown = {**annotation, "index": 0, "file_citation": {"file_id": "file-a", "quote": ""}}
    contents: list[dict[str, Any]] = [
        {"index": 0, "type": "image_file", "image_file": {"file_id": "file-fig"}},
        {"index": 1, "type": "text", "text": {"value": "one", "annotations": []}},
        {"index": 1, "type": "text", "text": {"value": "【4:0†a】", "annotations": [shown]}},
        {"index": 2, "type": "refusal", "refusal": "No"},
        {"index": 2, "type": "refusal", "refusal": "."},
    ]
    deltas = [MessageDelta(id="msg_1", delta=MessageDeltaBody(content=[one])) for one in contents]
    assert msgspec.to_builtins(parts_of_deltas(deltas)) == [
        {"type": "image_file", "image_file": {"file_id": "file-fig"}},
        {"type": "text", "text": {"value": "one【4:0†a】", "annotations": [annotation]}},
        {"type": "refusal", "refusal": "No."},
    ]


def test_deltas_of_calls_add_up() -> None:
    shown: list[dict[str, Any]] = [
        {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "", "output": None}},
        {"index": 0, "type": "function", "function": {"arguments": '{"a":'}},
        {"index": 0, "type": "function", "function": {"arguments": "1}"}},
        {"index": 1, "id": "c2", "type": "code_interpreter", "code_interpreter": {"input": "", "outputs": []}},
        {"index": 1, "type": "code_interpreter", "code_interpreter": {"input": "1+1"}},
        {
            "index": 1,
            "type": "code_interpreter",
            "code_interpreter": {"outputs": [{"index": 0, "type": "logs", "logs": "2"}]},
        },
        {
            "index": 1,
            "type": "code_interpreter",
            "code_interpreter": {"outputs": [{"index": 0, "type": "logs", "logs": "\n"}]},
        },
        {"index": 1, "type": "code_interpreter", "code_interpreter": {"outputs": [{"index": 1, **FIGURE}]}},
    ]
    deltas = [
        StepDelta(id="s", delta=StepDeltaBody(step_details={"type": "tool_calls", "tool_calls": [one]}))
        for one in shown
    ]
    function, code = msgspec.to_builtins(calls_of_deltas(deltas))
    assert function["function"] == {"name": "f", "arguments": '{"a":1}', "output": None}
    assert code["code_interpreter"] == {"input": "1+1", "outputs": [LOGS, FIGURE]}
