"""Embedders by name: which one makes new stores, which one made the old ones; and the one without a model."""

from __future__ import annotations

import asyncio
from array import array
from typing import Any

import pytest

from perdure.errors import OperatorError
from perdure.models.embedders import EmbedderRegistry, builtin_embedder
from perdure.models.embeddings import DIMENSIONS, EMBEDDER_NAME, Embedder, EmbeddingFailure, embedder_installed
from perdure.models.hashing_embeddings import HASHING_DIMENSIONS, HashingEmbeddings
from perdure.settings import read_settings
from tests.raw_upstream import PlayedClock

UPSTREAMS = {"local": {"url": "http://127.0.0.1:1/v1"}, "other": {"url": "http://127.0.0.1:2/v1"}}
needs_embedder = pytest.mark.skipif(not embedder_installed(), reason="the extra `embeddings` is not installed")


def registry(embedder: Embedder | None = None, **settings: Any) -> EmbedderRegistry:
    return EmbedderRegistry(read_settings(**settings), PlayedClock(), embedder=embedder)


def hashed(*texts: str) -> list[array[float]]:
    return asyncio.run(HashingEmbeddings().embed(list(texts)))


def near(one: array[float], other: array[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("asked", "more", "name"),
    [
        ("builtin", {}, EMBEDDER_NAME),
        (EMBEDDER_NAME, {}, EMBEDDER_NAME),
        ("hashing", {"upstreams": UPSTREAMS}, "hashing"),
        ("embed-1", {"upstreams": UPSTREAMS}, "local/embed-1"),
        ("other/embed-1", {"upstreams": UPSTREAMS}, "other/embed-1"),
        ("BAAI/bge-m3", {"upstreams": UPSTREAMS}, "local/BAAI/bge-m3"),
        ("embed-1", {"upstream_url": "http://127.0.0.1:3/v1", "upstreams": UPSTREAMS}, "default/embed-1"),
        ("embed-1", {"upstreams": UPSTREAMS, "embedding_dimensions": 256}, "local/embed-1@256"),
    ],
)
def test_the_setting_names_one(asked: str, more: dict[str, Any], name: str) -> None:
    found = registry(embedding_model=asked, **more)
    assert found.default_name == name


def test_a_model_without_an_upstream_is_the_operators_mistake() -> None:
    with pytest.raises(OperatorError, match="PERDURE_EMBEDDING_MODEL is 'embed-1'"):
        registry(embedding_model="embed-1")


def test_a_store_keeps_its_embedder_when_the_setting_changes() -> None:
    found = registry(embedding_model="hashing", upstreams=UPSTREAMS)
    old = found.get("other/embed-1@64")
    assert (old.name, old.dimensions) == ("other/embed-1@64", 64)
    assert found.get("other/embed-1@64") is old
    assert found.default().name == "hashing"
    asyncio.run(found.close())


@pytest.mark.parametrize("name", ["gone/embed-1", "gone", "local/", ""])
def test_an_embedder_that_is_gone_is_named(name: str) -> None:
    with pytest.raises(EmbeddingFailure, match=f"'{name}', which is not configured here any more"):
        registry(upstreams=UPSTREAMS).get(name)


def test_a_builtin_that_is_not_installed_says_how_to_install_it() -> None:
    with pytest.raises(EmbeddingFailure, match="pip install 'perdure\\[files\\]'"):
        registry().default()


@needs_embedder
def test_the_builtin_one_cuts_what_is_too_long() -> None:
    async def run() -> list[array[float]]:
        embedder = builtin_embedder()
        found = registry(embedder).default()
        assert (found.name, found.dimensions) == (EMBEDDER_NAME, DIMENSIONS)
        vectors = await found.embed(["word " * 9000, "x" * 200_000, "", "환불은"])
        await found.close()
        assert embedder is not None
        await embedder.close()
        return vectors

    vectors = asyncio.run(run())
    assert all(near(vector, vector) == pytest.approx(1, abs=1e-5) for vector in vectors)


def test_hashing_finds_words_and_their_forms() -> None:
    question, same, form, other, nothing = hashed("refund policy", "Policy: REFUND!", "refunds", "weather", "…")
    assert len(question) == HASHING_DIMENSIONS
    assert near(question, same) == pytest.approx(1, abs=1e-6)
    assert near(question, form) > 0.3 > abs(near(question, other))
    assert not any(nothing)
    korean, sentence, unlike = hashed("환불", "환불은 언제", "배송이 늦다")
    assert near(korean, sentence) >= 0 >= near(korean, unlike) - 0.2


def test_hashing_never_changes() -> None:
    # Stores hold its vectors.
    vector = hashed("refund")[0]
    assert {at: round(number, 4) for at, number in enumerate(vector) if number} == EXPECTED


EXPECTED = {75: 0.4472, 88: -0.4472, 108: -0.4472, 163: -0.4472, 193: -0.4472}
