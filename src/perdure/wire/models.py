"""The model object."""

from __future__ import annotations

from typing import Literal

from perdure.wire.kinds import Object


class ModelObject(Object, kw_only=True):
    """A model that can be asked for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str


class ModelList(Object, kw_only=True):
    """All models; this list never had cursor fields."""

    object: Literal["list"] = "list"
    data: list[ModelObject]
