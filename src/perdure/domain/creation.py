"""New objects out of request bodies, and changed objects out of modify bodies.

Defaults are filled in as the hosted server did. `given` names the parameters that somebody really set, which the object
no longer shows once a default stands there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from perdure.errors import InvalidRequest
from perdure.wire.assistants import Assistant, CreateAssistant, ModifyAssistant
from perdure.wire.kinds import Metadata
from perdure.wire.messages import CreateMessage, Message, ModifyMessage, NewContent, content_parts
from perdure.wire.runs import Extra, Run, RunOptions, TruncationStrategy
from perdure.wire.threads import CreateThread, ModifyThread, Thread
from perdure.wire.tools import (
    ChooseCodeInterpreter,
    ChooseFunction,
    CodeInterpreterTool,
    FileSearchTool,
    FunctionTool,
    ToolResources,
    normalised_resources,
    normalised_tools,
)

T = TypeVar("T")
SAMPLING = ("temperature", "top_p")


def new_assistant(body: CreateAssistant, assistant_id: str, now: int) -> tuple[Assistant, Extra]:
    """Return the assistant and what was set of its sampling parameters."""
    tools = normalised_tools(body.tools)
    assistant = Assistant(
        id=assistant_id,
        created_at=now,
        name=body.name,
        description=body.description,
        model=body.model,
        instructions=body.instructions,
        tools=tools,
        top_p=1.0 if body.top_p is None else body.top_p,
        temperature=1.0 if body.temperature is None else body.temperature,
        reasoning_effort=body.reasoning_effort,
        tool_resources=normalised_resources(body.tool_resources, tools),
        metadata=body.metadata or {},
        response_format=body.response_format or "auto",
    )
    return assistant, Extra(given=[name for name in SAMPLING if getattr(body, name) is not None])


def changed_assistant(assistant: Assistant, extra: Extra, body: ModifyAssistant) -> tuple[Assistant, Extra]:
    """Return the assistant after a modify: absent keeps, null sets back to the default."""
    tools = _either(body.tools, assistant.tools, normalised_tools)
    resources = assistant.tool_resources if body.tool_resources is UNSET else body.tool_resources
    if body.tool_resources is UNSET and not _uses_files(assistant.tool_resources):
        resources = msgspec.structs.replace(assistant.tool_resources, code_interpreter=None)  # back with its tool
    changed = msgspec.structs.replace(
        assistant,
        name=_kept(body.name, assistant.name),
        description=_kept(body.description, assistant.description),
        model=_kept(body.model, assistant.model),
        instructions=_kept(body.instructions, assistant.instructions),
        tools=tools,
        top_p=_either(body.top_p, assistant.top_p, _one_if_null),
        temperature=_either(body.temperature, assistant.temperature, _one_if_null),
        reasoning_effort=_kept(body.reasoning_effort, assistant.reasoning_effort),
        tool_resources=normalised_resources(resources, tools),
        metadata=_metadata(body.metadata, assistant.metadata),
        response_format=_kept(body.response_format, assistant.response_format) or "auto",
    )
    given = set(extra.given)
    for name in SAMPLING:
        value = getattr(body, name)
        if value is not UNSET:
            given = given - {name} if value is None else given | {name}
    return changed, Extra(given=sorted(given))


def new_thread(body: CreateThread, thread_id: str, now: int) -> Thread:
    """Return the thread; its messages are made one by one with `new_message`."""
    return Thread(
        id=thread_id,
        created_at=now,
        metadata=body.metadata or {},
        tool_resources=normalised_resources(body.tool_resources, []),
    )


def changed_thread(thread: Thread, body: ModifyThread) -> Thread:
    """Return the thread after a modify."""
    resources = thread.tool_resources if body.tool_resources is UNSET else body.tool_resources
    return msgspec.structs.replace(
        thread,
        metadata=_metadata(body.metadata, thread.metadata),
        tool_resources=normalised_resources(resources, []),
    )


def new_message(body: CreateMessage, thread_id: str, message_id: str, now: int, path: str = "") -> Message:
    """Return a message that a client wrote; `path` is where its body stands in the request. Raises InvalidRequest."""
    _refuse_empty(body.content, f"{path}.content" if path else "content")
    return Message(
        id=message_id,
        created_at=now,
        assistant_id=None,
        thread_id=thread_id,
        run_id=None,
        status="completed",
        incomplete_details=None,
        incomplete_at=None,
        completed_at=now,
        role=body.role,
        content=content_parts(body.content),
        attachments=body.attachments or [],
        metadata=body.metadata or {},
    )


def _refuse_empty(content: NewContent, param: str) -> None:
    if not content:
        raise InvalidRequest("Message content must be non-empty.", param=param)


def changed_message(message: Message, body: ModifyMessage) -> Message:
    """Return the message after a modify. Raises InvalidRequest."""
    changed = msgspec.structs.replace(message, metadata=_metadata(body.metadata, message.metadata))
    if body.x_content is not None:
        _refuse_empty(body.x_content, "x_content")
        changed.content = content_parts(body.x_content)
    return changed


def copied_message(message: Message, thread_id: str, message_id: str) -> Message:
    """Return a message as it stands in a fork: no run of that thread has written it."""
    return msgspec.structs.replace(message, id=message_id, thread_id=thread_id, run_id=None)


def run_again(run: Run, extra: Extra, *, run_id: str, now: int, expiry_seconds: int) -> tuple[Run, Extra]:
    """Return a queued run with all that an ended one was made with. What that one wrote is not shown to it."""
    again = msgspec.structs.replace(
        run,
        id=run_id,
        created_at=now,
        status="queued",
        started_at=None,
        expires_at=now + expiry_seconds,
        cancelled_at=None,
        failed_at=None,
        completed_at=None,
        required_action=None,
        last_error=None,
        incomplete_details=None,
        usage=None,
    )
    return again, Extra(given=extra.given, instead_of=[*extra.instead_of, run.id], include=extra.include)


def changed_run(run: Run, metadata: Metadata | None | UnsetType) -> Run:
    """Return the run after a modify."""
    return msgspec.structs.replace(run, metadata=_metadata(metadata, run.metadata))


def new_run(
    options: RunOptions,
    assistant: Assistant,
    extra: Extra,
    *,
    run_id: str,
    thread_id: str,
    now: int,
    expiry_seconds: int,
    additional_instructions: str | None = None,
    tool_resources: ToolResources | None = None,
) -> tuple[Run, Extra]:
    """Return a queued run: a snapshot of the assistant with the run's own values over it. Raises InvalidRequest."""
    instructions = assistant.instructions if options.instructions is None else options.instructions
    if additional_instructions:
        instructions = f"{instructions}\n\n{additional_instructions}" if instructions else additional_instructions
    tools = assistant.tools if options.tools is None else normalised_tools(options.tools)
    resources = assistant.tool_resources if tool_resources is None else tool_resources
    run = Run(
        id=run_id,
        created_at=now,
        assistant_id=assistant.id,
        thread_id=thread_id,
        status="queued",
        expires_at=now + expiry_seconds,
        model=options.model or assistant.model,
        instructions=instructions or "",
        tools=tools,
        tool_resources=normalised_resources(resources, tools),
        metadata=options.metadata or {},
        temperature=assistant.temperature if options.temperature is None else options.temperature,
        top_p=assistant.top_p if options.top_p is None else options.top_p,
        reasoning_effort=options.reasoning_effort or assistant.reasoning_effort,
        max_completion_tokens=options.max_completion_tokens,
        max_prompt_tokens=options.max_prompt_tokens,
        truncation_strategy=options.truncation_strategy or TruncationStrategy(),
        response_format=options.response_format or assistant.response_format,
        tool_choice=options.tool_choice or "auto",
        parallel_tool_calls=options.parallel_tool_calls is not False,
    )
    _refuse_unknown_choice(run)
    names = (*SAMPLING, "parallel_tool_calls")
    given = {*extra.given, *(name for name in names if getattr(options, name) is not None)}
    return run, Extra(given=sorted(given))


def _refuse_unknown_choice(run: Run) -> None:
    """Raise InvalidRequest if the run must begin with a tool that it does not have."""
    choice = run.tool_choice
    if isinstance(choice, str):
        return
    if isinstance(choice, ChooseFunction):
        name = choice.function.name
        known = any(isinstance(tool, FunctionTool) and tool.function.name == name for tool in run.tools)
    else:
        wanted = CodeInterpreterTool if isinstance(choice, ChooseCodeInterpreter) else FileSearchTool
        name = "code_interpreter" if wanted is CodeInterpreterTool else "file_search"
        known = any(isinstance(tool, wanted) for tool in run.tools)
    if not known:
        raise InvalidRequest(
            f"Invalid value for 'tool_choice': '{name}' is not among the tools of the run.",
            param="tool_choice",
            code="invalid_value",
        )


def _kept(value: T | UnsetType, old: T) -> T:
    return old if isinstance(value, UnsetType) else value


def _either(value: T | None | UnsetType, old: T, from_null: Callable[[T | None], T]) -> T:
    return old if isinstance(value, UnsetType) else from_null(value)


def _one_if_null(value: float | None) -> float:
    return 1.0 if value is None else value


def _uses_files(resources: ToolResources) -> bool:
    return resources.code_interpreter is not None and bool(resources.code_interpreter.file_ids)


def _metadata(value: Metadata | None | UnsetType, old: Metadata) -> Metadata:
    return old if isinstance(value, UnsetType) else value or {}
