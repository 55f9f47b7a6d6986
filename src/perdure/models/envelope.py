"""Tool calls for models that can not call tools: a JSON envelope that a grammar enforces, whatever the model.

Rules. Pure: no I/O, and nothing here knows llama.cpp. The model is shown plain system, user and assistant turns with
function signatures in the system message, and can only write `{"tool_calls": [...]}` or `{"reply": "..."}`. Every text
and list in it is bounded, because a small model that may go on does go on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from perdure.domain.json_text import StringReader
from perdure.models.base import ChatMessage, ModelRequest

CALLS_AT_ONCE = 4
"""Most calls in one answer, where the run allows several."""

ROUNDS_IN_A_ROW = 8
"""After that many rounds of calls without a reply, `auto` leaves only the reply: small models never stop."""

TEXT_CHARACTERS = 1200
"""Longest text in a call's arguments and longest reply. llama.cpp's grammars repeat at most 2,000 times."""

LIST_ITEMS = 8
"""Longest list in a call's arguments."""

Schema = dict[str, Any]

_DATA = {"enum", "const", "default", "examples"}
_BOUNDED_BY = {"enum", "const", "pattern", "format", "maxLength"}
_LOCAL_REFERENCE = re.compile(r"#/(?:\$defs|definitions)/([^/]+)")


class Call(msgspec.Struct, frozen=True):
    """One call that the model asked for; `arguments` is JSON text."""

    name: str
    arguments: str


class Envelope(msgspec.Struct, frozen=True):
    """What is sent in place of tools: words for the system message and the schema of the answer."""

    instructions: str
    schema: Schema


def envelope_of(request: ModelRequest) -> Envelope | None:
    """Return the envelope for a request's tools and tool_choice; None where the model may not call anything."""
    functions = [tool["function"] for tool in request.tools or [] if tool.get("type") == "function"]
    choice = request.tool_choice or "auto"
    if not functions or choice == "none":
        return None
    calls_at_once = 1 if request.parallel_tool_calls is False else CALLS_AT_ONCE
    if isinstance(choice, dict):
        wanted = choice.get("function", {}).get("name")
        functions = [function for function in functions if function["name"] == wanted] or functions
        calls_at_once = 1
    may_reply = choice == "auto"
    may_call = not (may_reply and _rounds(request.messages) >= ROUNDS_IN_A_ROW)
    return Envelope(
        _instructions(functions, may_call, may_reply), _schema(functions, calls_at_once, may_call, may_reply)
    )


def plain_messages(messages: list[ChatMessage], envelope: Envelope | None) -> list[ChatMessage]:
    """Render a request's messages as turns that every chat template takes.

    One system message stands first; user and assistant alternate. Calls become the assistant's envelope text, their
    results a user turn.
    """
    names = {call["id"]: call["function"]["name"] for message in messages for call in message.get("tool_calls") or []}
    system = [_text(message.get("content")) for message in messages if message["role"] in {"system", "developer"}]
    if envelope is not None:
        system.append(envelope.instructions)
    turns: list[ChatMessage] = []
    for message in messages:
        if message["role"] in {"system", "developer"}:
            continue
        role, text = _turn(message, names)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += f"\n\n{text}"
        else:
            turns.append({"role": role, "content": text})
    first = [{"role": "system", "content": "\n\n".join(part for part in system if part)}] if any(system) else []
    return first + turns


class EnvelopeReader:
    """Reads an envelope while it is written: a reply's characters as they come, calls at the end."""

    _REPLY = re.compile(r'\s*\{\s*"reply"\s*:\s*"')

    def __init__(self) -> None:
        self._written = ""
        self._reply: StringReader | None = None

    def feed(self, text: str) -> str:
        """Take what the model wrote next; return the characters of the reply that it completes."""
        self._written += text
        if self._reply is not None:
            return self._reply.feed(text)
        begin = self._REPLY.match(self._written)
        if begin is None:
            return ""
        self._reply = StringReader()
        return self._reply.feed(self._written[begin.end() :])

    def calls(self) -> list[Call]:
        """Return the calls once all is written; none for a reply.

        Of an envelope that was cut off, the calls that are whole. Raises ValueError when not even one is.
        """
        if self._reply is not None:
            return []
        asked: list[dict[str, Any]] = []
        decoder, at = json.JSONDecoder(), self._written.find("[") + 1
        try:
            while "{" in self._written[at:]:
                one, at = decoder.raw_decode(self._written, self._written.index("{", at))
                asked.append(one)
        except ValueError:
            if not asked:
                raise
        if not asked:
            raise ValueError("no call was begun")
        calls = [Call(one["name"], json.dumps(one["arguments"], ensure_ascii=False)) for one in asked]
        return list(dict.fromkeys(calls))  # small models stutter: the same call twice is meant once


def _schema(functions: list[dict[str, Any]], calls_at_once: int, may_call: bool, may_reply: bool) -> Schema:
    definitions: Schema = {}
    calls = [_call_schema(number, function, definitions) for number, function in enumerate(functions)]
    branches = []
    if may_call:
        items = calls[0] if len(calls) == 1 else {"anyOf": calls}
        branches.append(
            _object({"tool_calls": {"type": "array", "items": items, "minItems": 1, "maxItems": calls_at_once}})
        )
    if may_reply:
        branches.append(_object({"reply": {"type": "string", "minLength": 1, "maxLength": TEXT_CHARACTERS}}))
    schema = branches[0] if len(branches) == 1 else {"oneOf": branches}
    return {**schema, "$defs": definitions} if definitions else schema


def _object(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _call_schema(number: int, function: dict[str, Any], definitions: Schema) -> Schema:
    """One function's branch. Its own definitions move to the root, because references are looked up from there."""
    parameters = dict(function.get("parameters") or {})
    for group in ("$defs", "definitions"):
        for name, definition in parameters.pop(group, {}).items():
            definitions[f"{number}.{name}"] = _bounded(definition, number)
    arguments = _bounded({"type": "object", "properties": {}, **parameters}, number)
    return _object({"name": {"const": function["name"]}, "arguments": arguments})


def _bounded(schema: Any, number: int) -> Any:
    """Return a copy in which texts and lists have an end, and references name the moved definitions."""
    if isinstance(schema, list):
        return [_bounded(item, number) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: value if key in _DATA else _bounded(value, number) for key, value in schema.items()}
    if isinstance(properties := schema.get("properties"), dict):  # its keys are names, whatever they look like
        copy["properties"] = {name: _bounded(kind, number) for name, kind in properties.items()}
    if isinstance(reference := copy.get("$ref"), str):
        copy["$ref"] = _LOCAL_REFERENCE.sub(rf"#/$defs/{number}.\1", reference)
    if copy.get("type") == "string" and not _BOUNDED_BY & copy.keys():
        copy["maxLength"] = TEXT_CHARACTERS
    if copy.get("type") == "array":
        copy.setdefault("maxItems", max(LIST_ITEMS, copy.get("minItems", 0)))
    return copy


def _instructions(functions: list[dict[str, Any]], may_call: bool, may_reply: bool) -> str:
    lines = []
    if may_call:
        lines.append("You can call these functions:")
        lines.extend(line for function in functions for line in _signature(function))
        lines.append('To call functions, answer {"tool_calls": [{"name": NAME, "arguments": {...}}]}.')
    if may_reply:
        lines.append('To answer in words, answer {"reply": TEXT}.')
    return "\n".join(lines)


def _signature(function: dict[str, Any]) -> Iterator[str]:
    """`- name(place: string, unit?: "c" | "f"): what it does`, and a line for each described parameter."""
    parameters = function.get("parameters") or {}
    properties: Schema = parameters.get("properties") or {}
    required = set(parameters.get("required") or [])
    inside = ", ".join(f"{name}{'' if name in required else '?'}: {_type(kind)}" for name, kind in properties.items())
    about = function.get("description")
    yield f"- {function['name']}({inside})" + (f": {about}" if about else "")
    for name, kind in properties.items():
        if isinstance(kind, dict) and kind.get("description"):
            yield f"  {name}: {kind['description']}"


def _type(schema: Any) -> str:
    if not isinstance(schema, dict):
        return "any"
    if "enum" in schema:
        return " | ".join(json.dumps(value, ensure_ascii=False) for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items'))}"
    return " | ".join(kind) if isinstance(kind, list) else str(kind)


def _rounds(messages: list[ChatMessage]) -> int:
    """Count the rounds of calls since the user's last words or the assistant's last reply."""
    rounds = 0
    for message in reversed(messages):
        if message.get("tool_calls"):
            rounds += 1
        elif message["role"] != "tool":
            break
    return rounds


def _turn(message: ChatMessage, names: dict[str, str]) -> tuple[str, str]:
    text = _text(message.get("content"))
    if message["role"] == "tool":
        return "user", f"Result of {names.get(message.get('tool_call_id', ''), 'the function')}: {text}"
    if calls := message.get("tool_calls"):
        written = ", ".join(
            f'{{"name": {json.dumps(call["function"]["name"])}, "arguments": {call["function"]["arguments"] or "{}"}}}'
            for call in calls
        )
        text = f"{text}\n" * bool(text) + f'{{"tool_calls": [{written}]}}'
    return message["role"], text


def _text(content: Any) -> str:
    """Return a message's text; of its other parts only that they were there."""
    if content is None or isinstance(content, str):
        return content or ""
    parts = [
        part["text"] if part.get("type") == "text" else f"({part.get('type')}: can not be shown)" for part in content
    ]
    return "\n".join(parts)
