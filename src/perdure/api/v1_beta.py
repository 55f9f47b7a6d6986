"""Clients of the v1 era (`OpenAI-Beta: assistants=v1`), as far as v1 maps onto v2.

v1 had the tool `retrieval` and `file_ids`, and no tool resources, no attachments. Programs that can not be told not to
send that header are served; what does not map gets the recorded refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from perdure.errors import InvalidRequest

V2_ONLY = {
    "assistant": ("tool_resources", "temperature", "top_p", "response_format", "reasoning_effort"),
    "thread": ("tool_resources",),
    "thread.message": ("attachments",),
    "thread.run": ("tool_resources",),
}
HAD_FILES = ("assistant", "thread.message", "thread.run")


def betas_of(headers: Mapping[str, str]) -> set[str]:
    """Return the betas that the call asks for; the header may hold several."""
    return {beta.strip() for beta in headers.get("openai-beta", "").split(",") if beta.strip()}


def no_beta_header() -> InvalidRequest:
    """Return the hosted server's refusal of a call without the header."""
    return InvalidRequest(
        "You must provide the 'OpenAI-Beta' header to access the Assistants API. Please try again by setting the "
        "header 'OpenAI-Beta: assistants=v2'.",
        code="invalid_beta",
    )


def v1_is_over() -> InvalidRequest:
    """Return the hosted server's refusal of v1, here for what has no counterpart in v2."""
    return InvalidRequest(
        "The v1 Assistants API has been deprecated. Please try again by setting the header 'OpenAI-Beta: "
        "assistants=v2'. See the migration guide for more information: "
        "https://platform.openai.com/docs/assistants/migration.",
        code="invalid_beta",
    )


def from_v1(body: bytes) -> bytes:
    """Return a v1 body in v2's words. Raises InvalidRequest if it names files; bad JSON is left to the decoder."""
    try:
        value = msgspec.json.decode(body or b"{}")
        _into_v2(value)
        return msgspec.json.encode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body


def _into_v2(value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _into_v2(item)
        return
    if not isinstance(value, dict):
        return
    if value.get("file_ids"):
        raise v1_is_over()
    value.pop("file_ids", None)
    tools = value.get("tools")
    for tool in tools if isinstance(tools, list) else []:
        if isinstance(tool, dict) and tool.get("type") == "retrieval":
            tool["type"] = "file_search"
    for name in ("messages", "additional_messages", "thread"):
        _into_v2(value.get(name))


def to_v1(body: bytes) -> bytes:
    """Return a v2 answer in v1's words."""
    value = msgspec.json.decode(body)
    for one in value.get("data", [value]) if isinstance(value, dict) else []:
        _out_of_v2(one)
    return msgspec.json.encode(value)


def _out_of_v2(value: dict[str, Any]) -> None:
    kind = value.get("object")
    for name in V2_ONLY.get(str(kind), ()):
        value.pop(name, None)
    if kind in HAD_FILES:
        value["file_ids"] = []
    if "tools" in value:
        value["tools"] = [
            {"type": "retrieval"} if tool.get("type") == "file_search" else tool for tool in value["tools"]
        ]
