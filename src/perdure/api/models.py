"""Models."""

from __future__ import annotations

from starlette.responses import Response

from perdure.api.call import B, Call, answer
from perdure.errors import InvalidRequest, NotFound
from perdure.wire.models import ModelList, ModelObject

LISTED_AS_CREATED = 1_700_000_000
"""Nobody tells when a model was made; the hosted server sent a Unix time, so we send a constant one."""


async def list_models(call: Call[None]) -> Response:
    """GET /models: what can be asked for."""
    return answer(ModelList(data=await _listed(call)))


async def retrieve_model(call: Call[None]) -> Response:
    """GET /models/{model}."""
    return answer(await _one(call))


async def delete_model(call: Call[None]) -> Response:
    """DELETE /models/{model}: the hosted server deleted fine-tuned models, of which there are none here."""
    model = await _one(call)
    raise InvalidRequest(
        f"The model '{model.id}' can not be deleted through the API: it belongs to {model.owned_by}.", param="model"
    )


async def _one(call: Call[None]) -> ModelObject:
    name = call.ids["model"]
    for model in await _listed(call):
        if model.id == name:
            return model
    raise NotFound(f"The model '{name}' does not exist", param="model", code="model_not_found")


async def _listed(call: Call[B]) -> list[ModelObject]:
    listed = await call.context.models.list_models()
    return [ModelObject(id=name, created=LISTED_AS_CREATED, owned_by=owner) for name, owner in listed]
