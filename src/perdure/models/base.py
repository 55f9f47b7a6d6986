"""The model port: one request in, a stream of small pieces out.

Rules. A model never retries after its first piece. Closing the iterator (`aclose`) closes the connection to the
upstream at once. Every failure is a `RunFailure` whose message names the model's address and what to check.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from perdure.errors import RunFailure

if TYPE_CHECKING:
    from perdure.models.tokens import TokenCounter

ChatMessage = dict[str, Any]
"""One message in the shape of `/v1/chat/completions`: role, content, tool_calls, tool_call_id."""

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class ModelRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One turn's question. What is None was not set by the user and is not sent."""

    model: str
    messages: list[ChatMessage]
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    temperature: float | None = None
    top_p: float | None = None
    reasoning_effort: str | None = None
    max_completion_tokens: int | None = None


class TextDelta(msgspec.Struct, frozen=True):
    """Some characters of the answer."""

    text: str


class RefusalDelta(msgspec.Struct, frozen=True):
    """Some characters of a refusal."""

    text: str


class ToolCallDelta(msgspec.Struct, frozen=True):
    """A piece of a tool call. `id` and `name` come once, with the first piece of an index."""

    index: int
    id: str | None
    name: str | None
    arguments: str


class ModelUsage(msgspec.Struct, frozen=True):
    """What the model counted. Unit: tokens."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class Finished(msgspec.Struct, frozen=True):
    """The last piece but for `ModelUsage`, which may follow it."""

    reason: FinishReason


ModelPiece = TextDelta | RefusalDelta | ToolCallDelta | ModelUsage | Finished


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """How much a model takes, as far as that is known here. Unit: tokens; None: not known."""

    counter: TokenCounter
    """Counts where the model does not say; for the built-in model it never counts too few."""
    context_tokens: int | None = None
    """The window, for prompt and answer together."""
    answer_tokens: int | None = None
    """The longest answer where a run sets no limit."""
    calls_tools: bool = True
    """Whether it can call tools at all."""
    searches: bool = True
    """Whether it makes sense of built-in tools by itself. For one that does not, a search is made with the user's
    words, and the code interpreter is offered only where the run demands it."""


class ToolsRefused(RunFailure):
    """The model can not call tools; its capacity says so from now on. Asked without tools it may answer."""


class Model(Protocol):
    """Something that answers."""

    def capacity(self, model: str) -> Capacity:
        """Return how much the model of that name takes."""
        ...

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelPiece, None]:
        """Answer piece by piece, as the model sends them. Raises RunFailure, ToolsRefused among them."""
        ...

    async def list_models(self) -> list[str]:
        """Return the names that can be asked for. Raises RunFailure when the upstream does not say."""
        ...

    async def warm_up(self) -> None:
        """Get ready to answer at once. Raises OperatorError if that can never be."""
        ...

    async def close(self) -> None:
        """Let go of connections and memory."""
        ...
