"""The search of a vector store: its request and its page of results.

`filters` is kept as it came: `search/filters.py` reads it, because one shape nests in another under a name that says
which of ten it is.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from perdure.wire.kinds import Body, Object
from perdure.wire.tools import Threshold

QUERY_CHARACTERS = 32_768
MOST_QUERIES = 32
Query = Annotated[str, Meta(min_length=1, max_length=QUERY_CHARACTERS)]
Weight = Annotated[float, Meta(ge=0)]
Attributes = dict[str, str | float | bool]


class HybridSearch(Body, kw_only=True):
    """How much meaning and words weigh against each other. Newer clients of the Responses API send it."""

    embedding_weight: Weight
    text_weight: Weight


class SearchRankingOptions(Body, kw_only=True):
    """How results are ranked. The search writes its ranker with hyphens, the tool with underscores: both are taken."""

    ranker: Literal["none", "auto", "default-2024-11-15", "default_2024_08_21"] | None = None
    score_threshold: Threshold | None = None
    hybrid_search: HybridSearch | None = None


class SearchRequest(Body, kw_only=True):
    """The body of POST /vector_stores/{id}/search."""

    query: Query | Annotated[list[Query], Meta(min_length=1, max_length=MOST_QUERIES)]
    rewrite_query: bool | None = None
    max_num_results: Annotated[int, Meta(ge=1, le=50)] | None = None
    filters: dict[str, Any] | None = None
    ranking_options: SearchRankingOptions | None = None


class ResultContent(Object, kw_only=True):
    """The text of a chunk."""

    type: Literal["text"] = "text"
    text: str


class SearchResult(Object, kw_only=True):
    """One chunk that was found."""

    file_id: str
    filename: str
    score: float
    attributes: Attributes
    content: list[ResultContent]


class SearchPage(Object, kw_only=True):
    """The answer: all results at once, best first. `search_query` are the queries as they were searched."""

    object: Literal["vector_store.search_results.page"] = "vector_store.search_results.page"
    search_query: list[str]
    data: list[SearchResult]
    has_more: bool = False
    next_page: str | None = None
