"""A shortcut through the router for the paths of the table.

Starlette tries one regular expression after the other and copies the scope for each mount; on a message insert that
is a tenth of all that the interpreter does. Paths here alternate between names and ids (`/threads/ID/messages/ID`), so
that their names in order find the endpoint. Rule: a shortcut only ever saves time; what it does not know goes to the
router.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

Shape = tuple[int, tuple[str, ...]]
"""How many parts a path has, and its names: every other part."""


class Shortcut:
    """The application in front of `router`. `endpoints` are by path as in the table, `mounts` what may stand before."""

    def __init__(self, router: ASGIApp, endpoints: Mapping[str, ASGIApp], mounts: Sequence[str]) -> None:
        self._router = router
        self._roots = tuple(mounts)
        self._exact: dict[str, ASGIApp] = {}
        self._shapes: dict[Shape, tuple[ASGIApp, list[str]]] = {}
        for path, endpoint in endpoints.items():
            parts = path.split("/")[1:]
            ids = [part[1:-1] for part in parts[1::2] if part.startswith("{")]
            if ":path}" in path:
                continue
            if len(ids) == len(parts) // 2:
                self._shapes[len(parts), tuple(parts[0::2])] = endpoint, ids
            else:
                self._exact[path] = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer by the endpoint itself, or hand the request to the router."""
        found = self._find(scope["path"]) if scope["type"] == "http" else None
        if found is None:
            await self._router(scope, receive, send)
            return
        endpoint, root, parameters = found
        scope["root_path"] = scope.get("root_path", "") + root
        scope["path_params"] = parameters
        await endpoint(scope, receive, send)

    def _find(self, path: str) -> tuple[ASGIApp, str, dict[str, str]] | None:
        for root in self._roots:
            if path.startswith(root) and path[len(root) : len(root) + 1] == "/":
                rest = path[len(root) :]
                exact = self._exact.get(rest)
                if exact is not None:
                    return exact, root, {}
                parts = rest.split("/")[1:]
                shape = self._shapes.get((len(parts), tuple(parts[0::2])))
                if shape is not None and all(parts[1::2]):
                    return shape[0], root, dict(zip(shape[1], parts[1::2], strict=True))
        return None
