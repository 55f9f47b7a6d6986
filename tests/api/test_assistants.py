"""Assistants: create, retrieve, modify, list, delete."""

from __future__ import annotations

import re
from typing import Any

import pytest
from openai.types.beta import Assistant

from tests.api.scenes import WEATHER, Refusal, refused
from tests.server import Client

DEFAULTS: dict[str, Any] = {
    "name": None,
    "description": None,
    "model": "gpt-4o",
    "instructions": None,
    "tools": [],
    "top_p": 1.0,
    "temperature": 1.0,
    "reasoning_effort": None,
    "tool_resources": {},
    "metadata": {},
    "response_format": "auto",
}
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "description": "An answer.",
        "schema": {"type": "object", "properties": {"x": {"type": "integer"}}},
        "strict": True,
    },
}
FULL: dict[str, Any] = {
    "model": "gpt-4-turbo-preview",
    "name": "수학 선생님",
    "description": "Helps with sums.",
    "instructions": "Answer briefly. 😀",
    "tools": [{**WEATHER, "function": {**WEATHER["function"], "strict": True}}, {"type": "code_interpreter"}],
    "top_p": 0.5,
    "temperature": 0.0,
    "reasoning_effort": "low",
    "metadata": {"team": "blue", "empty": ""},
    "response_format": SCHEMA,
}


def made(client: Client, number: int) -> list[Assistant]:
    return [client.beta.assistants.create(model="m", name=f"assistant {index}") for index in range(number)]


def without_identity(assistant: Assistant) -> dict[str, Any]:
    return {name: value for name, value in assistant.to_dict().items() if name not in {"id", "object", "created_at"}}


def test_defaults_are_filled_in_and_keys_stand_in_the_recorded_order(client: Client) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o")
    assert re.fullmatch("asst_[A-Za-z0-9]{24}", assistant.id)
    shown = assistant.to_dict()
    expected = {"id": assistant.id, "object": "assistant", "created_at": assistant.created_at, **DEFAULTS}
    assert shown == expected
    raw = client.beta.assistants.with_raw_response.retrieve(assistant.id).http_response.json()
    assert list(raw) == list(expected)


def test_what_was_sent_comes_back(client: Client) -> None:
    created = client.beta.assistants.create(**FULL)
    retrieved = client.beta.assistants.retrieve(created.id)
    assert retrieved == created
    shown = without_identity(retrieved)
    assert shown == {**FULL, "tool_resources": {"code_interpreter": {"file_ids": []}}}


@pytest.mark.parametrize("response_format", ["auto", {"type": "text"}, {"type": "json_object"}, SCHEMA])
def test_a_response_format_is_given_back_as_it_came(client: Client, response_format: Any) -> None:
    assistant = client.beta.assistants.create(model="m", response_format=response_format)
    assert assistant.to_dict()["response_format"] == response_format


TOOLS: list[tuple[Any, Any]] = [
    ({"type": "code_interpreter"}, {"type": "code_interpreter"}),
    (
        {"type": "file_search"},
        {
            "type": "file_search",
            "file_search": {
                "ranking_options": {"ranker": "default_2024_08_21", "score_threshold": 0.0, "hybrid_search": None}
            },
        },
    ),
    (
        {"type": "file_search", "file_search": {"max_num_results": 7, "ranking_options": {"score_threshold": 0.5}}},
        {
            "type": "file_search",
            "file_search": {
                "max_num_results": 7,
                "ranking_options": {"ranker": "default_2024_08_21", "score_threshold": 0.5, "hybrid_search": None},
            },
        },
    ),
    (
        {"type": "function", "function": {"name": "now"}},
        {
            "type": "function",
            "function": {"name": "now", "parameters": {"type": "object", "properties": {}}, "strict": False},
        },
    ),
    (
        {"type": "function", "function": {"name": "f", "description": "", "parameters": {"a": None}, "strict": None}},
        {"type": "function", "function": {"name": "f", "description": "", "parameters": {"a": None}, "strict": False}},
    ),
]


@pytest.mark.parametrize(("sent", "shown"), TOOLS)
def test_tools_are_normalised_and_may_be_sent_back(client: Client, sent: Any, shown: Any) -> None:
    raw = client.beta.assistants.with_raw_response.create(model="m", tools=[sent]).http_response.json()
    assert raw["tools"] == [shown]
    again = client.beta.assistants.with_raw_response.update(raw["id"], tools=raw["tools"]).http_response.json()
    assert again["tools"] == [shown]


def test_nulls_are_as_good_as_nothing(client: Client) -> None:
    nulls: dict[str, Any] = dict.fromkeys(set(DEFAULTS) - {"model"})
    assert without_identity(client.beta.assistants.create(model="gpt-4o", **nulls)) == DEFAULTS


@pytest.mark.parametrize("given", [{"model": "m"}, FULL], ids=["bare", "full"])
def test_a_dumped_assistant_goes_back_in(client: Client, given: dict[str, Any]) -> None:
    first = client.beta.assistants.create(**given)
    dump = first.model_dump(by_alias=True, exclude={"id", "object", "created_at"})
    again = client.beta.assistants.create(**dump)
    assert without_identity(again) == without_identity(first)
    assert client.beta.assistants.update(again.id, **dump) == again


def test_modify_keeps_what_is_absent_and_clears_what_is_null(client: Client) -> None:
    assistant = client.beta.assistants.create(**FULL)
    renamed = client.beta.assistants.update(assistant.id, name="new", metadata={"a": "b"})
    assert without_identity(renamed) == {**without_identity(assistant), "name": "new", "metadata": {"a": "b"}}
    assert client.beta.assistants.update(assistant.id) == renamed
    nulls: dict[str, Any] = dict.fromkeys(set(DEFAULTS) - {"model"})
    cleared = client.beta.assistants.update(assistant.id, **nulls)
    assert without_identity(cleared) == {**DEFAULTS, "model": FULL["model"]}
    assert (cleared.id, cleared.created_at) == (assistant.id, assistant.created_at)
    assert client.beta.assistants.retrieve(assistant.id) == cleared


def test_delete(client: Client) -> None:
    assistant = made(client, 1)[0]
    gone = client.beta.assistants.delete(assistant.id)
    assert gone.to_dict() == {"id": assistant.id, "object": "assistant.deleted", "deleted": True}
    missing = Refusal(404, f"No assistant found with id '{assistant.id}'.")
    assert refused(client.beta.assistants.retrieve, assistant.id) == missing
    assert refused(client.beta.assistants.update, assistant.id, name="x") == missing
    assert refused(client.beta.assistants.delete, assistant.id) == missing
    assert assistant.id not in [one.id for one in client.beta.assistants.list(limit=100)]


def test_lists_are_newest_first_and_know_exactly_whether_there_is_more(client: Client) -> None:
    ids = [one.id for one in made(client, 6)]
    newest = client.beta.assistants.list(limit=3)
    assert [one.id for one in newest.data] == ids[:2:-1]
    page = newest.to_dict()
    assert (page["object"], page["first_id"], page["last_id"]) == ("list", ids[5], ids[3])
    for limit, more in ((4, True), (5, False), (6, False)):
        listed = client.beta.assistants.list(order="asc", after=ids[0], limit=limit)
        assert ([one.id for one in listed.data], listed.has_more) == (ids[1 : limit + 1], more)


def test_before_gives_the_page_that_ends_at_the_cursor(client: Client) -> None:
    ids = [one.id for one in made(client, 5)]
    page = client.beta.assistants.list(order="asc", before=ids[4], limit=2)
    assert ([one.id for one in page.data], page.has_more) == (ids[2:4], True)
    page = client.beta.assistants.list(before=ids[1], limit=10)
    assert ([one.id for one in page.data], page.has_more) == (ids[:1:-1], False)
    page = client.beta.assistants.list(order="asc", after=ids[0], before=ids[3])
    assert ([one.id for one in page.data], page.has_more) == (ids[1:3], False)


def test_a_page_behind_the_last_one_is_empty(client: Client) -> None:
    last = made(client, 1)[0]
    raw = client.beta.assistants.with_raw_response.list(order="asc", after=last.id).http_response.json()
    assert raw == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


def test_twenty_a_page_unless_asked_and_iteration_turns_the_pages(client: Client) -> None:
    ids = [one.id for one in made(client, 23)]
    assert len(client.beta.assistants.list().data) == 20
    assert [one.id for one in client.beta.assistants.list(order="asc", after=ids[0])] == ids[1:]
    assert [one.id for one in client.beta.assistants.list(order="asc", after=ids[0], limit=11)] == ids[1:]


def test_deleting_while_paging_skips_nothing(client: Client) -> None:
    ids = [one.id for one in made(client, 9)]
    seen = []
    for assistant in client.beta.assistants.list(order="asc", after=ids[0], limit=3):
        client.beta.assistants.delete(assistant.id)
        seen.append(assistant.id)
    assert seen == ids[1:]


def test_list_refusals(client: Client) -> None:
    too_few = "Invalid 'limit': integer below minimum value. Expected a value >= 1, but got 0 instead."
    too_many = "Invalid 'limit': integer above maximum value. Expected a value <= 100, but got 101 instead."
    assert refused(client.beta.assistants.list, limit=0) == (400, too_few, "limit", "integer_below_min_value")
    assert refused(client.beta.assistants.list, limit=101) == (400, too_many, "limit", "integer_above_max_value")
    order: Any = "up"
    text = "Invalid value: 'up'. Supported values are: 'asc' and 'desc'."
    assert refused(client.beta.assistants.list, order=order) == (400, text, "order", "invalid_value")
    for cursor in ("after", "before"):
        refusal = refused(client.beta.assistants.list, **{cursor: "asst_none"})
        assert (refusal.status, refusal.param) == (400, cursor)


def test_wrong_and_unknown_ids(client: Client) -> None:
    wrong = (
        400,
        "Invalid 'assistant_id': 'thread_1'. Expected an ID that begins with 'asst'.",
        "assistant_id",
        "invalid_value",
    )
    for call in (client.beta.assistants.retrieve, client.beta.assistants.update, client.beta.assistants.delete):
        assert refused(call, "thread_1") == wrong
        assert refused(call, "asst_none") == (404, "No assistant found with id 'asst_none'.", None, None)


def test_files_that_are_not_there_are_refused(client: Client) -> None:
    for resources, message in (
        ({"code_interpreter": {"file_ids": ["file-1"]}}, "No such File object: file-1"),
        ({"file_search": {"vector_store_ids": ["vs_1"]}}, "Vector store with id [vs_1] not found."),
    ):
        refusal = refused(client.beta.assistants.create, model="m", tool_resources=resources)
        assert (refusal.status, refusal.message) == (404, message)
    empty: Any = {"code_interpreter": {"file_ids": []}, "file_search": {"vector_store_ids": []}}
    assistant = client.beta.assistants.create(model="m", tool_resources=empty)
    assert assistant.to_dict()["tool_resources"] == empty
