"""The shortcut finds what the router would find, and leaves all else to it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from perdure.api.routes import MOUNTS, OPERATIONS
from perdure.api.shortcut import Shortcut

Seen = list[tuple[str, dict[str, Any]]]


def visit(path: str) -> Seen:
    """Return who was asked, with the scope that it got."""
    seen: Seen = []

    def endpoint(name: str) -> Any:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            del receive, send
            seen.append((name, scope))

        return answer

    app = Shortcut(endpoint("router"), {one.path: endpoint(one.path) for one in OPERATIONS}, MOUNTS)

    async def nothing(*_: Any) -> Any:
        raise AssertionError("nobody reads or sends here")

    asyncio.run(app({"type": "http", "path": path, "method": "GET"}, nothing, nothing))
    return seen


@pytest.mark.parametrize("mount", MOUNTS)
@pytest.mark.parametrize("path", sorted({one.path for one in OPERATIONS if ":path}" not in one.path}))
def test_every_path_of_the_table_is_found(mount: str, path: str) -> None:
    ids = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    url = path
    for name in ids:
        url = url.replace(f"{{{name}}}", f"{name}-value")
    (name, scope) = visit(mount + url)[0]
    assert name == path
    assert scope["path_params"] == {one: f"{one}-value" for one in ids}
    assert scope["root_path"] == mount


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v1x/threads",
        "/v1/threads/",
        "/v1/threads//messages",
        "/v1/threads/a/b",
        "/v1/models/org/name",
        "/v1/openapi.json",
        "/health",
        "/threads",
        "/openai/v2/threads",
        "/v1/chat/completions",
    ],
)
def test_all_else_goes_to_the_router(path: str) -> None:
    assert [name for name, _ in visit(path)] == ["router"]
