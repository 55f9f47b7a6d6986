"""/openapi.json and the compatibility page: there, true to the route table, and up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from perdure.api.openapi import openapi_document
from perdure.api.routes import MOUNTS, OPERATIONS, Operation
from perdure.wire.kinds import Body

DOCS = Path(__file__).resolve().parents[2] / "docs"
STREAMED = {"createRun", "createThreadAndRun", "submitToolOuputsToRun", "retryRun", "followRunEvents"}
IDS = [one.operation_id for one in OPERATIONS]


@pytest.fixture(scope="module")
def document(url: str) -> Any:
    return httpx2.get(f"{url}/openapi.json").json()


@pytest.mark.parametrize("mount", ["", *MOUNTS])
def test_it_is_served_without_a_key_at_every_mount(url: str, mount: str, document: Any) -> None:
    answer = httpx2.get(f"{url.removesuffix('/v1')}{mount}/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == document == openapi_document(OPERATIONS, MOUNTS)


def test_it_can_only_be_read(url: str) -> None:
    answer = httpx2.post(f"{url}/openapi.json")
    assert answer.status_code == 405
    assert answer.json()["error"]["code"] == "method_not_supported"
    assert answer.headers["allow"] == "GET"


def test_every_operation_is_in_it_and_nothing_else(document: Any) -> None:
    found = {
        (method.upper(), path): one["operationId"]
        for path, methods in document["paths"].items()
        for method, one in methods.items()
    }
    assert found == {(one.method, one.plain_path): one.operation_id for one in OPERATIONS}


@pytest.mark.parametrize("operation", OPERATIONS, ids=IDS)
def test_an_operation_is_described_as_it_is(operation: Operation, document: Any) -> None:
    one = document["paths"][operation.plain_path][operation.method.lower()]
    in_path = [parameter["name"] for parameter in one["parameters"] if parameter.get("in") == "path"]
    assert in_path == re.findall(r"\{(\w+)\}", operation.plain_path)
    assert ("requestBody" in one) == (operation.body is not None)
    assert ("200" in one["responses"]) == (operation.gives is not None or operation.header != "")
    assert {"400", "401", "405", "500", "503"} <= set(one["responses"])
    streams = "text/event-stream" in one["responses"].get("200", {}).get("content", {})
    assert streams == (operation.operation_id in STREAMED)
    headers = [parameter["name"] for parameter in one["parameters"] if parameter.get("in") == "header"]
    busy = ["X-Perdure-When-Busy"] if operation.operation_id in {"createMessage", "createRun", "retryRun"} else []
    assert headers == (["Last-Event-ID"] if operation.operation_id == "followRunEvents" else busy)
    assert operation.page == operation.operation_id.startswith("list") - (operation.operation_id == "listModels")


def test_references_lead_somewhere(document: Any) -> None:
    for reference in set(re.findall(r'"\$ref":\s*"#/([^"]+)"', msgspec.json.encode(document).decode())):
        found = document
        for name in reference.split("/"):
            found = found[name]


def test_limits_are_in_it(document: Any) -> None:
    schemas, parameters = document["components"]["schemas"], document["components"]["parameters"]
    assert parameters["limit"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 100, "default": 20}
    assert schemas["CreateAssistant"]["additionalProperties"] is False
    assert schemas["CreateAssistant"]["properties"]["name"]["anyOf"][0]["maxLength"] == 256
    assert set(schemas["Run"]["required"]) == set(schemas["Run"]["properties"])
    assert set(schemas["ErrorBody"]["required"]) == {"message", "type", "param", "code"}


def test_an_operation_that_reads_a_body_names_its_struct() -> None:
    for operation in OPERATIONS:
        if operation.body is not None:
            assert operation.method == "POST"
            assert issubclass(operation.body, Body)


# -- the compatibility page


def test_the_generated_docs_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, DOCS / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_operation_is_on_the_compatibility_page() -> None:
    page = (DOCS / "compatibility.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+ [^`]+)` \| \w+ \| (supported|partly|not) \|", page, re.MULTILINE))
    assert len(rows) == 51
    added = re.findall(r"^\| `(\w+ /[^`]+)` \| [^|]+ \|$", page, re.MULTILINE)
    assert added == [f"{one.method} {one.plain_path}" for one in OPERATIONS if one.extension]
    for operation in OPERATIONS:
        if operation.extension:
            continue
        expected = "partly" if operation.lacks else "supported"
        assert rows.pop(f"{operation.method} {operation.plain_path}") == expected
    assert set(rows.values()) <= {"not"}
