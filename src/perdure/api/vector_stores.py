"""Vector stores, and the search in one."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from perdure.api.call import Call, answer, page_query
from perdure.api.planned_stores import refuse_unreadable
from perdure.domain.vector_stores import new_vector_store, sizes_of
from perdure.errors import RunFailure, Unavailable
from perdure.ids import new_hex_id, searchable
from perdure.search.filters import read_filter
from perdure.search.rank import ranking_of
from perdure.search.rewrite import rewrite
from perdure.store.attachments import PlannedStore, insert_planned
from perdure.store.ingestion import rebuild_store
from perdure.store.vector_store_files import AskedFile
from perdure.store.vector_stores import delete_vector_store as delete_stored
from perdure.store.vector_stores import get_vector_store as get_stored
from perdure.store.vector_stores import list_vector_stores as list_stored
from perdure.store.vector_stores import update_vector_store
from perdure.tools.vector_search import Hit
from perdure.wire.kinds import Deleted
from perdure.wire.search import (
    MOST_QUERIES,
    ResultContent,
    SearchPage,
    SearchRankingOptions,
    SearchRequest,
    SearchResult,
)
from perdure.wire.vector_stores import CreateVectorStore, ModifyVectorStore, RebuildVectorStore, VectorStore

DEFAULT_RESULTS = 10


async def create_vector_store(call: Call[CreateVectorStore]) -> Response:
    """POST /vector_stores."""
    body = call.body
    store = new_vector_store(body, new_hex_id(call.context.ids, "vs"), call.now)
    chunking = sizes_of(body.chunking_strategy)
    asked = [AskedFile(file_id=searchable(file_id), chunking=chunking) for file_id in body.file_ids or []]
    await refuse_unreadable(call, [one.file_id for one in asked])
    planned = PlannedStore(store, call.context.embedders.default_name, asked)
    made = await call.context.database.run(insert_planned, planned, call.project_id, call.now)
    call.context.dispatch.tell_of_files()
    return _answer(call, made)


async def list_vector_stores(call: Call[None]) -> Response:
    """GET /vector_stores."""
    return answer(await call.context.database.read(list_stored, call.project_id, page_query(call.query), call.now))


async def get_vector_store(call: Call[None]) -> Response:
    """GET /vector_stores/{vector_store_id}."""
    return _answer(call, await call.context.database.read(get_stored, *_path(call), call.now))


async def modify_vector_store(call: Call[ModifyVectorStore]) -> Response:
    """POST /vector_stores/{vector_store_id}."""
    return _answer(call, await call.context.database.run(update_vector_store, *_path(call), call.body, call.now))


async def delete_vector_store(call: Call[None]) -> Response:
    """DELETE /vector_stores/{vector_store_id}."""
    store_id, project_id = _path(call)
    stopped = await call.context.database.run(delete_stored, store_id, project_id, call.now)
    call.context.dispatch.tell_of_files(stopped)
    return answer(Deleted(id=store_id, object="vector_store.deleted"))


async def rebuild_vector_store(call: Call[RebuildVectorStore]) -> Response:
    """POST /vector_stores/{vector_store_id}/rebuild, an extension: all files again, by the present embedding model."""
    embedder = call.context.embedders.default_name
    store, stopped = await call.context.database.run(rebuild_store, *_path(call), embedder, call.now)
    call.context.dispatch.tell_of_files(stopped)
    return _answer(call, store)


async def search_vector_store(call: Call[SearchRequest]) -> Response:
    """POST /vector_stores/{vector_store_id}/search."""
    body, context, options = call.body, call.context, call.body.ranking_options or SearchRankingOptions()
    store_id, project_id = _path(call)
    filters = None if body.filters is None else read_filter(body.filters)
    await context.database.read(get_stored, store_id, project_id, call.now)
    queries = [body.query] if isinstance(body.query, str) else body.query
    if body.rewrite_query:
        queries = list(dict.fromkeys(shorter for query in queries for shorter in rewrite(query)))[:MOST_QUERIES]
    weights = options.hybrid_search
    ranking = ranking_of(
        options.ranker,
        options.score_threshold,
        None if weights is None else (weights.embedding_weight, weights.text_weight),
    )
    try:
        hits = await context.search.search(
            [store_id],
            queries,
            limit=body.max_num_results or DEFAULT_RESULTS,
            project_id=project_id,
            filters=filters,
            ranking=ranking,
        )
    except RunFailure as failure:
        raise Unavailable(failure.message) from None
    return answer(SearchPage(search_query=queries, data=[_result(hit) for hit in hits]))


def _result(hit: Hit) -> SearchResult:
    return SearchResult(
        file_id=hit.file_id,
        filename=hit.filename,
        score=hit.score,
        attributes=hit.attributes,
        content=[ResultContent(text=hit.text)],
    )


def _answer(call: Call[Any], store: VectorStore) -> Response:
    return answer(store, poll_header(call))


def poll_header(call: Call[Any]) -> dict[str, str]:
    """Return the header that tells polling helpers when to ask again."""
    return {"openai-poll-after-ms": str(call.context.settings.poll_after_ms)}


def _path(call: Call[Any]) -> tuple[str, str]:
    return call.ids["vector_store_id"], call.project_id
