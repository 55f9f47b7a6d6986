"""Runs."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.responses import Response

from perdure.api.call import B, Call, answer, included, page_query, stand_behind, when_busy
from perdure.api.planned_stores import fresh_store, plan_for_thread, refuse_unknown_stores
from perdure.api.resources import refuse_unknown_files, refuse_unknown_in_thread, refuse_unknown_resources
from perdure.api.sse import EventStream
from perdure.domain.lifecycle import ACTIVE
from perdure.ids import check_id, searchable
from perdure.store.attachments import PlannedStore
from perdure.store.bodies import read_run
from perdure.store.db import Operation
from perdure.store.run_requests import Birth, Made, submit_outputs
from perdure.store.run_requests import create_run as create_stored
from perdure.store.run_requests import create_thread_and_run as create_both
from perdure.store.run_requests import retry_run as retry_stored
from perdure.store.runs import get_run_body, request_cancel, update_run
from perdure.store.runs import list_runs as list_stored
from perdure.store.threads import get_thread_body
from perdure.wire.kinds import WhenBusy
from perdure.wire.messages import CreateMessage
from perdure.wire.page import Page, PageQuery
from perdure.wire.runs import CreateRun, CreateThreadAndRun, ModifyRun, RetryRun, Run, SubmitToolOutputs

POLL_HEADER = "x-stainless-poll-helper"
NO_HEADERS: Mapping[str, str] = {}


async def create_run(call: Call[CreateRun]) -> Response:
    """POST /threads/{thread_id}/runs, plain or streamed."""
    body = call.body
    body.assistant_id = searchable(check_id("assistant_id", body.assistant_id))
    await refuse_unknown_files(call, body.additional_messages)
    birth = _birth(call, call.ids["thread_id"], body.additional_messages, when_busy(call, body.x_when_busy))
    made = await call.context.database.run(create_stored, body, birth)
    _tell_of_files(call, birth)
    return _made(call, made, stream=bool(body.stream))


async def retry_run(call: Call[RetryRun]) -> Response:
    """POST /threads/{thread_id}/runs/{run_id}/retry, an extension: the same again, as another run."""
    birth = _birth(call, call.ids["thread_id"], None, when_busy(call, call.body.x_when_busy))
    made = await call.context.database.run(retry_stored, call.ids["run_id"], birth)
    return _made(call, made, stream=bool(call.body.stream))


def _made(call: Call[B], made: Made, *, stream: bool) -> Response:
    headers = stand_behind(call, made.place)
    return _begun(call, made.run, stream=stream, after=0, headers=headers)


async def create_thread_and_run(call: Call[CreateThreadAndRun]) -> Response:
    """POST /threads/runs, plain or streamed."""
    body = call.body
    body.assistant_id = searchable(check_id("assistant_id", body.assistant_id))
    await refuse_unknown_in_thread(call, body.thread)
    await refuse_unknown_resources(call, body.tool_resources)
    await refuse_unknown_stores(call, body.tool_resources)
    planned = await plan_for_thread(call, body.thread.tool_resources if body.thread else None)
    birth = _birth(call, call.new_id("thread"), body.thread.messages if body.thread else None, planned=planned)
    run = await call.context.database.run(create_both, body, birth)
    _tell_of_files(call, birth)
    return _begun(call, run, stream=bool(body.stream), after=0)


def _birth(
    call: Call[B],
    thread_id: str,
    messages: list[CreateMessage] | None,
    busy: WhenBusy = "reject",
    planned: PlannedStore | None = None,
) -> Birth:
    attached = any(message.attachments for message in messages or [])
    return Birth(
        project_id=call.project_id,
        run_id=call.new_id("run"),
        thread_id=thread_id,
        message_ids=[call.new_id("msg") for _ in messages or []],
        now=call.now,
        expiry_seconds=call.context.settings.run_expiry_seconds,
        when_busy=busy,
        include=included(call),
        fresh=fresh_store(call) if attached else None,
        planned=planned,
    )


def _tell_of_files(call: Call[B], birth: Birth) -> None:
    """Have files read that came with a run."""
    if birth.fresh is not None or birth.planned is not None:
        call.context.dispatch.tell_of_files()


def _begun(call: Call[B], run: Run, *, stream: bool, after: int, headers: Mapping[str, str] = NO_HEADERS) -> Response:
    context = call.context
    context.dispatch.tell(run.id)
    if not stream:
        return _answer_run(call, run, headers)
    response = EventStream(context.feeds, run.id, after, context.settings.keepalive_seconds)
    response.headers.update(headers)
    return response


def _answer_run(call: Call[B], run: Run | str, headers: Mapping[str, str] = NO_HEADERS) -> Response:
    return answer(run, {"openai-poll-after-ms": str(call.context.settings.poll_after_ms), **headers})


async def list_runs(call: Call[None]) -> Response:
    """GET /threads/{thread_id}/runs."""
    page = await call.context.database.read(
        _list_of_project, call.ids["thread_id"], call.project_id, page_query(call.query)
    )
    return answer(page)


def _list_of_project(thread_id: str, project_id: str, query: PageQuery) -> Operation[Page]:
    yield from get_thread_body(thread_id, project_id)
    return (yield from list_stored(thread_id, query))


async def get_run(call: Call[None]) -> Response:
    """GET /threads/{thread_id}/runs/{run_id}.

    A poll by an official polling helper is held until the run moves on, `poll_hold_seconds` at most: the helper asks
    again at once or ends, instead of sleeping past the end.
    """
    context, path = call.context, _path(call)
    body = await context.database.read(_get_of_project, *path)
    if context.settings.poll_hold_seconds > 0 and call.headers.get(POLL_HEADER) == "true" and _is_busy(body):
        body = await _held(call, path)
    return _answer_run(call, body)


def _get_of_project(run_id: str, thread_id: str, project_id: str) -> Operation[str]:
    yield from get_thread_body(thread_id, project_id)
    return (yield from get_run_body(run_id, thread_id, project_id))


async def _held(call: Call[None], path: tuple[str, str, str]) -> str:
    context = call.context
    feed = context.feeds.attach(path[0])
    try:
        until = context.clock.now() + context.settings.poll_hold_seconds
        while True:
            seen = feed.moves.version
            body = await context.database.read(_get_of_project, *path)
            left = until - context.clock.now()
            if not _is_busy(body) or left <= 0:
                return body
            await feed.moves.wait(seen, left)
    finally:
        context.feeds.detach(path[0])


def _is_busy(body: str) -> bool:
    status = read_run(body).status
    return status in ACTIVE and status != "requires_action"


async def modify_run(call: Call[ModifyRun]) -> Response:
    """POST /threads/{thread_id}/runs/{run_id}."""
    return _answer_run(call, await call.context.database.run(_update_of_project, *_path(call), call.body))


def _update_of_project(run_id: str, thread_id: str, project_id: str, body: ModifyRun) -> Operation[Run]:
    yield from get_thread_body(thread_id, project_id)
    return (yield from update_run(run_id, thread_id, project_id, body.metadata))


async def cancel_run(call: Call[None]) -> Response:
    """POST /threads/{thread_id}/runs/{run_id}/cancel; answers `cancelling`."""
    run = await call.context.database.run(_cancel_of_project, *_path(call), call.now)
    call.context.dispatch.interrupt(run.id)
    return _answer_run(call, run)


def _cancel_of_project(run_id: str, thread_id: str, project_id: str, now: int) -> Operation[Run]:
    yield from get_thread_body(thread_id, project_id)
    return (yield from request_cancel(run_id, thread_id, project_id, now))


async def submit_tool_ouputs_to_run(call: Call[SubmitToolOutputs]) -> Response:
    """POST .../submit_tool_outputs, plain or streamed. The spec's operationId has this spelling."""
    run, after = await call.context.database.run(_submit_of_project, *_path(call), call.body, call.now)
    call.context.feeds.wake(run.id)
    return _begun(call, run, stream=bool(call.body.stream), after=after)


def _submit_of_project(
    run_id: str, thread_id: str, project_id: str, body: SubmitToolOutputs, now: int
) -> Operation[tuple[Run, int]]:
    yield from get_thread_body(thread_id, project_id)
    return (yield from submit_outputs(run_id, thread_id, project_id, body.tool_outputs, now))


def _path(call: Call[ModifyRun] | Call[SubmitToolOutputs] | Call[None]) -> tuple[str, str, str]:
    return call.ids["run_id"], call.ids["thread_id"], call.project_id
