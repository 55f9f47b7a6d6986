"""Kinds of values that several objects share, with their limits.

Owns: `Metadata`, names, instructions, token caps, `Usage`, and the bases `Body` (what comes in) and `Object` (what goes
out). Limits are those of the spec unless a comment says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MetadataKey = Annotated[str, Meta(max_length=64)]
MetadataValue = Annotated[str, Meta(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Meta(max_length=16)]

Name = Annotated[str, Meta(max_length=256)]
Description = Annotated[str, Meta(max_length=512)]
Instructions = Annotated[str, Meta(max_length=256_000)]
Text = Annotated[str, Meta(max_length=256_000)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(ge=0, le=1)]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ModelName = Annotated[str, Meta(min_length=1, max_length=256)]

WhenBusy = Literal["reject", "queue", "interrupt"]
"""What a message or run does on a thread that a run locks: be refused, wait its turn, or have that run cancelled."""

# The spec says 256 at least; recordings of 2024 show the hosted server taking 16.
TokenCap = Annotated[int, Meta(ge=1)]

JsonSchema = dict[str, Any]


class Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request body or a part of one: unknown fields are refused."""


class Object(msgspec.Struct, kw_only=True):
    """Something that goes out and is stored."""


class Deleted(Object, kw_only=True):
    """The answer to a delete."""

    id: str
    object: str
    deleted: bool = True


class PromptTokenDetails(Object, kw_only=True):
    """Details of a prompt's tokens."""

    cached_tokens: int = 0


class CompletionTokensDetails(Object, kw_only=True):
    """Details of a completion's tokens."""

    reasoning_tokens: int = 0


class Usage(Object, kw_only=True):
    """Tokens of one or more model calls. `prompt_token_details` is the hosted server's spelling, singular."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_token_details: PromptTokenDetails
    completion_tokens_details: CompletionTokensDetails


class LastError(Object, kw_only=True):
    """Why a run or a step failed."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str
