"""The route table: every operation of the API with its path, its operationId, what it takes and who answers.

The API is mounted at `/v1`, at `/openai/v1` and at `/openai` (Azure's shape); longer prefixes come first.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from starlette.routing import BaseRoute, Mount, Route, Router

from perdure.api import assistants, messages, models, runs, steps, threads
from perdure.api.call import Context, Handler
from perdure.api.door import Endpoint, unknown_path
from perdure.wire.assistants import CreateAssistant, ModifyAssistant
from perdure.wire.messages import CreateMessage, ModifyMessage
from perdure.wire.runs import CreateRun, CreateThreadAndRun, ModifyRun, SubmitToolOutputs
from perdure.wire.threads import CreateThread, ModifyThread

MOUNTS = ("/v1", "/openai/v1", "/openai")


class Operation(msgspec.Struct, frozen=True):
    """One operation of the API; `body` is None where no body is read."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    operation_id: str
    handler: Handler
    body: type | None = None


OPERATIONS: tuple[Operation, ...] = (
    Operation("POST", "/threads/{thread_id}/messages", "createMessage", messages.create_message, CreateMessage),
    Operation("GET", "/threads/{thread_id}/messages", "listMessages", messages.list_messages),
    Operation("GET", "/threads/{thread_id}/runs/{run_id}", "getRun", runs.get_run),
    Operation("POST", "/threads/{thread_id}/runs/{run_id}", "modifyRun", runs.modify_run, ModifyRun),
    Operation("POST", "/threads/{thread_id}/runs", "createRun", runs.create_run, CreateRun),
    Operation("GET", "/threads/{thread_id}/runs", "listRuns", runs.list_runs),
    Operation("POST", "/threads/runs", "createThreadAndRun", runs.create_thread_and_run, CreateThreadAndRun),
    Operation("POST", "/threads", "createThread", threads.create_thread, CreateThread),
    Operation("GET", "/threads/{thread_id}", "getThread", threads.get_thread),
    Operation("POST", "/threads/{thread_id}", "modifyThread", threads.modify_thread, ModifyThread),
    Operation("DELETE", "/threads/{thread_id}", "deleteThread", threads.delete_thread),
    Operation("GET", "/threads/{thread_id}/messages/{message_id}", "getMessage", messages.get_message),
    Operation(
        "POST",
        "/threads/{thread_id}/messages/{message_id}",
        "modifyMessage",
        messages.modify_message,
        ModifyMessage,
    ),
    Operation("DELETE", "/threads/{thread_id}/messages/{message_id}", "deleteMessage", messages.delete_message),
    Operation("POST", "/threads/{thread_id}/runs/{run_id}/cancel", "cancelRun", runs.cancel_run),
    Operation(
        "POST",
        "/threads/{thread_id}/runs/{run_id}/submit_tool_outputs",
        "submitToolOuputsToRun",
        runs.submit_tool_ouputs_to_run,
        SubmitToolOutputs,
    ),
    Operation("GET", "/threads/{thread_id}/runs/{run_id}/steps", "listRunSteps", steps.list_run_steps),
    Operation("GET", "/threads/{thread_id}/runs/{run_id}/steps/{step_id}", "getRunStep", steps.get_run_step),
    Operation("POST", "/assistants", "createAssistant", assistants.create_assistant, CreateAssistant),
    Operation("GET", "/assistants", "listAssistants", assistants.list_assistants),
    Operation("GET", "/assistants/{assistant_id}", "getAssistant", assistants.get_assistant),
    Operation("POST", "/assistants/{assistant_id}", "modifyAssistant", assistants.modify_assistant, ModifyAssistant),
    Operation("DELETE", "/assistants/{assistant_id}", "deleteAssistant", assistants.delete_assistant),
    Operation("GET", "/models", "listModels", models.list_models),
    Operation("GET", "/models/{model:path}", "retrieveModel", models.retrieve_model),
    Operation("DELETE", "/models/{model:path}", "deleteModel", models.delete_model),
)


def routes(context: Context) -> Router:
    """Return the router with the API at all its mounts."""
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    endpoints: list[BaseRoute] = [
        Route(path, Endpoint(context, {method: (one.handler, one.body) for method, one in methods.items()}))
        for path, methods in sorted(by_path.items(), key=lambda item: _rank(item[0]))
    ]
    api = Router(endpoints, redirect_slashes=False, default=unknown_path)
    mounts = [Mount(prefix, app=api) for prefix in sorted(MOUNTS, key=len, reverse=True)]
    return Router([Route("/health", Endpoint(context, {}, health=True)), *mounts], default=unknown_path)


def _rank(path: str) -> int:
    """`/threads/runs` must be tried before `/threads/{thread_id}`; all else keeps its order in the table."""
    return 0 if path == "/threads/runs" else 1
