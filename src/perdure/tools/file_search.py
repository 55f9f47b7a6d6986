"""The file search tool: searches the run's vector stores and keeps what fits into the model's prompt.

Rules. The assistant's stores and the thread's are searched together. A run waits for the thread's store to take in its
files, `WAIT_SECONDS` at most, and not for the assistant's [documented]. Files that are not ready by then are said.
"""

from __future__ import annotations

import logging

import msgspec
from msgspec import UNSET

from perdure.errors import InvalidRequest, NotFound, RunFailure
from perdure.ids import Clock
from perdure.search.rank import ranking_of, weights_of
from perdure.store.attachments import stores_named
from perdure.store.bodies import read_thread
from perdure.store.db import Database, Operation
from perdure.store.threads import get_thread_body
from perdure.store.vector_stores import find_store_row
from perdure.tools.toolbox import FoundRoom
from perdure.tools.vector_search import Hit, VectorSearch
from perdure.wire.runs import Run
from perdure.wire.steps import FileSearchCall, FoundFile, FoundText, StepRanking
from perdure.wire.tools import DEFAULT_RANKER, FileSearchOptions, FileSearchTool
from perdure.wire.vector_stores import VectorStore

log = logging.getLogger("perdure.tools")

WAIT_SECONDS = 60.0
LOOK_SECONDS = 0.2
MOST_RESULTS = 20
FEW_RESULTS = 5
"""For gpt-3.5, whose prompt is short [documented]."""
LEAST_TOKENS = 50
"""What is left of a passage that is cut to fit must have that many tokens to be worth showing."""

NO_STORES = "There are no files to search: neither the assistant nor the thread has a vector store."
NO_QUERY = "No query was given. Call file_search with at least one query."
NO_ROOM = "There is no room left for what a search would bring. Answer from what you have."


class StoreSearch:
    """`FileSearch` over the vector stores of this server."""

    def __init__(self, database: Database, search: VectorSearch, clock: Clock) -> None:
        self._database = database
        self._search = search
        self._clock = clock

    def ranking(self, run: Run) -> StepRanking:
        """Return how the run wants its results ranked."""
        ranking = _options(run).ranking_options
        ranker = ranking.ranker if ranking and ranking.ranker else DEFAULT_RANKER
        return StepRanking(ranker=ranker, score_threshold=(ranking.score_threshold if ranking else None) or 0.0)

    async def has_stores(self, run: Run, project_id: str) -> bool:
        """Say whether there is anything to search."""
        own, threads = await self._stores(run, project_id)
        return bool(own or threads)

    async def search(self, run: Run, project_id: str, queries: list[str], room: FoundRoom) -> FileSearchCall:
        """Return what was found, best first, with its text. Raises RunFailure and Unavailable."""
        call = FileSearchCall(ranking_options=self.ranking(run), results=[], x_queries=queries)
        own, threads = await self._stores(run, project_id)
        refusal = NO_STORES if not (own or threads) else NO_QUERY if not queries else ""
        if not refusal and room.tokens < LEAST_TOKENS:
            refusal = NO_ROOM
        if refusal:
            return msgspec.structs.replace(call, x_words=refusal)
        late = await self._wait_for(threads)
        options = _options(run)
        most = options.max_num_results or (FEW_RESULTS if run.model.startswith("gpt-3.5") else MOST_RESULTS)
        ranking = options.ranking_options
        try:
            hits = await self._search.search(
                [*own, *threads],
                queries,
                limit=most,
                project_id=project_id,
                ranking=ranking_of(
                    call.ranking_options.ranker,
                    call.ranking_options.score_threshold,
                    weights_of(ranking.hybrid_search if ranking else None),
                ),
            )
        except InvalidRequest as expired:  # recorded: the run fails
            raise RunFailure(expired.message) from None
        except RunFailure as failure:  # no embedding model: the model is told, as of any tool that fails
            log.warning("run %s: file search failed: %s", run.id, failure.message)
            return msgspec.structs.replace(call, x_words=f"The search failed: {failure.message}")
        return msgspec.structs.replace(call, results=fitting(hits, room), x_words=late or UNSET)

    async def _stores(self, run: Run, project_id: str) -> tuple[list[str], list[str]]:
        """Return the ids of the run's own stores, and of the thread's that are not among them."""
        own = stores_named(run.tool_resources)
        try:
            body = await self._database.read(get_thread_body, run.thread_id, project_id)
        except NotFound:  # deleted under the run; its fence ends the run
            return own, []
        return own, [one for one in stores_named(read_thread(body).tool_resources) if one not in own]

    async def _wait_for(self, store_ids: list[str]) -> str:
        """Wait until the stores have taken in their files; return what to say of those that have not."""
        until = self._clock.now() + WAIT_SECONDS
        for store_id in store_ids:
            while (store := await self._database.read(_look, store_id)) is not None and store.status == "in_progress":
                if self._clock.now() >= until:
                    count = store.file_counts.in_progress
                    return f"{count} of the files of this conversation are not searchable yet: they are still read."
                await self._clock.sleep(LOOK_SECONDS)
        return ""


def _look(store_id: str) -> Operation[VectorStore | None]:
    row = yield from find_store_row(store_id)
    return row.store if row else None


def _options(run: Run) -> FileSearchOptions:
    tools = (tool for tool in run.tools if isinstance(tool, FileSearchTool))
    return next((tool.file_search for tool in tools if tool.file_search), FileSearchOptions())


def fitting(hits: list[Hit], room: FoundRoom) -> list[FoundFile]:
    """Return the results that fit into the room, best first; the last one is cut if enough of it is left."""
    found: list[FoundFile] = []
    left = room.tokens
    for hit in hits:
        if left < LEAST_TOKENS:
            break
        tokens = room.count(hit.text)
        text = hit.text if tokens <= left else _cut(hit.text, left / tokens)
        left -= tokens
        found.append(
            FoundFile(
                file_id=hit.file_id,
                file_name=hit.filename,
                score=hit.score,
                attributes=hit.attributes,
                content=[FoundText(text=text)],
                x_page=UNSET if hit.page is None else hit.page,
            )
        )
    return found


def _cut(text: str, share: float) -> str:
    """Return the beginning of a text, about that share of it, ended at a space if there is one near."""
    cut = text[: int(len(text) * share * 0.95)]
    space = cut.rfind(" ", int(len(cut) * 0.9))
    return (cut[:space] if space > 0 else cut) + " [...]"
