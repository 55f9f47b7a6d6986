"""Assistants."""

from __future__ import annotations

from starlette.responses import Response

from perdure.api.call import Call, answer, page_query
from perdure.api.planned_stores import plan_for_assistant, refuse_unknown_stores
from perdure.api.resources import refuse_unknown_resources
from perdure.domain.creation import new_assistant
from perdure.store.assistants import (
    delete_assistant as delete_stored,
)
from perdure.store.assistants import (
    get_assistant_body,
    insert_assistant,
    update_assistant,
)
from perdure.store.assistants import (
    list_assistants as list_stored,
)
from perdure.wire.assistants import CreateAssistant, ModifyAssistant
from perdure.wire.kinds import Deleted


async def create_assistant(call: Call[CreateAssistant]) -> Response:
    """POST /assistants."""
    await refuse_unknown_resources(call, call.body.tool_resources)
    planned = await plan_for_assistant(call, call.body.tool_resources)
    assistant, extra = new_assistant(call.body, call.new_id("asst"), call.now)
    await call.context.database.run(insert_assistant, assistant, extra, call.project_id, planned, call.now)
    if planned is not None:
        call.context.dispatch.tell_of_files()
    return answer(assistant)


async def list_assistants(call: Call[None]) -> Response:
    """GET /assistants."""
    return answer(await call.context.database.read(list_stored, call.project_id, page_query(call.query)))


async def get_assistant(call: Call[None]) -> Response:
    """GET /assistants/{assistant_id}."""
    return answer(await call.context.database.read(get_assistant_body, call.ids["assistant_id"], call.project_id))


async def modify_assistant(call: Call[ModifyAssistant]) -> Response:
    """POST /assistants/{assistant_id}."""
    await refuse_unknown_resources(call, call.body.tool_resources)
    await refuse_unknown_stores(call, call.body.tool_resources)
    return answer(
        await call.context.database.run(update_assistant, call.ids["assistant_id"], call.project_id, call.body)
    )


async def delete_assistant(call: Call[None]) -> Response:
    """DELETE /assistants/{assistant_id}."""
    assistant_id = call.ids["assistant_id"]
    await call.context.database.run(delete_stored, assistant_id, call.project_id, call.now)
    return answer(Deleted(id=assistant_id, object="assistant.deleted"))
