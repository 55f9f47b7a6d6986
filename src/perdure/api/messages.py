"""Messages."""

from __future__ import annotations

from starlette.responses import Response

from perdure.api.call import Call, answer, page_query, stand_behind, when_busy
from perdure.api.planned_stores import fresh_store
from perdure.api.resources import refuse_unknown_files
from perdure.domain.creation import new_message
from perdure.ids import check_id, searchable
from perdure.store.db import Operation
from perdure.store.messages import get_message as get_stored
from perdure.store.messages import list_messages as list_stored
from perdure.store.run_requests import add_message, update_message
from perdure.store.run_requests import delete_message as delete_stored
from perdure.store.threads import get_thread_body
from perdure.wire.kinds import Deleted
from perdure.wire.messages import AddMessage, ModifyMessage
from perdure.wire.page import Page, PageQuery


async def create_message(call: Call[AddMessage]) -> Response:
    """POST /threads/{thread_id}/messages."""
    await refuse_unknown_files(call, [call.body])
    message = new_message(call.body, call.ids["thread_id"], call.new_id("msg"), call.now)
    busy = when_busy(call, call.body.x_when_busy)
    fresh = fresh_store(call) if message.attachments else None
    place = await call.context.database.run(add_message, message, call.project_id, busy, call.now, fresh)
    if fresh is not None:
        call.context.dispatch.tell_of_files()
    return answer(message, stand_behind(call, place))


async def list_messages(call: Call[None]) -> Response:
    """GET /threads/{thread_id}/messages, of one run only with `run_id`."""
    run_id = searchable(call.query.get("run_id", "")) or None
    if run_id is not None:
        check_id("run_id", run_id)
    return answer(
        await call.context.database.read(
            _list_of_project, call.ids["thread_id"], call.project_id, page_query(call.query), run_id
        )
    )


def _list_of_project(thread_id: str, project_id: str, query: PageQuery, run_id: str | None) -> Operation[Page]:
    yield from get_thread_body(thread_id, project_id)
    return (yield from list_stored(thread_id, query, run_id))


async def get_message(call: Call[None]) -> Response:
    """GET /threads/{thread_id}/messages/{message_id}."""
    return answer(await call.context.database.read(_get_of_project, *_path(call)))


def _get_of_project(message_id: str, thread_id: str, project_id: str) -> Operation[str]:
    yield from get_thread_body(thread_id, project_id)
    return (yield from get_stored(message_id, thread_id))


async def modify_message(call: Call[ModifyMessage]) -> Response:
    """POST /threads/{thread_id}/messages/{message_id}."""
    return answer(await call.context.database.run(update_message, *_path(call), call.body))


async def delete_message(call: Call[None]) -> Response:
    """DELETE /threads/{thread_id}/messages/{message_id}."""
    await call.context.database.run(delete_stored, *_path(call), call.now)
    return answer(Deleted(id=call.ids["message_id"], object="thread.message.deleted"))


def _path(call: Call[ModifyMessage] | Call[None]) -> tuple[str, str, str]:
    return call.ids["message_id"], call.ids["thread_id"], call.project_id
