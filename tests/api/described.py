"""Documents that describe the API, the server's own and OpenAI's, and answers held against them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema_rs

HOSTED = Path(__file__).resolve().parents[3] / "shared" / "assistants-openapi.json"
"""OpenAI's specification, which is not ours to ship."""

Json = dict[str, Any]


class Seen(NamedTuple):
    """One answer as it went over the wire; `path` has no mount."""

    method: str
    path: str
    status: int
    content_type: str
    text: str


class Event(NamedTuple):
    name: str
    data: str
    number: int | None


class Fault(NamedTuple):
    """Where an answer is not as described: the schema, the path in the answer, and why."""

    where: str
    instance: str
    message: str


def events_of(text: str) -> Iterator[Event]:
    """Read a stream by its frames, strictly."""
    for block in text.removesuffix("\n\n").split("\n\n"):
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        fields = dict(line.split(": ", 1) for line in lines)
        assert list(fields) in (["event", "data", "id"], ["event", "data"]), block
        yield Event(fields["event"], fields["data"], int(fields["id"]) if "id" in fields else None)


class Described:
    """A document and its validators."""

    def __init__(self, document: Json, *, exact: bool) -> None:
        """`exact`: an answer with a key that the document lacks is a fault."""
        self.document = document
        self._validators: dict[str, jsonschema_rs.Validator] = {}
        if exact:
            for schema in document["components"]["schemas"].values():
                schema.setdefault("additionalProperties", False)

    def operation(self, method: str, path: str) -> tuple[str, Json]:
        """Return the operationId that a path belongs to, and its description. Literal paths come first."""
        for template in sorted(self.document["paths"], key=lambda one: one.count("{")):
            pattern = re.sub(r"\\{model\\}", ".+", re.escape(template))
            pattern = re.sub(r"\\{\w+\\}", "[^/]+", pattern)
            if re.fullmatch(pattern, path):
                found: Json = self.document["paths"][template][method.lower()]
                return found["operationId"], found
        raise AssertionError(f"{method} {path} is not described")

    def faults(self, seen: Seen) -> list[Fault]:
        """Say where an answer differs from its description."""
        name, operation = self.operation(seen.method, seen.path)
        answer = operation["responses"].get(str(seen.status))
        if answer is None:
            return [Fault(name, "", f"the status {seen.status} is not described")]
        if "$ref" in answer:
            answer = self.document["components"]["responses"][answer["$ref"].rpartition("/")[2]]
        kind = seen.content_type.partition(";")[0]
        if "*/*" in answer["content"]:
            return []
        if kind not in answer["content"]:
            return [Fault(name, "", f"{kind} is not described")]
        if kind == "text/event-stream":
            return [fault for event in events_of(seen.text) for fault in self._event(answer["content"][kind], event)]
        return list(self.check(f"{name} {seen.status}", answer["content"][kind]["schema"], json.loads(seen.text)))

    def _event(self, content: Json, event: Event) -> Iterator[Fault]:
        schema = content["x-events"].get(event.name)
        if schema is None:
            yield Fault(event.name, "", "the event is not described")
        else:
            yield from self.check(event.name, schema, event.data if event.name == "done" else json.loads(event.data))

    def check(self, name: str, schema: Json, value: Any) -> Iterator[Fault]:
        """Hold a value against a schema of the document."""
        if name not in self._validators:
            whole = {**schema, "components": self.document["components"]}
            self._validators[name] = jsonschema_rs.Draft202012Validator(whole)
        for error in self._validators[name].iter_errors(value):
            yield Fault(name, "/".join(map(str, error.instance_path)), error.message[:300])
