"""What clients ask of a thread and its runs at once: add a message, create a run, submit outputs."""

from __future__ import annotations

import msgspec

from perdure.domain.creation import new_message, new_run, new_thread
from perdure.domain.lifecycle import move_run, move_step
from perdure.errors import InvalidRequest
from perdure.store.assistants import get_assistant
from perdure.store.db import Operation
from perdure.store.event_log import Draft, number_events
from perdure.store.messages import has_user_message, insert_message_if_free, insert_messages
from perdure.store.runs import RunRow, find_active_run, insert_run, lock_run, write_move
from perdure.store.steps import list_open_steps, write_step
from perdure.store.threads import get_thread_body, insert_thread
from perdure.wire.assistants import Assistant
from perdure.wire.messages import CreateMessage, Message
from perdure.wire.runs import CreateRun, CreateThreadAndRun, Extra, Run, ToolOutput
from perdure.wire.steps import FunctionStepCall, RunStep, ToolCalls
from perdure.wire.threads import CreateThread


class Birth(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation may not make up itself: ids and the time, so that it can be run again."""

    project_id: str
    run_id: str
    thread_id: str
    message_ids: list[str]
    now: int
    expiry_seconds: int


def add_message(message: Message, project_id: str) -> Operation[None]:
    """Store a client's message. Raises NotFound, and InvalidRequest while a run locks the thread."""
    yield from get_thread_body(message.thread_id, project_id, lock=True)
    if not (yield from insert_message_if_free(message)):
        active = yield from find_active_run(message.thread_id)
        raise InvalidRequest(f"Can't add messages to {message.thread_id} while a run {active} is active.")


def create_run(body: CreateRun, birth: Birth) -> Operation[Run]:
    """Store a queued run on a thread. Raises NotFound and InvalidRequest."""
    yield from get_thread_body(birth.thread_id, birth.project_id, lock=True)
    assistant, extra = yield from get_assistant(body.assistant_id, birth.project_id)
    active = yield from find_active_run(birth.thread_id)
    if active:
        raise InvalidRequest(f"Thread {birth.thread_id} already has an active run {active}.")
    messages = _messages(body.additional_messages, birth, "additional_messages")
    yield from insert_messages(messages)
    return (yield from _begin_run(body, assistant, extra, birth, before=[]))


def create_thread_and_run(body: CreateThreadAndRun, birth: Birth) -> Operation[Run]:
    """Store a thread, its messages and a queued run. Raises NotFound and InvalidRequest."""
    assistant, extra = yield from get_assistant(body.assistant_id, birth.project_id)
    given = body.thread or CreateThread()
    thread = new_thread(given, birth.thread_id, birth.now)
    messages = _messages(given.messages, birth, "thread.messages")
    yield from insert_thread(thread, messages, birth.project_id)
    return (yield from _begin_run(body, assistant, extra, birth, before=[("thread.created", thread)]))


def _begin_run(
    body: CreateRun | CreateThreadAndRun, assistant: Assistant, extra: Extra, birth: Birth, *, before: list[Draft]
) -> Operation[Run]:
    run, extra = new_run(
        body,
        assistant,
        extra,
        run_id=birth.run_id,
        thread_id=birth.thread_id,
        now=birth.now,
        expiry_seconds=birth.expiry_seconds,
        additional_instructions=body.additional_instructions if isinstance(body, CreateRun) else None,
        tool_resources=body.tool_resources if isinstance(body, CreateThreadAndRun) else None,
    )
    yield from _refuse_nothing_to_run_on(run)
    yield from insert_run(run, extra, birth.project_id, before)
    return run


def _messages(bodies: list[CreateMessage] | None, birth: Birth, path: str) -> list[Message]:
    return [
        new_message(body, birth.thread_id, message_id, birth.now, f"{path}[{index}]")
        for index, (body, message_id) in enumerate(zip(bodies or [], birth.message_ids, strict=True))
    ]


def _refuse_nothing_to_run_on(run: Run) -> Operation[None]:
    if not run.instructions and not (yield from has_user_message(run.thread_id)):
        raise InvalidRequest(
            "Run creation requires a Thread with a user message or an assistant with instructions.",
            code="invalid_thread",
        )


def submit_outputs(
    run_id: str, thread_id: str, project_id: str, outputs: list[ToolOutput], now: int
) -> Operation[tuple[Run, int]]:
    """Fill in the outputs of the calls that wait and put the run back into the queue.

    Returns the run and the number of the last event before, where the submit stream begins.
    Raises NotFound, and InvalidRequest in the recorded words.
    """
    row = yield from lock_run(run_id, thread_id, project_id)
    if row.run.status != "requires_action":
        raise InvalidRequest(f'Runs in status "{row.run.status}" do not accept tool outputs.')
    steps = yield from list_open_steps(run_id)
    _refuse_wrong_ids(row, outputs)
    by_id = {output.tool_call_id: output.output or "" for output in outputs}
    drafts: list[Draft] = []
    for open_step in steps:
        step = move_step(_answered(open_step, by_id), "completed", now, usage=row.extra.step_usage)
        yield from write_step(step)
        drafts.append(("thread.run.step.completed", step))
    run = move_run(row.run, "queued", now)
    drafts.append(("thread.run.queued", run))
    extra = Extra(given=row.extra.given, usage=row.extra.usage)
    yield from write_move(row, run, number_events(drafts, row.last_event), attempt=row.attempt, extra=extra)
    return run, row.last_event


def _refuse_wrong_ids(row: RunRow, outputs: list[ToolOutput]) -> None:
    action = row.run.required_action
    expected = [call.id for call in action.submit_tool_outputs.tool_calls] if action else []
    got = [output.tool_call_id for output in outputs]
    if sorted(expected) != sorted(str(one) for one in got):
        raise InvalidRequest(f"Expected tool outputs for call_ids {expected}, got {got}")


def _answered(step: RunStep, outputs: dict[str | None, str]) -> RunStep:
    if not isinstance(step.step_details, ToolCalls):
        return step
    for call in step.step_details.tool_calls:
        if isinstance(call, FunctionStepCall):
            call.function.output = outputs[call.id]
    return step
