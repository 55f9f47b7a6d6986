"""Searches over each database: only what changed is loaded, memory is bounded, filters and scores come out right."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from perdure.errors import InvalidRequest, RunFailure
from perdure.search.filters import read_filter
from perdure.search.rank import Ranking
from perdure.search.terms import pack_terms
from perdure.store.chunks import StoredChunk
from perdure.store.db import Database
from perdure.store.ingestion import append_chunks, claim_file, complete_file, rebuild_store
from perdure.store.vector_store_files import remove_store_file, update_attributes
from perdure.store.vector_stores import delete_vector_store
from perdure.tools.loaded_stores import LoadedStores, key_of, place_of
from perdure.tools.vector_search import Hit, VectorSearch
from tests.contract.engine_scene import PlayedClock
from tests.contract.store_scene import NOW, PROJECT, make_file, make_store, put_in, store_of

Run = Callable[[Coroutine[Any, Any, Any]], Any]
WORDS = ["apples", "pears", "plums", "figs"]
MEANING = Ranking(1.0, 0.0)


def vector_of(text: str, dimensions: int = 4) -> array[float]:
    """A vector along the axis of the first fruit that is named."""
    place = next((number for number, word in enumerate(WORDS) if word in text), 0)
    return array("f", [float(place == number) for number in range(dimensions)])


class FruitEmbeddings:
    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.asked: list[list[str]] = []

    async def embed(self, texts: list[str]) -> list[array[float]]:
        self.asked.append(texts)
        return [vector_of(text, self.dimensions) for text in texts]


class Embedders:
    def __init__(self) -> None:
        self.models = {"hashing": FruitEmbeddings(4), "wide": FruitEmbeddings(5)}

    def get(self, name: str) -> FruitEmbeddings:
        if name not in self.models:
            raise RunFailure(f"There is no embedding model '{name}'.")
        return self.models[name]


class Scene:
    def __init__(self, database: Database, cache_bytes: int = 10**9) -> None:
        self.database = database
        self.clock = PlayedClock()
        self.embedders = Embedders()
        self.search = VectorSearch(database, self.embedders, self.clock, cache_bytes)

    async def fill(self, store_id: str, name: str, *texts: str, dimensions: int = 4, **attributes: Any) -> None:
        """Put a file into a store, read as these chunks."""
        await make_file(self.database, f"file-{name}", f"{name}.txt")
        await put_in(self.database, store_id, f"file-{name}", attributes=attributes)
        await self.read_waiting(*texts, dimensions=dimensions)

    async def read_waiting(self, *texts: str, dimensions: int = 4) -> None:
        claim = await self.database.run(claim_file, "worker", 1e12)
        assert claim is not None
        chunks = [
            StoredChunk(number, number + 1, 3, text, vector_of(text, dimensions).tobytes(), pack_terms(text))
            for number, text in enumerate(texts)
        ]
        await self.database.run(append_chunks, claim.hold, chunks)
        await self.database.run(complete_file, claim.hold, 10)

    async def find(
        self, *queries: str, stores: tuple[str, ...] = ("vs_1",), limit: int = 10, **options: Any
    ) -> list[Hit]:
        filters = options.pop("filters", None)
        return await self.search.search(
            stores,
            queries,
            limit=limit,
            project_id=options.pop("project_id", PROJECT),
            filters=None if filters is None else read_filter(filters),
            ranking=options.pop("ranking", MEANING),
        )


def texts(hits: list[Hit]) -> list[str]:
    return [hit.text for hit in hits if hit.score > 0.5]


def test_keys_of_chunks() -> None:
    for place in [(1, 1, 0), (2**31 - 1, 4095, 2**20 - 1), (77, 5, 1234)]:
        assert place_of(key_of(*place)) == place
        assert key_of(*place) < 2**63


def test_what_is_found_and_how_it_is_shown(database: Database, run: Run) -> None:
    async def story() -> None:
        scene = Scene(database)
        await make_store(database)
        assert await scene.find("figs") == []
        await scene.fill("vs_1", "a", "about apples", "about pears", kind="fruit", year=2024)
        await scene.fill("vs_1", "b", "about figs and 한국어")
        (hit,) = await scene.find("where are pears?", limit=1)
        assert hit == Hit(
            file_id="file-a",
            filename="a.txt",
            score=1.0,
            attributes={"kind": "fruit", "year": 2024},
            text="about pears",
            page=2,
            tokens=3,
            vector_store_id="vs_1",
        )
        assert texts(await scene.find("figs", "apples")) == ["about apples", "about figs and 한국어"]
        assert (await scene.find("한국어", ranking=Ranking(0.0, 1.0)))[0].text == "about figs and 한국어"
        strict = await scene.find("plums", ranking=Ranking(1.0, 0.0, 0.5))
        assert strict == []

    run(story())


def test_changes_are_seen_by_the_next_search(database: Database, run: Run) -> None:
    async def story() -> None:
        scene = Scene(database)
        await make_store(database)
        await scene.fill("vs_1", "a", "apples one")
        assert texts(await scene.find("apples")) == ["apples one"]
        await scene.fill("vs_1", "b", "apples two", tag="x")
        assert texts(await scene.find("apples")) == ["apples one", "apples two"]
        only_y = {"type": "eq", "key": "tag", "value": "y"}
        assert await scene.find("apples", filters=only_y) == []
        await database.run(update_attributes, "file-b", "vs_1", PROJECT, {"tag": "y"})
        assert texts(await scene.find("apples", filters=only_y)) == ["apples two"]
        await database.run(remove_store_file, "file-a", "vs_1", PROJECT, NOW)
        assert texts(await scene.find("apples")) == ["apples two"]
        await database.run(rebuild_store, "vs_1", PROJECT, "wide", NOW)
        assert await scene.find("apples") == []
        await scene.read_waiting("apples three", dimensions=5)
        assert texts(await scene.find("apples")) == ["apples three"]

    run(story())


def test_several_stores_are_searched_together(database: Database, run: Run) -> None:
    async def story() -> None:
        scene = Scene(database)
        await make_store(database)
        await make_store(database, "vs_2")
        await make_store(database, "vs_3", embedder="wide")
        await scene.fill("vs_1", "a", "apples")
        await put_in(database, "vs_2", "file-a")
        await scene.read_waiting("apples")
        await put_in(database, "vs_3", "file-a")
        await scene.read_waiting("apples in three", dimensions=5)
        found = await scene.find("apples", stores=("vs_1", "vs_2", "vs_3", "vs_none"))
        assert [(hit.file_id, hit.vector_store_id) for hit in found] == [
            ("file-a", "vs_1"),
            ("file-a", "vs_2"),
            ("file-a", "vs_3"),
        ]
        assert await scene.find("apples", project_id="proj_other") == []
        await database.run(delete_vector_store, "vs_1", PROJECT, NOW)
        assert len(await scene.find("apples", stores=("vs_1", "vs_2"))) == 1

    run(story())


def test_memory_is_bounded(database: Database, run: Run) -> None:
    async def story() -> None:
        scene = Scene(database, cache_bytes=1)
        for number in range(3):
            await make_store(database, f"vs_{number}")
            await scene.fill(f"vs_{number}", str(number), f"apples {number}")
        for _ in range(2):
            for number in range(3):
                assert texts(await scene.find("apples", stores=(f"vs_{number}",))) == [f"apples {number}"]
        loaded: LoadedStores = scene.search._loaded
        assert list(loaded._stores) == ["vs_2"]

    run(story())


def test_vectors_of_another_length_are_left_out_and_a_changed_model_is_named(database: Database, run: Run) -> None:
    async def story() -> None:
        scene = Scene(database)
        await make_store(database)
        await scene.fill("vs_1", "a", "apples one")
        await scene.fill("vs_1", "b", "apples two", dimensions=7)
        scene.embedders.models["hashing"] = FruitEmbeddings(7)
        assert texts(await scene.find("apples")) == ["apples two"]
        scene.embedders.models["hashing"] = FruitEmbeddings(4)
        with pytest.raises(RunFailure, match="rebuild"):
            await scene.find("apples")

    run(story())


def test_an_expired_store_is_refused_and_a_search_keeps_one_alive(database: Database, run: Run) -> None:
    async def story() -> None:
        scene = Scene(database)
        await make_store(database, days=1)
        await scene.fill("vs_1", "a", "apples")
        for _ in range(3):
            scene.clock.skip(86_000)
            assert texts(await scene.find("apples")) == ["apples"]
        assert (await store_of(database)).last_active_at == scene.clock.now()
        scene.clock.skip(86_400)
        with pytest.raises(InvalidRequest, match="has expired"):
            await scene.find("apples")

    run(story())
