"""What must be true when all deaths are over: every promise is kept, every run has ended, nothing is there twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import openai

from tests.durability.load import ALOUD, LONG_ANSWER, LONG_PIECES, SLOW_ANSWER, TERMINAL, check_free, poll
from tests.durability.log_checks import check_log, check_reading
from tests.durability.programs import Load
from tests.durability.promises import Json, Promises
from tests.durability.readings import Event, Reading
from tests.server import Client

AT_ONCE = 12


def check_promises(client: Client, load: Load) -> dict[str, list[str]]:
    """Check everything that the API shows; return the ids of all threads' messages, in their order."""
    promises = load.promises
    threads = [thread["id"] for thread in pages(client, "/threads")]
    settle(client, threads)
    load.followers.join()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        logs = dict(
            one for found in pool.map(lambda one: check_thread(client, one, promises), threads) for one in found
        )
    check_nothing_twice(client, promises)
    check_bytes(client, promises)
    for reading in load.followers.readings:
        if reading.run_id in logs:
            check_reading(reading, logs[reading.run_id])
        else:
            assert promises.may_be_gone(reading.path), f"{reading.path} is gone"
    for run_id, thread_id in promises.runs.items():
        assert run_id in logs or promises.may_be_gone(f"/threads/{thread_id}"), f"{run_id} is gone"
    assistant_id = client.beta.assistants.create(model="gpt-4o").id
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda one: check_free(client, one, assistant_id), threads))
        return dict(zip(threads, pool.map(lambda one: message_ids(client, one), threads), strict=True))


def pages(client: Client, path: str, **query: str) -> Iterator[Json]:
    """List everything, oldest first."""
    after: dict[str, str] = {}
    while True:
        options: Any = {"params": {"limit": "100", "order": "asc", **query, **after}}
        page: Json = client.get(path, cast_to=httpx2.Response, options=options).json()
        yield from page["data"]
        if not page["has_more"]:
            return
        after = {"after": page["last_id"]}


def message_ids(client: Client, thread_id: str) -> list[str]:
    return [message["id"] for message in pages(client, f"/threads/{thread_id}/messages")]


def settle(client: Client, threads: list[str]) -> None:
    """Wait until every run has ended; answer the calls that are left: their programs never heard of them."""

    def settled() -> bool:
        runs = [run for found in pool.map(lambda one: list_runs(client, one), left) for run in found]
        for run in runs:
            if run["required_action"] is not None:
                late(client, run)
        left[:] = list({run["thread_id"] for run in runs if run["status"] not in TERMINAL})
        return not left

    left = list(threads)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        poll(settled, "all runs to end")


def late(client: Client, run: Json) -> None:
    calls = run["required_action"]["submit_tool_outputs"]["tool_calls"]
    outputs: Any = [{"tool_call_id": call["id"], "output": f"late {call['id']}"} for call in calls]
    client.beta.threads.runs.submit_tool_outputs(run["id"], thread_id=run["thread_id"], tool_outputs=outputs)


def list_runs(client: Client, thread_id: str) -> list[Json]:
    return list(pages(client, f"/threads/{thread_id}/runs"))


def check_thread(client: Client, thread_id: str, promises: Promises) -> list[tuple[str, list[Event]]]:
    """Check a thread with all that hangs on it; return the logs of its runs."""
    messages = list(pages(client, f"/threads/{thread_id}/messages"))
    runs = list_runs(client, thread_id)
    check_messages(thread_id, messages, promises)
    steps = {run["id"]: list(pages(client, f"/threads/{thread_id}/runs/{run['id']}/steps")) for run in runs}
    logs = []
    for run in runs:
        own = [message for message in messages if message["run_id"] == run["id"]]
        question = question_of(messages, own)
        check_end(run, question, promises)
        outputs = check_steps(run, steps[run["id"]], promises)
        if thread_id not in promises.rewritten:
            check_answer(run, own, question, outputs)
        log = Reading(thread_id, run["id"])
        log.take(client.get(f"{log.path}/events", cast_to=httpx2.Response).text.split("\n"))
        changed = promises.is_changing(log.path) or "changed" in run["metadata"]
        check_log(log.events, None if changed else run, own, steps[run["id"]])
        logs.append((str(run["id"]), log.events))
    return logs


def plain_text(message: Json) -> str:
    return "".join(part["text"]["value"] for part in message["content"] if part["type"] == "text")


def check_messages(thread_id: str, messages: list[Json], promises: Promises) -> None:
    assert "in_progress" not in {message["status"] for message in messages}
    ids = [message["id"] for message in messages]
    assert len(ids) == len(set(ids))
    texts = [plain_text(message) for message in messages if message["role"] == "user"]
    assert len(texts) == len(set(texts)), "no message is there twice"
    assert texts, "a thread is there with its first message or not at all"
    if thread_id not in promises.rewritten:
        assert set(promises.said[thread_id]) <= set(texts), "no message is missing"
    here = set(ids)
    in_order = [message_id for message_id in promises.order[thread_id] if message_id in here]
    wanted = set(in_order)
    assert [message_id for message_id in ids if message_id in wanted] == in_order


def question_of(messages: list[Json], own: list[Json]) -> str:
    """Return the last thing that a user had said when the run began to answer, nothing if it never did."""
    question = ""
    for message in messages if own else []:
        if message["id"] == own[0]["id"]:
            break
        if message["role"] == "user":
            question = plain_text(message)
    return question


def check_end(run: Json, question: str, promises: Promises) -> None:
    """Every run has ended, and as it had to."""
    status, error = run["status"], run["last_error"]
    assert (status == "cancelled") >= (run["id"] in promises.cancelled), f"{run['id']} was to be cancelled"
    if status == "cancelled":
        assert run["id"] in promises.stopping or run["thread_id"] in promises.stopping
    elif status == "failed" and "interrupted 3 times" not in error["message"]:
        assert "The script says no." in error["message"], error
    elif status == "incomplete":
        assert run["max_completion_tokens"] == LONG_PIECES
    else:
        assert status in {"completed", "failed"}, run
        assert status == "failed" or not question.startswith(("fail", "long")), run


def check_steps(run: Json, steps: list[Json], promises: Promises) -> list[str]:
    """Check a run's steps; return the outputs of its functions, in order."""
    assert "in_progress" not in {step["status"] for step in steps}
    lists = [step["step_details"]["tool_calls"] for step in steps if step["type"] == "tool_calls"]
    done = [calls for calls in lists if any(call["function"]["output"] is not None for call in calls)]
    assert len(done) <= 1, "no tool output is there twice"
    outputs = []
    for call in done[0] if done else []:
        output = call["function"]["output"]
        assert output == promises.outputs.get(call["id"], f"late {call['id']}")
        outputs.append(output)
    assert len(outputs) == len(set(outputs))
    for call in (call for calls in lists for call in calls):
        assert call["function"]["output"] is not None or call["id"] not in promises.taken, "an output is missing"
    if run["status"] == "completed" and lists:
        assert outputs, "a completed run has had its calls answered"
    return outputs


def check_answer(run: Json, own: list[Json], question: str, outputs: list[str]) -> None:
    """The run said what the script says, once; what was broken off is the beginning of it."""
    wanted = answer_to(question, outputs)
    answers = [one for one in own if plain_text(one) != ALOUD or one["status"] != "completed"]
    complete = [plain_text(one) for one in answers if one["status"] == "completed"]
    assert complete == ([wanted] if run["status"] == "completed" else []), run
    for message in answers:
        assert wanted.startswith(plain_text(message)) or ALOUD.startswith(plain_text(message))


def answer_to(question: str, outputs: list[str]) -> str:
    if outputs:
        return f"It is {outputs[-1]}."
    if question.startswith("slow"):
        return SLOW_ANSWER
    if question.startswith("long"):
        return LONG_ANSWER
    return f"You said: {question} a b c d e f"


def check_nothing_twice(client: Client, promises: Promises) -> None:
    """Every assistant, thread and run was asked for in words of its own."""
    names = Counter(one["name"] for one in pages(client, "/assistants") if one["name"])
    assert set(names.values()) <= {1}, names.most_common(3)
    threads = list(pages(client, "/threads"))
    tags = Counter(thread["metadata"]["tag"] for thread in threads)
    assert set(tags.values()) <= {1}, tags.most_common(3)
    runs = Counter(run["metadata"]["tag"] for thread in threads for run in list_runs(client, thread["id"]))
    for tag, times in runs.items():
        assert times <= 1 + promises.retries[tag], f"{tag} is there {times} times"


def check_bytes(client: Client, promises: Promises) -> None:
    """What was answered is there, byte for byte; what was deleted is not."""

    def check(path: str) -> None:
        body = read(client, path)
        assert promises.is_kept(path, body), f"{path}: {body!r}"

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(check, promises.paths()))
        gone = list(pool.map(lambda path: read(client, path), promises.deleted))
    assert set(gone) <= {None}


def read(client: Client, path: str) -> bytes | None:
    """Return what is there, None for a 404."""
    try:
        return client.get(path, cast_to=httpx2.Response).content
    except openai.NotFoundError:
        return None
