"""The index of a store, against the plain way to find the same."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from perdure.search.index import K1, B, Candidate, Hit, Row, StoreIndex
from perdure.search.segment import TURNED_FROM, Floats
from perdure.search.terms import hashes_of, pack_terms, term_hash, terms_of, unpack_terms

DIMENSIONS = 128
WORDS = [f"word{n}" for n in range(300)]
File = tuple[str, list[Row]]


def unit(random: np.random.Generator, count: int) -> Floats:
    # Directions of falling weight, as real embeddings have them.
    vectors = random.normal(size=(count, DIMENSIONS)) * (1 / np.sqrt(1 + np.arange(DIMENSIONS)))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def some_files(count: int, each: int, seed: int = 1) -> list[File]:
    random = np.random.default_rng(seed)
    vectors = unit(random, count * each)
    texts = [" ".join(WORDS[int(w)] for w in random.zipf(1.3, 30) % 300) for _ in range(count * each)]
    rows = [Row(key, vectors[key].tobytes(), pack_terms(text)) for key, text in enumerate(texts)]
    return [(f"file-{n}", rows[n * each : (n + 1) * each]) for n in range(count)]


def by_scan(files: list[File], question: Floats, k: int) -> list[int]:
    rows = [row for _, its in files for row in its]
    scores = np.array([np.frombuffer(row.vector, np.float32) @ question for row in rows])
    return [rows[at].key for at in np.argsort(-scores, kind="stable")[:k]]


def bm25(files: list[File], terms: list[str]) -> dict[int, float]:
    """BM25 as textbooks have it, over rows."""
    counts = {row.key: unpack_terms(row.terms) for _, its in files for row in its}
    mean = sum(sum(one.values()) for one in counts.values()) / len(counts)
    scores = dict.fromkeys(counts, 0.0)
    for term in hashes_of(terms):
        holding = sum(term in one for one in counts.values())
        weight = math.log(1 + (len(counts) - holding + 0.5) / (holding + 0.5))
        for key, one in counts.items():
            often = one.get(term, 0)
            length = sum(one.values()) / mean
            scores[key] += weight * often * (K1 + 1) / (often + K1 * (1 - B + B * length))
    return scores


@pytest.mark.parametrize(("count", "each"), [(20, 7), (3, TURNED_FROM // 2)])
def test_the_nearest_are_those_of_a_scan(count: int, each: int) -> None:
    files = some_files(count, each)
    index = StoreIndex(DIMENSIONS, files)
    for question in unit(np.random.default_rng(2), 20):
        found = index.vector_search(question.tolist(), 10)
        assert [hit.key for hit in found] == by_scan(files, question, 10)
        assert all(
            hit.score == pytest.approx(np.frombuffer(row.vector, np.float32) @ question, abs=1e-6)
            for hit in found
            for name, rows in files
            for row in rows
            if row.key == hit.key and name == hit.file
        )


@pytest.mark.parametrize(("count", "each"), [(10, 9), (3, TURNED_FROM // 2)])
def test_words_are_found_by_bm25_exactly(count: int, each: int) -> None:
    files = some_files(count, each)
    index = StoreIndex(DIMENSIONS, files)
    random = np.random.default_rng(3)
    for _ in range(20):
        terms = [WORDS[int(w)] for w in random.integers(20, 300, 6)]
        expected = bm25(files, terms)
        found = index.word_search(terms, 8)
        assert [hit.score for hit in found] == pytest.approx(sorted(expected.values(), reverse=True)[: len(found)])
        assert [hit.score for hit in found] == pytest.approx([expected[hit.key] for hit in found])


def test_a_word_that_stands_everywhere_is_left_out_where_others_are_rarer() -> None:
    texts = ["the cat", "the dog", "the bird", "the fish"]
    rows = [Row(n, bytes(4 * DIMENSIONS), pack_terms(text)) for n, text in enumerate(texts)]
    index = StoreIndex(DIMENSIONS, [("file", rows)])
    assert [hit.key for hit in index.word_search(["the", "dog"], 4)] == [1]
    assert len(index.word_search(["the"], 4)) == 4


def test_both_scores_of_a_candidate_are_exact() -> None:
    files = some_files(10, 20)
    index = StoreIndex(DIMENSIONS, files)
    question = unit(np.random.default_rng(4), 1)[0]
    terms = ["word33", "word120", "word207"]
    scores = bm25(files, terms)
    found = index.candidates(question.tolist(), terms, 15)
    nearest, wordiest = index.vector_search(question.tolist(), 15), index.word_search(terms, 15)
    assert {one.key for one in found} == {hit.key for hit in [*nearest, *wordiest]}
    vectors = {row.key: np.frombuffer(row.vector, np.float32) for _, rows in files for row in rows}
    shares = {one.key: one.words for one in found}
    assert all(one.cosine == pytest.approx(vectors[one.key] @ question, abs=1e-6) for one in found)
    assert all(0 <= share <= 1 for share in shares.values())
    best = max(shares, key=lambda key: shares[key])
    most = scores[best] / shares[best]  # what a chunk could score at most, for this question
    assert all(share == pytest.approx(scores[key] / most, abs=1e-5) for key, share in shares.items())


def test_only_allowed_files_are_searched() -> None:
    files = some_files(40, 5)
    index = StoreIndex(DIMENSIONS, files)
    question = unit(np.random.default_rng(5), 1)[0]
    for allowed in ({"file-3"}, {f"file-{n}" for n in range(0, 40, 2)}, {"file-3", "no such file"}):
        some = [one for one in files if one[0] in allowed]
        found = index.vector_search(question.tolist(), 50, allowed)
        assert [hit.key for hit in found] == by_scan(some, question, 50)
        assert {hit.file for hit in index.word_search(["word1", "word2"], 50, allowed)} <= allowed
        assert {one.file for one in index.candidates(question.tolist(), ["word1"], 50, allowed)} <= allowed
    assert index.vector_search(question.tolist(), 5, set()) == index.word_search(["word1"], 5, set()) == []


def test_files_come_and_go_as_if_they_had_been_loaded_so() -> None:
    files = some_files(120, 11)
    grown = StoreIndex(DIMENSIONS)
    for name, rows in files:
        grown.add_file(name, rows)
    for n in (3, 50, 119, 3):
        grown.remove_file(f"file-{n}")
    grown.remove_file("no such file")
    grown.add_file("file-7", files[8][1])  # in place of what it was
    left = [(name, rows) for name, rows in files if name not in {"file-3", "file-50", "file-119", "file-7"}]
    left.append(("file-7", files[8][1]))
    loaded = StoreIndex(DIMENSIONS, left)
    assert grown.files == loaded.files == {name for name, _ in left}
    assert grown.chunks == loaded.chunks == 117 * 11
    for question in unit(np.random.default_rng(6), 10):
        mine, its = (index.vector_search(question.tolist(), 12) for index in (grown, loaded))
        assert [hit.score for hit in mine] == pytest.approx([hit.score for hit in its], abs=1e-6)
    assert not [hit for hit in grown.word_search(WORDS, 2000) if hit.file in {"file-3", "file-50", "file-119"}]


def test_removing_everything_leaves_nothing() -> None:
    files = some_files(30, 4)
    index = StoreIndex(DIMENSIONS, files)
    full = index.nbytes
    for name, _ in files:
        index.remove_file(name)
    assert (index.chunks, index.nbytes, index.files) == (0, 0, set())
    assert full > 30 * 4 * DIMENSIONS * 4
    assert index.candidates([0.0] * DIMENSIONS, ["word1"], 5) == []


def test_memory_stays_below_twice_the_vectors() -> None:
    dimensions, count = 512, 4500
    random = np.random.default_rng(8)
    vectors = random.normal(size=(count, dimensions)).astype(np.float32)
    text = ["".join(chr(97 + n // 26**place % 26) for place in range(4)) for n in range(20_000)]
    rows = [
        Row(key, vectors[key].tobytes(), pack_terms(" ".join(text[int(n)] for n in random.integers(0, 20_000, 400))))
        for key in range(count)
    ]
    index = StoreIndex(dimensions, [("file", rows)])
    assert index.nbytes < 2 * vectors.nbytes, f"{index.nbytes / vectors.nbytes:.2f} times the vectors"


def test_searches_go_on_while_files_come_and_go() -> None:
    files = some_files(60, 20)
    index = StoreIndex(DIMENSIONS, files[:20])
    question = unit(np.random.default_rng(9), 1)[0].tolist()
    steady = {row.key for _, rows in files[:20] for row in rows}
    done = threading.Event()
    wrong: list[object] = []

    def search() -> None:
        while not done.is_set():
            found = index.candidates(question, ["word1", "word9"], 1200)
            if not steady <= {one.key for one in found}:
                wrong.append(found)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        for name, rows in files[20:]:
            index.add_file(name, rows)
        for name, _ in files[20:]:
            index.remove_file(name)
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert index.files == {name for name, _ in files[:20]}


def test_an_empty_store_and_an_empty_file() -> None:
    index = StoreIndex(DIMENSIONS)
    assert index.vector_search([0.0] * DIMENSIONS, 5) == index.word_search(["a"], 5) == []
    index.add_file("empty", [])
    assert index.files == {"empty"}
    assert index.candidates([0.0] * DIMENSIONS, [], 5) == []


def test_vectors_of_another_dimension_are_refused() -> None:
    with pytest.raises(ValueError, match="128 dimensions"):
        StoreIndex(DIMENSIONS).add_file("file", [Row(1, bytes(4 * 64), b"")])


def test_korean_is_found_inside_a_word() -> None:
    texts = ["환불은 14일 안에 됩니다", "배송은 이틀 걸립니다", "교환과 반품"]
    rows = [Row(n, bytes(4 * DIMENSIONS), pack_terms(text)) for n, text in enumerate(texts)]
    found = StoreIndex(DIMENSIONS, [("file", rows)]).word_search(terms_of("환불"), 3)
    assert [hit.key for hit in found] == [0]
    assert found == [Hit(0, "file", found[0].score)]
    assert term_hash("환불") in unpack_terms(rows[0].terms)
    assert isinstance(Candidate(1, "f", 0.5, 0.5), Candidate)
