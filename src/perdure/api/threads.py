"""Threads."""

from __future__ import annotations

from starlette.responses import Response

from perdure.api.call import Call, answer
from perdure.api.resources import refuse_unknown_in_thread, refuse_unknown_resources
from perdure.domain.creation import new_message, new_thread
from perdure.store.threads import delete_thread as delete_stored
from perdure.store.threads import get_thread_body, insert_thread, update_thread
from perdure.wire.kinds import Deleted
from perdure.wire.threads import CreateThread, ModifyThread


async def create_thread(call: Call[CreateThread]) -> Response:
    """POST /threads."""
    refuse_unknown_in_thread(call.body)
    now = call.now
    thread = new_thread(call.body, call.new_id("thread"), now)
    messages = [
        new_message(body, thread.id, call.new_id("msg"), now, f"messages[{index}]")
        for index, body in enumerate(call.body.messages or [])
    ]
    await call.context.database.run(insert_thread, thread, messages, call.project_id)
    return answer(thread)


async def get_thread(call: Call[None]) -> Response:
    """GET /threads/{thread_id}."""
    return answer(await call.context.database.read(get_thread_body, call.ids["thread_id"], call.project_id))


async def modify_thread(call: Call[ModifyThread]) -> Response:
    """POST /threads/{thread_id}."""
    refuse_unknown_resources(call.body.tool_resources)
    return answer(await call.context.database.run(update_thread, call.ids["thread_id"], call.project_id, call.body))


async def delete_thread(call: Call[None]) -> Response:
    """DELETE /threads/{thread_id}."""
    thread_id = call.ids["thread_id"]
    for run_id in await call.context.database.run(delete_stored, thread_id, call.project_id, call.now):
        call.context.dispatch.interrupt(run_id)
        call.context.feeds.wake(run_id)
    return answer(Deleted(id=thread_id, object="thread.deleted"))
