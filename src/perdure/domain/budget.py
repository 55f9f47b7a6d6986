"""How much of a thread fits: which messages the model is shown, and when there is no room at all.

Rules. The oldest messages go first. Instructions, what this run has done so far and the last user message are never
dropped. A tool call and its outputs go together. A message that does not fit ends the walk: nothing older is shown, so
that the model sees no thread with holes. A run's `last_messages` was applied before (`transcript`): it says what the
thread is, this module what of it fits.

    thread   1  2  3  4  5  6  7  8          Shown: instructions, 6, 7, 8, own
             |  dropped  |  shown |          Shown: instructions, 2, 6, 7, 8, own   where 2 is the last user message

Counting is the dear part: it goes from the newest message backwards and ends with the room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import msgspec

from perdure.domain.transcript import ChatMessage
from perdure.errors import RunFailure

CountEach = Callable[[Sequence[ChatMessage]], Sequence[int]]
"""Returns the tokens of each message."""

ANSWER_TOKENS = 2048
"""Room for the answer where the run sets no limit."""
ANSWER_SHARE = 2
"""The answer's room is at most one part in two of the context: a generous limit must not empty the thread."""
FIRST_PIECE = 16
LAST_PIECE = 1024
"""How many messages are counted at one go: twice as many each time, since a bigger piece is cheaper by the message."""


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """What a turn would show if there was room for all of it. Messages stand oldest first."""

    instructions: list[ChatMessage]
    thread: list[ChatMessage]
    own: list[ChatMessage]
    """What this run has said, called and been answered."""
    overhead_tokens: int = 0
    """What is no message: tool definitions, the schema of the answer, the answer's frame."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a turn may use. Unit: tokens; None: no limit that we know of."""

    context_tokens: int | None = None
    """The model's window, for prompt and answer together."""
    answer_tokens: int | None = None
    """The longest answer that the run still allows."""
    max_prompt_tokens: int | None = None
    """The run's cap, over all its model calls."""
    spent_tokens: int = 0
    """Prompt tokens of the run's earlier model calls."""

    @property
    def prompt_left(self) -> int | None:
        """What the run's cap leaves for this call: of 500, after a call that used 200, it is 300."""
        return None if self.max_prompt_tokens is None else self.max_prompt_tokens - self.spent_tokens

    @property
    def answer_room(self) -> int:
        """What is kept free for the answer. The thread yields to it; instructions and last question may use it up."""
        if self.context_tokens is None:
            return 0
        wanted = ANSWER_TOKENS if self.answer_tokens is None else self.answer_tokens
        return min(wanted, self.context_tokens // ANSWER_SHARE)

    @property
    def thread_room(self) -> int | None:
        """What a prompt may have while there is still something to drop from it."""
        context = None if self.context_tokens is None else self.context_tokens - self.answer_room
        known = [room for room in (context, self.prompt_left) if room is not None]
        return min(known) if known else None


class Shown(msgspec.Struct, frozen=True):
    """The messages of the turn, oldest first."""

    messages: list[ChatMessage]
    dropped: int = 0
    """How many of the thread's are not among them."""
    tokens: int | None = None
    """The whole prompt; None where no limit is known, and nothing was counted."""


class PromptCapReached(msgspec.Struct, frozen=True):
    """The run's cap leaves no room for what can not be dropped: it ends `incomplete`, reason `max_prompt_tokens`."""

    needed: int
    left: int


class ContextExceeded(msgspec.Struct, frozen=True):
    """What can not be dropped is larger than the model's window: the run fails."""

    needed: int
    context_tokens: int

    def failure(self, model: str) -> RunFailure:
        """Return what the run ends with."""
        return RunFailure(
            "The instructions, the tools, the last user message and this run's own steps have about "
            f"{self.needed} tokens; "
            f"model '{model}' takes {self.context_tokens} for prompt and answer together. Nothing is left to drop: "
            "shorten them, or take a model with a larger context (PERDURE_CONTEXT_TOKENS says how large it is, "
            "PERDURE_BUILTIN_CONTEXT_TOKENS that of the built-in model).",
            code="invalid_prompt",
        )


def fit(prompt: Prompt, limits: Limits, count: CountEach) -> Shown | PromptCapReached | ContextExceeded:
    """Return what the model is shown, or why nothing can be.

    Where both limits are too small the run's own cap is named: whoever set it expects that end.
    """
    room = limits.thread_room
    if room is None:
        return Shown([*prompt.instructions, *prompt.thread, *prompt.own])
    asked = _last_user_message(prompt.thread)
    kept = [] if asked is None else [prompt.thread[asked]]
    fixed = prompt.overhead_tokens + sum(count([*prompt.instructions, *kept, *prompt.own]))
    if limits.prompt_left is not None and fixed > limits.prompt_left:
        return PromptCapReached(needed=fixed, left=max(limits.prompt_left, 0))
    if limits.context_tokens is not None and fixed >= limits.context_tokens:
        return ContextExceeded(needed=fixed, context_tokens=limits.context_tokens)
    start, used = _walk(prompt.thread, asked, max(room - fixed, 0), count)
    recent = prompt.thread[start:]
    if asked is not None and asked < start:
        recent = [prompt.thread[asked], *recent]
    messages = [*prompt.instructions, *recent, *prompt.own]
    return Shown(messages, dropped=len(prompt.thread) - len(recent), tokens=fixed + used)


def _last_user_message(thread: Sequence[ChatMessage]) -> int | None:
    return next((at for at in range(len(thread) - 1, -1, -1) if thread[at]["role"] == "user"), None)


def _walk(thread: Sequence[ChatMessage], asked: int | None, room: int, count: CountEach) -> tuple[int, int]:
    """Return where the shown part of the thread begins, and its tokens without those of message `asked`.

    The tokens of `asked` are in nobody's room: they are part of what is fixed.
    """
    start, used = len(thread), 0
    size = FIRST_PIECE
    bundles = _bundles(thread)
    while piece := list(islice(bundles, size)):
        first, end = piece[-1][0], piece[0][1]
        tokens = count(thread[first:end])
        for begin, after in piece:
            cost = sum(tokens[at - first] for at in range(begin, after) if at != asked)
            if used + cost > room:
                return start, used
            start, used = begin, used + cost
        size = min(size * 2, LAST_PIECE)
    return start, used


def _bundles(thread: Sequence[ChatMessage]) -> Iterator[tuple[int, int]]:
    """Yield what can not be parted, the newest first: a message alone, or tool calls with their outputs."""
    end = len(thread)
    for at in range(end - 1, -1, -1):
        if thread[at]["role"] != "tool" or at == 0:
            yield at, end
            end = at
