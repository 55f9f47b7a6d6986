"""What clients ask of a thread and its runs at once: write or delete a message, create or retry a run, submit outputs.

A run locks its thread. What comes meanwhile is refused, or stands in the thread's line if the client wants that:
`queue` at its end, `interrupt` in front of all that was queued, behind earlier interrupts, and the active run is
cancelled. Rule: a line has an active run before it; whoever ends that one lets in the next (`store/runs.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from perdure.domain.creation import new_message, new_run, new_thread, run_again
from perdure.domain.lifecycle import RETRIED, move_run, move_step
from perdure.errors import InvalidRequest
from perdure.store.assistants import get_assistant
from perdure.store.attachments import Fresh, PlannedStore, attach_files, insert_planned, touch_resources
from perdure.store.bodies import read_thread
from perdure.store.db import Operation, Row
from perdure.store.event_log import Draft, number_events
from perdure.store.messages import delete_message as delete_stored
from perdure.store.messages import (
    has_user_message,
    insert_message_if_free,
    insert_messages,
    is_waiting,
    lock_message,
)
from perdure.store.messages import update_message as write_changed
from perdure.store.runs import (
    NO_END,
    RunRow,
    begin_cancel,
    find_active_run,
    insert_run,
    lock_active_run,
    lock_run,
    write_move,
)
from perdure.store.steps import list_open_steps, write_step
from perdure.store.threads import get_thread_body, insert_thread
from perdure.wire.assistants import Assistant
from perdure.wire.kinds import WhenBusy
from perdure.wire.messages import CreateMessage, Message, ModifyMessage
from perdure.wire.runs import CreateRun, CreateThreadAndRun, Extra, Run, ToolOutput
from perdure.wire.steps import FOUND_TEXT, FunctionStepCall, RunStep, ToolCalls, shown_step
from perdure.wire.threads import CreateThread, Thread
from perdure.wire.tools import FileSearchTool

INTERRUPTS = 1_000_000_000
"""What interrupts has numbers below this in its thread's line, what is queued above."""
MOST_WAITING = 256


class Place(msgspec.Struct, frozen=True):
    """A place in a thread's line: its number, the run that all wait for, and whether that one was cancelled for it."""

    number: int
    behind: str
    interrupts: bool


class Made(msgspec.Struct, frozen=True):
    """A new run, and where it waits if it does."""

    run: Run
    place: Place | None


class Birth(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation may not make up itself: ids and the time, so that it can be run again."""

    project_id: str
    run_id: str
    thread_id: str
    message_ids: list[str]
    now: int
    expiry_seconds: int
    when_busy: WhenBusy = "reject"
    include: list[str] = []
    """What the run's stream shows beyond the usual."""
    fresh: Fresh | None = None
    """For the vector store that the thread gets with its first attachment; needed where messages have any."""
    planned: PlannedStore | None = None
    """A vector store that is made with the thread."""


def add_message(
    message: Message, project_id: str, when_busy: WhenBusy = "reject", now: int = 0, fresh: Fresh | None = None
) -> Operation[Place | None]:
    """Store a client's message; return where it waits, if it does.

    `now` is needed to interrupt, it and `fresh` for attachments. Raises NotFound, and InvalidRequest while a run locks
    the thread.
    """
    yield from get_thread_body(message.thread_id, project_id, lock=True)
    if message.attachments:
        yield from attach_files(message.thread_id, [message], fresh, project_id, now)
    while not (yield from insert_message_if_free(message)):
        if when_busy != "reject":
            place = yield from _stand_in_line(message.thread_id, when_busy, now)
            yield from insert_messages([message], place.number if place else 0)
            return place
        active = yield from find_active_run(message.thread_id)
        if active is not None:  # on Postgres it may have ended since the statement before
            raise InvalidRequest(f"Can't add messages to {message.thread_id} while a run {active} is active.")
    return None


def update_message(message_id: str, thread_id: str, project_id: str, change: ModifyMessage) -> Operation[Message]:
    """Change a message. Raises NotFound, and InvalidRequest for new content while a run locks the thread."""
    changes_content = change.x_content is not None
    yield from get_thread_body(thread_id, project_id, lock=changes_content)
    if changes_content:
        yield from _refuse_at_work(message_id, thread_id, "change")
    return (yield from write_changed(message_id, thread_id, change))


def delete_message(message_id: str, thread_id: str, project_id: str, now: int) -> Operation[None]:
    """Delete a message. Raises NotFound, and InvalidRequest while a run locks the thread."""
    yield from get_thread_body(thread_id, project_id, lock=True)
    yield from _refuse_at_work(message_id, thread_id, "delete")
    yield from delete_stored(message_id, thread_id, now)


def _refuse_at_work(message_id: str, thread_id: str, what: str) -> Operation[None]:
    """Raise NotFound, and InvalidRequest while a run works on the thread; what waits in its line is not seen by it.

    The message is locked: it can not be let in from the line behind this look.
    """
    yield from lock_message(message_id, thread_id)
    active = yield from find_active_run(thread_id)
    if active and not (yield from is_waiting(message_id, thread_id)):
        raise InvalidRequest(f"Can't {what} message {message_id} while a run {active} is active.")


def _stand_in_line(thread_id: str, when_busy: WhenBusy, now: int) -> Operation[Place | None]:
    """Take a place behind the active run; None if the thread has become free. The caller holds the thread's lock.

    The active run is locked: whoever would end it at this moment must see what waits. Raises InvalidRequest.
    """
    active = yield from lock_active_run(thread_id)
    if active is None:
        return None
    interrupts = when_busy == "interrupt"
    below = INTERRUPTS if interrupts else NO_END
    line = "SELECT waits FROM {} WHERE thread_id = $1 AND waits > 0"
    row = yield Row(
        "SELECT count(*), max(CASE WHEN waits < $2 THEN waits END) "
        f"FROM ({line.format('runs')} UNION ALL {line.format('messages')}) AS line",
        thread_id,
        below,
    )
    if row[0] >= MOST_WAITING:
        raise InvalidRequest(f"Thread {thread_id} has {row[0]} messages and runs waiting for run {active.run.id}.")
    if interrupts and active.run.status != "cancelling":
        yield from begin_cancel(active, now)
    number = max(row[1] or 0, 0 if interrupts else INTERRUPTS) + 1
    return Place(number, active.run.id, interrupts)


def create_run(body: CreateRun, birth: Birth) -> Operation[Made]:
    """Store a queued run on a thread. Raises NotFound and InvalidRequest."""
    yield from get_thread_body(birth.thread_id, birth.project_id, lock=True)
    assistant, extra = yield from get_assistant(body.assistant_id, birth.project_id)
    place = yield from _place_of_run(birth)
    messages = _messages(body.additional_messages, birth, "additional_messages")
    yield from attach_files(birth.thread_id, messages, birth.fresh, birth.project_id, birth.now)
    yield from insert_messages(messages, place.number if place else 0)  # before the run in the line as well
    run = yield from _begin_run(body, assistant, extra, birth, waits=place.number + 1 if place else 0)
    return Made(run, place)


def _place_of_run(birth: Birth) -> Operation[Place | None]:
    """Return where a new run waits; None if it need not. Raises InvalidRequest."""
    active = yield from find_active_run(birth.thread_id)
    if active is None:
        return None
    if birth.when_busy == "reject":
        raise InvalidRequest(f"Thread {birth.thread_id} already has an active run {active}.")
    return (yield from _stand_in_line(birth.thread_id, birth.when_busy, birth.now))


def retry_run(run_id: str, birth: Birth) -> Operation[Made]:
    """Store a queued run with all that an ended one was made with. Raises NotFound and InvalidRequest."""
    yield from get_thread_body(birth.thread_id, birth.project_id, lock=True)
    row = yield from lock_run(run_id, birth.thread_id, birth.project_id)
    if row.run.status not in RETRIED:
        raise InvalidRequest(f"Cannot retry run with status '{row.run.status}'.")
    place = yield from _place_of_run(birth)
    run, extra = run_again(row.run, row.extra, run_id=birth.run_id, now=birth.now, expiry_seconds=birth.expiry_seconds)
    yield from insert_run(run, extra, birth.project_id, [], place.number if place else 0)
    return Made(run, place)


def insert_new_thread(
    thread: Thread,
    messages: list[Message],
    project_id: str,
    now: int,
    fresh: Fresh | None = None,
    planned: PlannedStore | None = None,
) -> Operation[Thread]:
    """Store a thread with its messages, their attachments, and the vector store that is made with it; return it.

    Raises NotFound and InvalidRequest.
    """
    if planned is not None:
        yield from insert_planned(planned, project_id, now)
    yield from insert_thread(thread, messages, project_id)
    yield from attach_files(thread.id, messages, fresh, project_id, now)
    if any(message.attachments for message in messages):
        return read_thread((yield from get_thread_body(thread.id, project_id)))
    return thread


def create_thread_and_run(body: CreateThreadAndRun, birth: Birth) -> Operation[Run]:
    """Store a thread, its messages and a queued run. Raises NotFound and InvalidRequest."""
    assistant, extra = yield from get_assistant(body.assistant_id, birth.project_id)
    given = body.thread or CreateThread()
    thread = new_thread(given, birth.thread_id, birth.now)
    messages = _messages(given.messages, birth, "thread.messages")
    thread = yield from insert_new_thread(thread, messages, birth.project_id, birth.now, birth.fresh, birth.planned)
    return (yield from _begin_run(body, assistant, extra, birth, [("thread.created", thread)]))


def _begin_run(
    body: CreateRun | CreateThreadAndRun,
    assistant: Assistant,
    extra: Extra,
    birth: Birth,
    before: Sequence[Draft] = (),
    *,
    waits: int = 0,
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
    if any(isinstance(tool, FileSearchTool) for tool in run.tools):
        yield from _touch_stores(run, birth.now)
    extra.include = birth.include
    yield from insert_run(run, extra, birth.project_id, before, waits)
    return run


def _messages(bodies: list[CreateMessage] | None, birth: Birth, path: str) -> list[Message]:
    return [
        new_message(body, birth.thread_id, message_id, birth.now, f"{path}[{index}]")
        for index, (body, message_id) in enumerate(zip(bodies or [], birth.message_ids, strict=True))
    ]


def _touch_stores(run: Run, now: int) -> Operation[None]:
    """Note that the vector stores of the run and its thread are used: that moves their expiry."""
    thread = yield Row("SELECT body FROM threads WHERE id = $1", run.thread_id)
    yield from touch_resources([run.tool_resources, read_thread(thread[0]).tool_resources], now)


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
        shown = shown_step(step, found_text=FOUND_TEXT in row.extra.include)
        drafts.append(("thread.run.step.completed", shown))
    run = move_run(row.run, "queued", now)
    drafts.append(("thread.run.queued", run))
    extra = msgspec.structs.replace(row.extra, step_usage=None)
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
