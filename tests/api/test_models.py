"""Models: what can be asked for."""

from __future__ import annotations

from tests.api.scenes import refused
from tests.server import Client


def test_the_list_has_no_cursor_fields(client: Client) -> None:
    raw = client.models.with_raw_response.list().http_response.json()
    assert set(raw) == {"object", "data"}
    assert raw["data"]
    assert all(set(one) == {"id", "object", "created", "owned_by"} for one in raw["data"])


def test_each_listed_model_can_be_retrieved(client: Client) -> None:
    models = list(client.models.list())
    assert models
    assert [client.models.retrieve(one.id) for one in models] == models


def test_unknown_models(client: Client) -> None:
    missing = (404, "The model 'fake_id' does not exist", "model", "model_not_found")
    assert refused(client.models.retrieve, "fake_id") == missing
    assert refused(client.models.delete, "fake_id") == missing
    assert refused(client.models.retrieve, "org/name:tag").message == "The model 'org/name:tag' does not exist"


def test_a_served_model_can_not_be_deleted(client: Client) -> None:
    name = client.models.list().data[0].id
    refusal = refused(client.models.delete, name)
    assert (refusal.status, refusal.param) == (400, "model")
    assert client.models.retrieve(name).id == name
