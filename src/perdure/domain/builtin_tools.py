"""The built-in tools as a model sees them: what it is offered, how it asks, and what it is told.

To a model they are functions like any other. Their names are those of the API, unless the run has a function of that
name: programs of before may have brought their own `file_search`. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from perdure.domain.citations import FIRST_SEARCH, marker
from perdure.wire.runs import Run
from perdure.wire.steps import (
    CodeInterpreterCall,
    FileSearchCall,
    FileSearchStepCall,
    ImageOutput,
    LogsOutput,
    RunStep,
    ToolCalls,
)
from perdure.wire.tools import CodeInterpreterTool, FileSearchTool, FunctionTool

ToolKind = Literal["function", "file_search", "code_interpreter"]
ChatTool = dict[str, Any]

MOST_NAMED = 40
"""How many files the code interpreter's description names."""
MOST_QUERIES = 5
MOST_QUERY_CHARACTERS = 2000

_SEARCH = (
    "Searches the files that belong to this conversation and returns the passages that fit best, each behind a marker "
    "such as 【4:0†name.pdf】. Use it before you answer anything that the files may tell. Give one to five queries in "
    "the words that the files would use. In your answer put the marker of each passage that you rely on, unchanged, "
    "right behind what you took from it."
)
_CODE = (
    "Runs Python in a sandbox without a network and returns what it printed, the value of the last expression and any "
    "traceback. Variables stay until the conversation has rested for a while. Files of the conversation stand in "
    "/mnt/data. Figures drawn with matplotlib are shown to the user. To hand out a file, write it to /mnt/data and "
    "link it in your answer as [name](sandbox:/mnt/data/name)."
)
_INTERRUPTED = (
    "The call was interrupted before it came to its end: what it did until then may have happened. Variables may be "
    "gone. Look before you do it again."
)


def tool_names(run: Run) -> dict[str, ToolKind]:
    """Return what each name that the model may call stands for."""
    names: dict[str, ToolKind] = {
        tool.function.name: "function" for tool in run.tools if isinstance(tool, FunctionTool)
    }
    for kind, wanted in (("file_search", FileSearchTool), ("code_interpreter", CodeInterpreterTool)):
        if any(isinstance(tool, wanted) for tool in run.tools):
            name = kind
            while name in names:
                name = f"builtin_{name}"
            names[name] = kind  # type: ignore[assignment]  # mypy widens the tuple's text
    return names


def name_of(run: Run, kind: ToolKind) -> str | None:
    """Return the name by which a built-in tool is offered; None if the run does not have it."""
    return next((name for name, one in tool_names(run).items() if one == kind), None)


def builtin_tools(run: Run, kinds: Sequence[ToolKind], files: Sequence[str] = ()) -> list[ChatTool]:
    """Return those of the run's built-in tools that are of these kinds, in the shape of chat completions.

    `files` are the names of what stands in /mnt/data.
    """
    shown = []
    for name, kind in tool_names(run).items():
        if kind in kinds and kind != "function":
            shown.append(_offer(name, kind, files))
    return shown


def _offer(name: str, kind: ToolKind, files: Sequence[str]) -> ChatTool:
    if kind == "file_search":
        query = {"type": "string", "maxLength": 500}
        field: dict[str, Any] = {"queries": {"type": "array", "items": query, "minItems": 1, "maxItems": MOST_QUERIES}}
    else:
        field = {"code": {"type": "string", "description": "Python source text."}}
    parameters = {"type": "object", "properties": field, "required": list(field), "additionalProperties": False}
    description = _SEARCH if kind == "file_search" else _CODE
    if kind == "code_interpreter" and files:
        shown = ", ".join(json.dumps(one, ensure_ascii=False) for one in files[:MOST_NAMED])
        description += f" Files of the user in /mnt/data: {shown}."
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def queries_of(arguments: str) -> list[str]:
    """Return what a call of file search asks for. Models stray: a lone `query`, and bare text, are taken too."""
    try:
        value = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, UnicodeError):
        value = arguments
    if isinstance(value, dict):
        value = next((value[key] for key in ("queries", "query", "q", "search_query") if key in value), [])
    found = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    texts = [one.strip()[:MOST_QUERY_CHARACTERS] for one in found if isinstance(one, str) and one.strip()]
    return list(dict.fromkeys(texts))[:MOST_QUERIES]


def searches_of(steps: Sequence[RunStep]) -> list[FileSearchStepCall]:
    """Return the searches that a run has made, oldest first. What broke off is made again and does not count."""
    return [
        call
        for step in steps
        if step.status == "completed" and isinstance(step.step_details, ToolCalls)
        for call in step.step_details.tool_calls
        if isinstance(call, FileSearchStepCall)
    ]


def search_numbers(steps: Sequence[RunStep]) -> dict[str, int]:
    """Return the number of each search of a run, by the id of its call."""
    return {call.id: FIRST_SEARCH + number for number, call in enumerate(searches_of(steps))}


def sources_of(steps: Sequence[RunStep]) -> dict[tuple[int, int], str]:
    """Return the file of each result of a run's searches, by what its marker names."""
    return {
        (FIRST_SEARCH + number, place): found.file_id
        for number, call in enumerate(searches_of(steps))
        for place, found in enumerate(call.file_search.results)
    }


def search_arguments(call: FileSearchCall) -> str:
    """Return the arguments of a search as the model is shown them again."""
    queries = [] if isinstance(call.x_queries, msgspec.UnsetType) else call.x_queries
    return msgspec.json.encode({"queries": queries}).decode()


def told_of_search(call: FileSearchCall, number: int) -> str:
    """Return what the model is told of a search: each passage behind its marker."""
    parts = [] if isinstance(call.x_words, msgspec.UnsetType) else [call.x_words]
    for place, found in enumerate(call.results):
        content = [] if isinstance(found.content, msgspec.UnsetType) else found.content
        page = "" if isinstance(found.x_page, msgspec.UnsetType) else f" (page {found.x_page})"
        text = "\n".join(one.text for one in content)
        parts.append(f"{marker(number, place, found.file_name)}{page}\n{text}")
    return "\n\n".join(parts) or "Nothing was found. Try other words."


def given_passages(call: FileSearchCall, number: int) -> str:
    """Return what goes into the instructions of a model that does not search by itself."""
    return (
        "Passages from the user's files, found for the last question. Answer from them where they help, and put the "
        "marker of each passage that you use, unchanged, behind what you took from it.\n\n"
        + told_of_search(call, number)
    )


def told_of_code(call: CodeInterpreterCall) -> str:
    """Return what the model is told of code that ran, or that broke off."""
    parts: list[str] = []
    for output in call.outputs:
        if isinstance(output, LogsOutput):
            parts.append(output.logs.rstrip("\n"))
        elif isinstance(output, ImageOutput):
            parts.append(f"[A figure was drawn and is shown to the user: {output.image.file_id}]")
    if not isinstance(call.x_words, msgspec.UnsetType) and call.x_words:
        parts.append(call.x_words)
    if call.x_state != "ended":
        parts.append(_INTERRUPTED)
    return "\n".join(part for part in parts if part) or "The code ran and printed nothing."
