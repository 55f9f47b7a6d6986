"""What a thread is, one call after the other: the plain model that a history is held against.

Pure: a rule takes a state, a call's arguments and the ids that the server made up, and returns the answer and the next
state. The server's own moves (`moves.py`) are steps like calls. Nothing here knows of time, transactions or HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from perdure.domain.lifecycle import ACTIVE, RETRIED
from tests.history.moves import Begin, Close, Effect, Move, To

Args = dict[str, Any]
Ids = tuple[str, ...]
Answer = tuple[Any, ...]

ANYTHING: Answer = ("anything",)
"""The answer where the model does not say: it fits whatever was answered."""
GONE: Answer = ("refused", 404, "")
"""Refused because the thread is gone; which of the missing objects the text names is left open."""


class Message(NamedTuple):
    id: str
    role: str
    text: str
    status: str = "completed"
    mark: str = ""
    deleted: bool = False  # its place stays: programs delete while they page


class Run(NamedTuple):
    id: str
    status: str = "queued"
    waits: bool = False
    at: int = 0  # how many of the server's own moves it has made


class Waiting(NamedTuple):
    """One place in the line: a message or a run."""

    interrupts: bool
    message: Message | None = None
    run_id: str = ""


class State(NamedTuple):
    """A thread. `there` is None before it is made, and False once it is deleted."""

    there: bool | None = None
    messages: tuple[Message, ...] = ()
    line: tuple[Waiting, ...] = ()
    runs: tuple[Run, ...] = ()
    left: frozenset[str] = frozenset()  # deleted while they waited: where a page after them begins is not said


Outcome = tuple[Answer, State]


def refused(status: int, text: str) -> Answer:
    return ("refused", status, text)


def shown(message: Message) -> Answer:
    return (message.id, message.role, message.status, message.text, message.mark)


def active_run(state: State) -> Run | None:
    return next((run for run in state.runs if not run.waits and run.status in ACTIVE), None)


def visible(state: State) -> list[Message]:
    """All messages in the order of the list, what waits last, deleted ones among them."""
    return [*state.messages, *(one.message for one in state.line if one.message is not None)]


def with_run(state: State, run: Run) -> State:
    return state._replace(runs=tuple(run if one.id == run.id else one for one in state.runs))


def with_message(state: State, message: Message) -> State:
    def changed(one: Message | None) -> Message | None:
        return message if one is not None and one.id == message.id else one

    line = tuple(one._replace(message=changed(one.message)) for one in state.line)
    return state._replace(messages=tuple(changed(one) or one for one in state.messages), line=line)


def find_run(state: State, run_id: str) -> Run | None:
    return next((one for one in state.runs if one.id == run_id), None)


def find_message(state: State, message_id: str) -> Message | None:
    return next((one for one in visible(state) if one.id == message_id and not one.deleted), None)


# -- the server's own moves


def move(state: State, run: Run, step: Move) -> State | None:
    """Return the state after a run's next move of its own, None where it can not come yet."""
    if state.there is not True:
        return None
    after: State | None = with_run(state, run._replace(at=run.at + 1))
    for effect in step:
        if after is not None:
            after = _take_effect(after, state_run(after, run.id), effect)
    return after


def _take_effect(state: State, run: Run, effect: Effect) -> State | None:
    if isinstance(effect, To) and _may_move(run, effect.status):
        after = with_run(state, run._replace(status=effect.status))
        return after if effect.status in ACTIVE else _end(after, run)
    if isinstance(effect, Begin) and run.status in {"in_progress", "cancelling"}:
        begun = Message(effect.message_id, "assistant", "", "in_progress")
        return state._replace(messages=(*state.messages, begun))
    if isinstance(effect, Close):
        message = find_message(state, effect.message_id)
        if message is not None and message.status == "in_progress":
            return with_message(state, message._replace(status=effect.status, text=effect.text))
    return None  # outputs that were submitted are a client's call


def _may_move(run: Run, to: str) -> bool:
    if to == "in_progress":
        return run.status == "queued" and not run.waits
    if to == "cancelled":
        return run.status == "cancelling"
    if to == "expired":
        return run.status in {"queued", "in_progress", "requires_action"} and not run.waits
    return run.status == "in_progress"


def _end(state: State, ended: Run) -> State:
    """The run has ended; if it locked the thread the next are let in, up to and with the first run."""
    line = tuple(one for one in state.line if one.run_id != ended.id)
    state = with_run(state._replace(line=line), state_run(state, ended.id)._replace(waits=False))
    if ended.waits:
        return state
    queued = {run.id for run in state.runs if run.status == "queued"}
    place = next((number for number, one in enumerate(line) if one.run_id in queued), len(line))
    let_in = tuple(one.message for one in line[:place] if one.message is not None)
    stay = tuple(one for one in line[:place] if one.message is None) + line[place + 1 :]
    state = state._replace(messages=state.messages + let_in, line=stay)
    if place < len(line):
        state = with_run(state, state_run(state, line[place].run_id)._replace(waits=False))
    return state


def state_run(state: State, run_id: str) -> Run:
    return next(one for one in state.runs if one.id == run_id)


# -- calls that write


def create_thread(state: State, args: Args, made: Ids) -> Outcome:
    messages = tuple(Message(one, "user", text) for one, text in zip(made, args["texts"], strict=True))
    return ("ok",), state._replace(there=True, messages=messages)


def delete_thread(state: State, args: Args, made: Ids) -> Outcome:
    del state, args, made
    return ("ok",), State(there=False)


def add_message(state: State, args: Args, made: Ids) -> Outcome:
    message = Message(made[0], "user", args["text"])
    active = active_run(state)
    if active is None:
        return ("ok", message.id, None), state._replace(messages=(*state.messages, message))
    if args["busy"] == "reject":
        text = f"Can't add messages to {args['thread']} while a run {active.id} is active."
        return refused(400, text), state
    interrupts = args["busy"] == "interrupt"
    return ("ok", message.id, active.id), _stand(state, active, interrupts, [Waiting(interrupts, message)])


def _stand(state: State, active: Run, interrupts: bool, new: Iterable[Waiting]) -> State:
    """Stand in line: interrupts behind earlier interrupts, all else at the end."""
    if interrupts and active.status != "cancelling":
        state = with_run(state, active._replace(status="cancelling"))
    ahead = [one for one in state.line if one.interrupts or not interrupts]
    behind = [one for one in state.line if interrupts and not one.interrupts]
    return state._replace(line=(*ahead, *new, *behind))


def create_run(state: State, args: Args, made: Ids) -> Outcome:
    messages = [Message(one, "user", text) for one, text in zip(made[1:], args["texts"], strict=True)]
    return _begin_run(state, args, made[0], messages)


def _begin_run(state: State, args: Args, run_id: str, messages: list[Message]) -> Outcome:
    active = active_run(state)
    if active is None:
        after = state._replace(messages=(*state.messages, *messages), runs=(*state.runs, Run(run_id)))
        return ("ok", run_id, "queued", None), after
    if args["busy"] == "reject":
        return refused(400, f"Thread {args['thread']} already has an active run {active.id}."), state
    interrupts = args["busy"] == "interrupt"
    new = [*(Waiting(interrupts, one) for one in messages), Waiting(interrupts, run_id=run_id)]
    after = _stand(state._replace(runs=(*state.runs, Run(run_id, waits=True))), active, interrupts, new)
    return ("ok", run_id, "queued", active.id), after


def retry_run(state: State, args: Args, made: Ids) -> Outcome:
    old = find_run(state, args["run"])
    if old is None:
        return _no_run(args), state
    if old.status not in RETRIED:
        return refused(400, f"Cannot retry run with status '{old.status}'."), state
    return _begin_run(state, args, made[0], [])


def cancel_run(state: State, args: Args, made: Ids) -> Outcome:
    del made
    run = find_run(state, args["run"])
    if run is None:
        return _no_run(args), state
    if run.status not in {"queued", "in_progress", "requires_action"}:
        return refused(400, f"Cannot cancel run with status '{run.status}'."), state
    return ("ok", run.id, "cancelling"), with_run(state, run._replace(status="cancelling"))


def submit_outputs(state: State, args: Args, made: Ids) -> Outcome:
    del made
    run = find_run(state, args["run"])
    if run is None:
        return _no_run(args), state
    if run.status != "requires_action":
        return refused(400, f'Runs in status "{run.status}" do not accept tool outputs.'), state
    return ("ok", run.id, "queued"), with_run(state, run._replace(status="queued", at=run.at + 1))


def mark_message(state: State, args: Args, made: Ids) -> Outcome:
    del made
    message = find_message(state, args["message"])
    if message is None:
        return _no_message(args), state
    marked = message._replace(mark=args["mark"])
    return ("ok", *shown(marked)), with_message(state, marked)


def edit_message(state: State, args: Args, made: Ids) -> Outcome:
    del made
    message = find_message(state, args["message"])
    if message is None:
        return _no_message(args), state
    if (active := _at_work(state, message)) is not None:
        return refused(400, f"Can't change message {message.id} while a run {active.id} is active."), state
    edited = message._replace(text=args["text"])
    return ("ok", *shown(edited)), with_message(state, edited)


def delete_message(state: State, args: Args, made: Ids) -> Outcome:
    del made
    message = find_message(state, args["message"])
    if message is None:
        return _no_message(args), state
    if (active := _at_work(state, message)) is not None:
        return refused(400, f"Can't delete message {message.id} while a run {active.id} is active."), state
    line = tuple(one for one in state.line if one.message is None or one.message.id != message.id)
    if line != state.line:
        return ("ok", message.id), state._replace(line=line, left=state.left | {message.id})
    return ("ok", message.id), with_message(state, message._replace(deleted=True))


def _at_work(state: State, message: Message) -> Run | None:
    waits = any(one.message is not None and one.message.id == message.id for one in state.line)
    return None if waits else active_run(state)


def _no_run(args: Args) -> Answer:
    return refused(404, f"No run found with id '{args['run']}'.")


def _no_message(args: Args) -> Answer:
    return refused(404, f"No message found with id '{args['message']}'.")


# -- calls that read


def list_messages(state: State, args: Args, made: Ids) -> Outcome:
    del made
    if args["after"] in state.left:
        return ANYTHING, state
    return _page([(one.id, None if one.deleted else shown(one)) for one in visible(state)], args), state


def list_runs(state: State, args: Args, made: Ids) -> Outcome:
    del made
    return _page([(one.id, (one.id, one.status)) for one in state.runs], args), state


def _page(rows: list[tuple[str, Answer | None]], args: Args) -> Answer:
    """Rows without anything to show are places of what was deleted."""
    if args["order"] == "desc":
        rows.reverse()
    after = args["after"]
    if after is not None:
        place = next((number for number, row in enumerate(rows) if row[0] == after), None)
        if place is None:
            return refused(400, f"No object found with id '{after}' to page from.")
        rows = rows[place + 1 :]
    items = [row[1] for row in rows if row[1] is not None]
    return ("ok", tuple(items[: args["limit"]]), len(items) > args["limit"])


def get_message(state: State, args: Args, made: Ids) -> Outcome:
    del made
    message = find_message(state, args["message"])
    return (_no_message(args) if message is None else ("ok", *shown(message))), state


def get_run(state: State, args: Args, made: Ids) -> Outcome:
    del made
    run = find_run(state, args["run"])
    return (_no_run(args) if run is None else ("ok", run.id, run.status)), state


def fork_thread(state: State, args: Args, made: Ids) -> Outcome:
    """The answer is what the new thread holds: all but its ids, which are new."""
    del made
    finished = [one for one in state.messages if one.status != "in_progress" and not one.deleted]
    at = args["message"]
    if at is not None:
        place = next((number for number, one in enumerate(finished, 1) if one.id == at), None)
        if place is None and find_message(state, at) is None:
            return _no_message(args), state
        if place is None:
            return refused(400, f"Can't fork at message {at}: it is not finished yet."), state
        finished = finished[:place]
    return ("ok", tuple(shown(one)[1:] for one in finished)), state


RULES: dict[str, Callable[[State, Args, Ids], Outcome]] = {
    rule.__name__: rule
    for rule in (
        *(create_thread, delete_thread, add_message, create_run, retry_run, cancel_run, submit_outputs),
        *(mark_message, edit_message, delete_message),
        *(list_messages, list_runs, get_message, get_run, fork_thread),
    )
}


def answer(state: State, name: str, args: Args, made: Ids) -> Outcome:
    """Return what the thread answers to a call, and the thread after it."""
    if state.there is not True and name != "create_thread":
        return GONE, state
    return RULES[name](state, args, made)


def fits(expected: Answer, given: Answer) -> bool:
    """Say whether an answer is the one that the model gives."""
    if expected is ANYTHING:
        return True
    if expected is GONE:
        return given[:2] == GONE[:2]
    return expected == given
