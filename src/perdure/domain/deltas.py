"""Deltas added up: what a message or a step of tool calls came to that was never finished. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from perdure.wire.events import MessageDelta, StepDelta
from perdure.wire.messages import ContentPart, ImageFile, ImageFilePart, RefusalPart, TextPart, TextValue
from perdure.wire.steps import StepCall

_DELTA_ONLY = {"index", "quote"}


def parts_of_deltas(deltas: Sequence[MessageDelta]) -> list[ContentPart]:
    """Return the content of a message whose deltas these are, in their order."""
    parts: dict[int, ContentPart] = {}
    for delta in deltas:
        for shown in delta.delta.content:
            parts[shown["index"]] = _added(parts.get(shown["index"]), shown)
    return [parts[index] for index in sorted(parts)]


def _added(part: ContentPart | None, shown: dict[str, Any]) -> ContentPart:
    if shown["type"] == "image_file":
        return ImageFilePart(image_file=ImageFile(file_id=shown["image_file"]["file_id"]))
    if shown["type"] == "refusal":
        before = part.refusal if isinstance(part, RefusalPart) else ""
        return RefusalPart(refusal=before + shown["refusal"])
    text = part.text if isinstance(part, TextPart) else TextValue(value="", annotations=[])
    annotations = [_plain(one) for one in shown["text"].get("annotations", [])]
    return TextPart(
        text=TextValue(value=text.value + shown["text"].get("value", ""), annotations=[*text.annotations, *annotations])
    )


def _plain(annotation: dict[str, Any]) -> dict[str, Any]:
    """Return an annotation as the message keeps it, without what only deltas carry."""
    kept = {name: value for name, value in annotation.items() if name not in _DELTA_ONLY}
    if "file_citation" in kept:
        kept["file_citation"] = {"file_id": kept["file_citation"]["file_id"]}
    return kept


def calls_of_deltas(deltas: Sequence[StepDelta]) -> list[StepCall]:
    """Return the tool calls of a step whose deltas these are, in their order."""
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        for shown in delta.delta.step_details["tool_calls"]:
            if shown["index"] == len(calls):
                calls.append(_begun(shown))
            else:
                _add_to_call(calls[shown["index"]], shown)
    return [msgspec.convert(call, StepCall) for call in calls]


def _begun(shown: dict[str, Any]) -> dict[str, Any]:
    kind = shown["type"]
    return {"id": shown["id"], "type": kind, kind: dict(shown[kind])}


def _add_to_call(call: dict[str, Any], shown: dict[str, Any]) -> None:
    kind = call["type"]
    if kind == "function":
        call[kind]["arguments"] += shown[kind]["arguments"]
    elif kind == "code_interpreter":
        call[kind]["input"] += shown[kind].get("input", "")
        outputs = call[kind]["outputs"] = [*call[kind]["outputs"]]
        for output in shown[kind].get("outputs", []):
            plain = {name: value for name, value in output.items() if name != "index"}
            if output["index"] < len(outputs):
                outputs[output["index"]]["logs"] += plain["logs"]
            else:
                outputs.append(plain)
