"""The search in vector stores: what the endpoint and the tool of that name both do.

Rules. Questions are embedded by the model that embedded the store. A store that is gone is passed over, as its id may
still stand in an assistant; one that has expired is refused. Every search counts as use, which moves the expiry.
"""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from perdure.errors import RunFailure
from perdure.ids import Clock, searchable
from perdure.search.filters import Filter
from perdure.search.rank import CANDIDATES, Ranked, Ranking, rank, rank_together
from perdure.search.terms import terms_of
from perdure.store.chunks import find_texts
from perdure.store.db import Database, Operation
from perdure.store.vector_stores import TOUCH_SECONDS, StoreRow, find_store_row, refuse_expired, touch_stores
from perdure.tools.loaded_stores import LoadedFile, LoadedStore, LoadedStores, place_of
from perdure.wire.vector_stores import Attributes

if TYPE_CHECKING:
    from perdure.search.index import StoreIndex

log = logging.getLogger("perdure.tools")


class Embeddings(Protocol):
    """An embedding model."""

    async def embed(self, texts: list[str]) -> Sequence[array[float]]:
        """Return a vector of length one for each text. Raises RunFailure and Unavailable."""
        ...


class Embedders(Protocol):
    """Where embedding models come from."""

    def get(self, name: str) -> Embeddings:
        """Return the model of that name. Raises RunFailure where there is none."""
        ...


class Hit(msgspec.Struct, frozen=True, kw_only=True):
    """A passage that was found. `score` is from 0 to 1, `page` counts from 1 where the file has pages."""

    file_id: str
    filename: str
    score: float
    attributes: Attributes
    text: str
    page: int | None
    tokens: int
    vector_store_id: str


class VectorSearch:
    """Searches vector stores. Their indexes take `cache_bytes` of memory at most, all together."""

    def __init__(self, database: Database, embedders: Embedders, clock: Clock, cache_bytes: int) -> None:
        self._database = database
        self._embedders = embedders
        self._clock = clock
        self._loaded = LoadedStores(database, cache_bytes)

    async def search(
        self,
        store_ids: Sequence[str],
        queries: Sequence[str],
        *,
        limit: int,
        project_id: str,
        filters: Filter | None = None,
        ranking: Ranking | None = None,
    ) -> list[Hit]:
        """Return the passages that answer the queries, best first. A file in two stores is found twice [recorded].

        Raises InvalidRequest for a store that has expired, RunFailure and Unavailable where it can not be searched.
        """
        rows = await self._stores(store_ids, project_id)
        vectors = await self._embed({row.embedder for row in rows}, list(queries))
        results: list[_Found] = []
        for row in rows:
            store = await self._loaded.get(row.store.id, row.version)
            if store.index is not None:
                questions = _questions(store, queries, vectors[row.embedder])
                results += await asyncio.to_thread(
                    _search, store.store_id, store.index, store.files, questions, limit, filters, ranking or Ranking()
                )
        return await self._texts(sorted(results, key=lambda found: -found.ranked.score)[:limit])

    async def _stores(self, store_ids: Sequence[str], project_id: str) -> list[StoreRow]:
        """Return the stores that are there, and note their use. Raises InvalidRequest for one that has expired."""
        now = self._clock.now()
        found: list[StoreRow] = []
        for row in await self._database.read(_find_stores, [searchable(one) for one in dict.fromkeys(store_ids)]):
            refuse_expired(row.store, now)
            if row.project_id == project_id:
                found.append(row)
        if len(found) < len(set(store_ids)):
            log.info("%d of %d vector stores are gone and are passed over", len(store_ids) - len(found), len(store_ids))
        if any(row.store.last_active_at <= now - TOUCH_SECONDS for row in found):
            await self._database.run(touch_stores, [row.store.id for row in found], int(now))
        return found

    async def _embed(self, names: set[str], queries: list[str]) -> dict[str, Sequence[array[float]]]:
        return {name: await self._embedders.get(name).embed(queries) for name in names}

    async def _texts(self, results: list[_Found]) -> list[Hit]:
        """Return results with their texts; what was removed in this moment is left out."""
        texts = await self._database.scan(find_texts, [place_of(found.ranked.key) for found in results])
        return [
            Hit(
                file_id=found.file.facts.file_id,
                filename=found.file.facts.filename,
                score=found.ranked.score,
                attributes=found.file.facts.attributes,
                text=text.text,
                page=text.page,
                tokens=text.tokens,
                vector_store_id=found.store_id,
            )
            for found, text in zip(results, texts, strict=True)
            if text is not None
        ]


class _Question(msgspec.Struct, frozen=True):
    """A query as it is searched."""

    vector: Sequence[float]
    terms: list[str]


class _Found(msgspec.Struct, frozen=True):
    """A result on its way out."""

    store_id: str
    file: LoadedFile
    ranked: Ranked


def _find_stores(store_ids: Sequence[str]) -> Operation[list[StoreRow]]:
    found: list[StoreRow] = []
    for store_id in store_ids:
        row = yield from find_store_row(store_id)
        if row is not None:
            found.append(row)
    return found


def _questions(store: LoadedStore, queries: Sequence[str], vectors: Sequence[array[float]]) -> list[_Question]:
    """Return the queries as one store is searched with them. Raises RunFailure."""
    if any(len(vector) != store.dimensions for vector in vectors):
        raise RunFailure(
            f"Vector store {store.store_id} holds vectors of {store.dimensions} numbers, its embedding model "
            f"'{store.embedder}' makes {len(vectors[0])} now: run `perdure vector-stores rebuild` for it."
        )
    return [_Question(vector, terms_of(query)) for query, vector in zip(queries, vectors, strict=True)]


def _search(
    store_id: str,
    index: StoreIndex,
    files: dict[int, LoadedFile],
    questions: Sequence[_Question],
    limit: int,
    filters: Filter | None,
    ranking: Ranking,
) -> list[_Found]:
    """Search one store (in a thread)."""
    allowed = None
    if filters is not None:
        allowed = [str(seq) for seq, one in files.items() if filters.matches(one.facts.attributes)]
    lists = [
        rank(index.candidates(one.vector, one.terms, max(CANDIDATES, limit), allowed), ranking, limit)
        for one in questions
    ]
    return [
        _Found(store_id, files[int(one.file)], one) for one in rank_together(lists, limit) if int(one.file) in files
    ]
