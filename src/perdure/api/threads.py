"""Threads."""

from __future__ import annotations

import re

import msgspec
from starlette.datastructures import QueryParams
from starlette.responses import Response

from perdure.api.call import Call, answer, page_query
from perdure.api.planned_stores import fresh_store, plan_for_thread, refuse_unknown_stores
from perdure.api.resources import refuse_unknown_in_thread, refuse_unknown_resources
from perdure.domain.creation import copied_message, new_message, new_thread
from perdure.errors import InvalidRequest
from perdure.ids import check_id, searchable
from perdure.store.run_requests import insert_new_thread
from perdure.store.threads import delete_thread as delete_stored
from perdure.store.threads import get_thread_body, insert_thread, read_fork, update_thread
from perdure.store.threads import list_threads as list_stored
from perdure.wire.kinds import Deleted
from perdure.wire.refusals import unsupported_value
from perdure.wire.threads import Comparison, CreateThread, ForkThread, ModifyThread, ThreadFilters

COMPARISONS: dict[str, Comparison] = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
_FILTER = re.compile(r"(metadata|created_at)\[(.*)\]", re.DOTALL)


async def create_thread(call: Call[CreateThread]) -> Response:
    """POST /threads."""
    await refuse_unknown_in_thread(call, call.body)
    planned = await plan_for_thread(call, call.body.tool_resources)
    now = call.now
    thread = new_thread(call.body, call.new_id("thread"), now)
    messages = [
        new_message(body, thread.id, call.new_id("msg"), now, f"messages[{index}]")
        for index, body in enumerate(call.body.messages or [])
    ]
    fresh = fresh_store(call) if any(message.attachments for message in messages) else None
    thread = await call.context.database.run(insert_new_thread, thread, messages, call.project_id, now, fresh, planned)
    if fresh is not None or planned is not None:
        call.context.dispatch.tell_of_files()
    return answer(thread)


async def list_threads(call: Call[None]) -> Response:
    """GET /threads, an extension: `metadata[key]=value` and `created_at[gte]=seconds` narrow it down."""
    filters = _filters(call.query)
    database = call.context.database
    look = database.scan if filters.metadata or filters.created_at else database.read
    return answer(await look(list_stored, call.project_id, page_query(call.query), filters))


def _filters(query: QueryParams) -> ThreadFilters:
    metadata, times = [], []
    for name, value in query.multi_items():
        matched = _FILTER.fullmatch(name)
        if matched is None:
            continue
        field, key = matched.groups()
        if field == "metadata":
            metadata.append((key, value))
        elif key not in COMPARISONS:
            raise unsupported_value(name, value, [f"created_at[{known}]" for known in COMPARISONS])
        elif re.fullmatch("[0-9]{1,18}", value) is None:
            raise InvalidRequest(
                f"Invalid type for '{name}': expected an integer, but got a string instead.",
                param=name,
                code="invalid_type",
            )
        else:
            times.append((COMPARISONS[key], int(value)))
    return ThreadFilters(metadata=tuple(metadata), created_at=tuple(times))


async def fork_thread(call: Call[ForkThread]) -> Response:
    """POST /threads/{thread_id}/fork, an extension: a new thread with copies of the messages up to one of them."""
    context, at = call.context, call.body.message_id
    if at is not None:
        at = searchable(check_id("message_id", at))
    old, messages = await context.database.scan(read_fork, call.ids["thread_id"], call.project_id, at)
    metadata = old.metadata if call.body.metadata is None else call.body.metadata
    thread = msgspec.structs.replace(old, id=call.new_id("thread"), created_at=call.now, metadata=metadata)
    copies = [copied_message(message, thread.id, call.new_id("msg")) for message in messages]
    await context.database.run(insert_thread, thread, copies, call.project_id)
    return answer(thread)


async def get_thread(call: Call[None]) -> Response:
    """GET /threads/{thread_id}."""
    return answer(await call.context.database.read(get_thread_body, call.ids["thread_id"], call.project_id))


async def modify_thread(call: Call[ModifyThread]) -> Response:
    """POST /threads/{thread_id}."""
    await refuse_unknown_resources(call, call.body.tool_resources)
    await refuse_unknown_stores(call, call.body.tool_resources)
    return answer(await call.context.database.run(update_thread, call.ids["thread_id"], call.project_id, call.body))


async def delete_thread(call: Call[None]) -> Response:
    """DELETE /threads/{thread_id}."""
    thread_id = call.ids["thread_id"]
    for run_id in await call.context.database.run(delete_stored, thread_id, call.project_id, call.now):
        call.context.dispatch.interrupt(run_id)
        call.context.feeds.wake(run_id)
    call.context.boxes.forget(thread_id)
    return answer(Deleted(id=thread_id, object="thread.deleted"))
