"""Run steps."""

from __future__ import annotations

from starlette.responses import Response

from perdure.api.call import Call, answer, page_query
from perdure.store.db import Operation
from perdure.store.runs import get_run_body
from perdure.store.steps import get_step, list_steps
from perdure.store.threads import get_thread_body
from perdure.wire.page import Page, PageQuery


async def list_run_steps(call: Call[None]) -> Response:
    """GET /threads/{thread_id}/runs/{run_id}/steps."""
    page = await call.context.database.read(
        _list_of_project, call.ids["run_id"], call.ids["thread_id"], call.project_id, page_query(call.query)
    )
    return answer(page)


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
    return answer(body)


def _get_of_project(step_id: str, run_id: str, thread_id: str, project_id: str) -> Operation[str]:
    yield from get_thread_body(thread_id, project_id)
    yield from get_run_body(run_id, thread_id, project_id)
    return (yield from get_step(step_id, run_id))
