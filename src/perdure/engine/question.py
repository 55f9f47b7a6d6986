"""The question of a turn: what the model is shown, cut to what it takes and to what the run allows.

Rules. What nobody set is left out: the upstream has its own defaults. Nothing is counted, and no tokenizer loaded,
where no limit is known or where the text is plainly shorter than the limit: a token has one byte at least.
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.domain.budget import ContextExceeded, Limits, Prompt, PromptCapReached, Shown, fit
from perdure.domain.builtin_tools import ToolKind, name_of
from perdure.domain.transcript import ChatMessage, offered_tools, transcript
from perdure.errors import RunFailure
from perdure.models.base import Capacity, ModelRequest
from perdure.models.tokens import MESSAGE_TOKENS
from perdure.store.db import Database, Operation
from perdure.store.messages import find_last_user_message, list_all_messages
from perdure.store.steps import list_all_steps
from perdure.tools.toolbox import FoundRoom
from perdure.wire.messages import Message, TextPart
from perdure.wire.runs import Extra, Run
from perdure.wire.steps import FileSearchStepCall, RunStep, ToolCalls
from perdure.wire.tools import ChooseCodeInterpreter, ChooseFileSearch, FormatText

OVERHEAD_BYTES = 64
"""More than the frame of any request costs, without its tools and its schema."""

SHORT = 50
"""Messages that are read on the event loop's own thread; more go to a scan thread."""

MOST_FOUND_TOKENS = 16_000
"""What a search may bring at most, as with the hosted one."""

FOUND_SHARE = 0.75
"""The share of the room left that one search may use up: the model may want another one."""

History = tuple[list[Message], list[RunStep]]


class Offers(msgspec.Struct, frozen=True):
    """What a turn offers beside the run's functions.

    Kinds of built-in tools, whether a search is made for the model, and which files code finds.
    """

    kinds: tuple[ToolKind, ...] = ()
    found_is_given: bool = False
    files: tuple[str, ...] = ()


NO_OFFERS = Offers()


def limits_of(run: Run, extra: Extra, capacity: Capacity) -> Limits:
    """Return what this turn may use."""
    left = completion_left(run, extra)
    return Limits(
        context_tokens=capacity.context_tokens,
        answer_tokens=capacity.answer_tokens if left is None else left,
        max_prompt_tokens=run.max_prompt_tokens,
        spent_tokens=extra.usage.prompt_tokens if extra.usage else 0,
    )


def completion_left(run: Run, extra: Extra) -> int | None:
    """Return the completion tokens that the run still allows; the cap counts over all its model calls."""
    if run.max_completion_tokens is None:
        return None
    return run.max_completion_tokens - (extra.usage.completion_tokens if extra.usage else 0)


async def history_of(database: Database, run: Run, room: int | None) -> History:
    """Return what the transcript is made of; with a `room` in tokens, no more messages than could fit into it."""
    short = await database.read(read_history, run, room, SHORT)
    return await database.scan(_read_long_history, run, room) if short is None else short


def _read_long_history(run: Run, room: int | None) -> Operation[History]:
    history = yield from read_history(run, room, None)
    assert history is not None  # noqa: S101  # nothing bounds it
    return history


def read_history(run: Run, room: int | None, most: int | None) -> Operation[History | None]:
    """Read the run's steps and its thread's messages; None if there are more than `most` messages to read."""
    steps = yield from list_all_steps(run.id)
    # The run's own messages are among the newest: one a step at most.
    wanted = [] if room is None else [max(room, 0) // MESSAGE_TOKENS + 1]
    if run.truncation_strategy.type == "last_messages" and run.truncation_strategy.last_messages:
        wanted.append(run.truncation_strategy.last_messages)
    newest = min(wanted) + len(steps) if wanted else None
    if most is not None and (newest is None or newest > most):
        messages = yield from list_all_messages(run.thread_id, most + 1)
        if len(messages) > most:
            return None
    else:
        messages = yield from list_all_messages(run.thread_id, newest)
    if room is not None and not any(message.role == "user" for message in messages):
        asked = yield from find_last_user_message(run.thread_id)
        if asked is not None and run.truncation_strategy.type == "auto":
            messages.insert(0, asked)
    return messages, steps


def build_question(
    run: Run, extra: Extra, model: str, history: History, capacity: Capacity, offers: Offers = NO_OFFERS
) -> ModelRequest | PromptCapReached:
    """Return the request, or that the run's prompt cap leaves no room for one.

    A forced tool choice holds for the first turn only, else the run would never end. Raises RunFailure when even what
    can not be dropped is too long for the model.
    """
    messages, steps = history
    parts = transcript(run, messages, steps, extra.instead_of, found_is_given=offers.found_is_given)
    request = _request(run, extra, model, steps, offers)
    limits = limits_of(run, extra, capacity)
    chat = [*parts.instructions, *parts.thread, *parts.own]
    if limits.thread_room is None or _plainly_fits(chat, request, limits.thread_room):
        return msgspec.structs.replace(request, messages=chat)
    prompt = Prompt(
        instructions=parts.instructions,
        thread=parts.thread,
        own=parts.own,
        overhead_tokens=capacity.counter.count_overhead(request),
    )
    verdict = fit(prompt, limits, capacity.counter.count_each)
    if isinstance(verdict, ContextExceeded):
        raise verdict.failure(model)
    if isinstance(verdict, Shown):
        return msgspec.structs.replace(request, messages=verdict.messages)
    return verdict


def _request(run: Run, extra: Extra, model: str, steps: list[RunStep], offers: Offers) -> ModelRequest:
    """Return the request without its messages."""
    tools = offered_tools(run, offers.kinds, offers.files)
    first = not any(_has_called(step, offers) for step in steps)
    choice: Any = None if run.tool_choice == "auto" or not (first or run.tool_choice == "none") else run.tool_choice
    if isinstance(choice, ChooseFileSearch | ChooseCodeInterpreter):
        choice = _chosen_tool(run, choice, offers)
    plain = run.response_format == "auto" or isinstance(run.response_format, FormatText)
    return ModelRequest(
        model=model,
        messages=[],
        tools=tools or None,
        tool_choice=_builtins(choice) if tools else None,
        parallel_tool_calls=run.parallel_tool_calls if tools and "parallel_tool_calls" in extra.given else None,
        response_format=None if plain else _builtins(run.response_format),
        temperature=run.temperature if "temperature" in extra.given else None,
        top_p=run.top_p if "top_p" in extra.given else None,
        reasoning_effort=run.reasoning_effort,
        max_completion_tokens=completion_left(run, extra),
    )


def _has_called(step: RunStep, offers: Offers) -> bool:
    """Say whether the model has called something in a step. A search that was made for it is none of its calls."""
    if step.status != "completed" or not isinstance(step.step_details, ToolCalls):
        return False
    calls = step.step_details.tool_calls
    return not (offers.found_is_given and all(isinstance(call, FileSearchStepCall) for call in calls))


def _chosen_tool(run: Run, choice: ChooseFileSearch | ChooseCodeInterpreter, offers: Offers) -> dict[str, Any] | None:
    """Return the choice of a built-in tool as a model takes it. Raises RunFailure where it is not offered."""
    kind: ToolKind = "file_search" if isinstance(choice, ChooseFileSearch) else "code_interpreter"
    if kind == "file_search" and offers.found_is_given:
        return None
    if kind not in offers.kinds:
        raise RunFailure(f"The run must begin with {kind}, which this server, or this model, can not do.")
    return {"type": "function", "function": {"name": name_of(run, kind)}}


def _plainly_fits(chat: list[ChatMessage], request: ModelRequest, room: int) -> bool:
    """Say whether the prompt fits even if each of its bytes were a token. Images are not told by their bytes."""
    if any(isinstance(message.get("content"), list) for message in chat):
        return False
    beside = len(msgspec.json.encode((request.tools, request.response_format)))
    return len(msgspec.json.encode(chat)) + beside + OVERHEAD_BYTES <= room


def _builtins(value: Any) -> Any:
    return msgspec.to_builtins(value)


def question_text(history: History) -> str:
    """Return the text of the last message of a user; empty if there is none."""
    for message in reversed(history[0]):
        if message.role == "user":
            return "\n".join(part.text.value for part in message.content if isinstance(part, TextPart)).strip()
    return ""


def found_room(run: Run, extra: Extra, history: History, capacity: Capacity) -> FoundRoom:
    """Return how much text the searches of this turn may bring, so that the next turn's prompt still fits."""
    limits = limits_of(run, extra, capacity)
    counter = capacity.counter
    if limits.thread_room is None:
        return FoundRoom(MOST_FOUND_TOKENS, counter.count_text)
    messages, steps = history
    parts = transcript(run, messages, steps, extra.instead_of)
    asked = [message for message in parts.thread if message["role"] == "user"][-1:]
    used = sum(counter.count_each([*parts.instructions, *asked, *parts.own]))
    left = (limits.thread_room - used) * FOUND_SHARE
    return FoundRoom(max(0, min(MOST_FOUND_TOKENS, int(left))), counter.count_text)
