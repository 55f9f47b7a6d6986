"""The three mounts, and Azure's client."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.api.scenes import PLAIN_EVENTS, collapsed, text_of
from tests.server import Client

VERSION = "2024-05-01-preview"


def root_of(url: str) -> str:
    return url.removesuffix("/v1")


def converse(client: openai.OpenAI) -> None:
    """Make an assistant, a thread, a message; run it once with the polling and once with the stream helper."""
    assistant = client.beta.assistants.create(model="gpt-4o", name="x")
    thread = client.beta.threads.create()
    client.beta.threads.messages.create(thread.id, role="user", content="hello")
    run = client.beta.threads.runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id)
    assert run.status == "completed"
    with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
        assert collapsed(event.event for event in stream) == PLAIN_EVENTS
    answers = list(client.beta.threads.messages.list(thread.id, run_id=run.id))
    assert [text_of(one) for one in answers] == ["You said: hello"]
    steps = client.beta.threads.runs.steps.list(run.id, thread_id=thread.id)
    assert [step.status for step in steps] == ["completed"]
    assert client.beta.assistants.list(limit=1).data[0] == assistant
    assert client.beta.assistants.delete(assistant.id).deleted


@pytest.mark.parametrize("mount", ["/v1", "/openai/v1", "/openai", "/v1/"])
def test_the_official_client_at_every_mount(url: str, mount: str) -> None:
    with Client(root_of(url) + mount) as client:
        converse(client)


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": "azure-key"},
        {"azure_ad_token": "entra-token"},
        {"azure_ad_token_provider": lambda: "entra-token"},
        {"api_key": "azure-key", "azure_deployment": "gpt-4o"},
    ],
    ids=["api-key", "token", "provider", "deployment"],
)
def test_azures_client(url: str, options: dict[str, Any]) -> None:
    with openai.AzureOpenAI(
        azure_endpoint=root_of(url),
        api_version=VERSION,
        max_retries=0,
        _strict_response_validation=True,
        **options,
    ) as client:
        converse(client)


def test_all_mounts_show_the_same_objects(url: str) -> None:
    with Client(url) as client, Client(f"{root_of(url)}/openai") as azure:
        thread = client.beta.threads.create(metadata={"a": "b"})
        assert azure.beta.threads.retrieve(thread.id) == thread
        with pytest.raises(openai.NotFoundError, match="No thread found with id 'thread_none'"):
            azure.beta.threads.retrieve("thread_none")


def test_what_is_not_mounted_is_not_there(url: str) -> None:
    for base in (root_of(url), f"{root_of(url)}/v2", f"{root_of(url)}/openai/v2", f"{root_of(url)}/v1/v1"):
        with Client(base) as client, pytest.raises(openai.NotFoundError, match="Invalid URL"):
            client.beta.assistants.list()
