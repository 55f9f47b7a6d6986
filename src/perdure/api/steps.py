"""Run steps. What file search found is text only where `include[]` asks for it."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from perdure.api.call import Call, answer, included, page_query
from perdure.store.bodies import encode, read_step
from perdure.store.db import Operation
from perdure.store.runs import get_run_body
from perdure.store.steps import get_step, list_steps
from perdure.store.threads import get_thread_body
from perdure.wire.page import Page, PageQuery
from perdure.wire.steps import FOUND_TEXT, shown_step

HIDDEN = (b'"type":"file_search"', b'"type":"code_interpreter"')
"""Only calls of these kinds may have something that is not shown."""


async def list_run_steps(call: Call[None]) -> Response:
    """GET /threads/{thread_id}/runs/{run_id}/steps."""
    page = await call.context.database.read(
        _list_of_project, call.ids["run_id"], call.ids["thread_id"], call.project_id, page_query(call.query)
    )
    if not _with_text(call):
        page = msgspec.structs.replace(page, data=[_without_text(body) for body in page.data])
    return answer(page)


def _with_text(call: Call[None]) -> bool:
    return FOUND_TEXT in included(call)


def _without_text(body: msgspec.Raw) -> msgspec.Raw:
    """Return a step as it goes out; most have nothing to hide and are not even decoded."""
    text = bytes(body)
    if not any(mark in text for mark in HIDDEN):
        return body
    return msgspec.Raw(encode(shown_step(read_step(text.decode()), found_text=False)).encode())


def _list_of_project(run_id: str, thread_id: str, project_id: str, query: PageQuery) -> Operation[Page]:
    yield from get_thread_body(thread_id, project_id)
    yield from get_run_body(run_id, thread_id, project_id)
    return (yield from list_steps(run_id, query))


async def get_run_step(call: Call[None]) -> Response:
    """GET /threads/{thread_id}/runs/{run_id}/steps/{step_id}."""
    ids = call.ids
    body = await call.context.database.read(
        _get_of_project, ids["step_id"], ids["run_id"], ids["thread_id"], call.project_id
    )
    return answer(body if _with_text(call) else bytes(_without_text(msgspec.Raw(body.encode()))))


def _get_of_project(step_id: str, run_id: str, thread_id: str, project_id: str) -> Operation[str]:
    yield from get_thread_body(thread_id, project_id)
    yield from get_run_body(run_id, thread_id, project_id)
    return (yield from get_step(step_id, run_id))
