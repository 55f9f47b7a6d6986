"""Measures file search: `python bench/search.py [--quick] [--fts5] [--write]`.

How well it finds, on questions made from what ships with Python and on Korean ones; how fast it searches 100,000
chunks, beside a plain numpy scan of the same vectors in turns with it; how fast the built-in embedder is. With
`--write` the tables go into bench/RESULTS.md, between their own two marks at its end.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # the scan and the index alike; read when numpy is loaded

import argparse
import asyncio
import datetime as dt
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bench.korean import PAIRS  # noqa: E402
from bench.python_questions import Pair, documentation, pairs_of_docstrings  # noqa: E402
from bench.table import percentile  # noqa: E402
from perdure.models.cuts import TokenCuts  # noqa: E402
from perdure.models.embeddings import DIMENSIONS, Embedder  # noqa: E402
from perdure.search.chunk import chunk_passages  # noqa: E402
from perdure.search.index import Row, StoreIndex  # noqa: E402
from perdure.search.passages import Passage  # noqa: E402
from perdure.search.rank import CANDIDATES, Ranking, rank  # noqa: E402
from perdure.search.terms import pack_terms, terms_of  # noqa: E402

RESULTS = HERE / "RESULTS.md"
BEGIN, END = "<!-- search: begin -->", "<!-- search: end -->"
Matrix = NDArray[np.float32]
FILES, ALLOWED_EVERY = 1000, 10


class Size(NamedTuple):
    """How much is measured."""

    pairs: int
    chunks: int
    searches: int
    embedded: int


FULL, QUICK = Size(687, 100_000, 300, 60), Size(120, 20_000, 60, 12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a look, no result")
    parser.add_argument("--fts5", action="store_true", help="the same words in SQLite's own index, once")
    parser.add_argument("--write", action="store_true", help="write bench/RESULTS.md too")
    given = parser.parse_args()
    size = QUICK if given.quick else FULL
    page = asyncio.run(_measured(size, fts5=given.fts5))
    print(page)
    if given.write:
        write_section(page)


def write_section(page: str) -> None:
    old = RESULTS.read_text() if RESULTS.exists() else ""
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    RESULTS.write_text(f"{before.rstrip()}\n\n{BEGIN}\n{page}\n{END}\n{after.lstrip()}")


async def _measured(size: Size, *, fts5: bool) -> str:
    embedder = Embedder()
    try:
        rate = await _embedding_rate(embedder, size.embedded)
        pairs = pairs_of_docstrings()[: size.pairs]
        korean = [Pair(question, passage) for passage, question in PAIRS]
        python_quality, vectors = await _quality(embedder, pairs)
        korean_quality, _ = await _quality(embedder, korean)
    finally:
        await embedder.close()
    speed = _speed(size, pairs, vectors, fts5=fts5)
    today = dt.datetime.now(tz=dt.UTC).date()
    return f"""## File search

{today}, `python {" ".join(["bench/search.py", *sys.argv[1:]])}`, {os.cpu_count()} cores shared with other work, one \
thread for numpy, Python {sys.version.split()[0]}, numpy {np.__version__}.

**Found among the first five** (recall@5). *Python*: {len(pairs)} questions, each the first sentence of a docstring of \
the standard library, as it ships with Python; the passage to find is the rest of that docstring, without the sentence \
and without the name, among all {len(pairs)} passages. *Korean*: {len(korean)} questions to a shop's help pages, \
written for this bench in other words than the passages.

{_quality_table(python_quality, korean_quality)}

**A search among {size.chunks:,} chunks** of 512 dimensions in {FILES} files, 50 results wanted, embedding of the \
question not included; the filter lets one file in {ALLOWED_EVERY} through. The floor is a plain numpy scan of the \
same vectors (matrix times vector, then `argpartition`), in turns with the index. Vectors are mixtures of two real \
ones and some noise, texts six real docstrings each.

{speed}

**Embedding**: {rate}."""


async def _embedding_rate(embedder: Embedder, count: int) -> str:
    chunks = chunk_passages([Passage(documentation())], 800, 400, TokenCuts())[:count]
    await embedder.embed(["warm"])
    began = time.perf_counter()
    await embedder.embed([chunk.text for chunk in chunks])
    seconds = time.perf_counter() - began
    tokens = sum(chunk.tokens for chunk in chunks)
    return (
        f"{len(chunks) / seconds:.1f} chunks of 800 tokens a second by the built-in model on one core, "
        f"{tokens / seconds:,.0f} tokens a second"
    )


Quality = dict[str, float]


async def _quality(embedder: Embedder, pairs: list[Pair]) -> tuple[Quality, Matrix]:
    """Return the share of questions whose passage is among the first five, by each way; and the passages' vectors."""
    passages = (await embedder.embed([pair.passage for pair in pairs])).vectors
    questions = (await embedder.embed([pair.question for pair in pairs])).vectors
    rows = [
        Row(key, vector.tobytes(), pack_terms(pair.passage))
        for key, (vector, pair) in enumerate(zip(passages, pairs, strict=True))
    ]
    index = StoreIndex(DIMENSIONS, [("all", rows)])
    ways: dict[str, Callable[[int], list[int]]] = {
        "vectors alone": lambda at: [hit.key for hit in index.vector_search(questions[at], 5)],
        "BM25 alone": lambda at: [hit.key for hit in index.word_search(terms_of(pairs[at].question), 5)],
        "both by reciprocal rank": lambda at: _reciprocal(index, questions[at], terms_of(pairs[at].question)),
    }
    for weight in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8):
        ranking = Ranking(weight, 1 - weight)
        ways[f"hybrid, {weight:.1f} for meaning"] = lambda at, ranking=ranking: [  # type: ignore[misc]
            one.key
            for one in rank(index.candidates(questions[at], terms_of(pairs[at].question), CANDIDATES), ranking, 5)
        ]
    found = {name: sum(at in way(at) for at in range(len(pairs))) / len(pairs) for name, way in ways.items()}
    return found, np.array([np.frombuffer(vector, np.float32) for vector in passages])


def _reciprocal(index: StoreIndex, question: object, terms: list[str]) -> list[int]:
    """The usual fusion, for comparison: the sum of 1 / (60 + rank)."""
    sums: dict[int, float] = {}
    for hits in (index.vector_search(question, CANDIDATES), index.word_search(terms, CANDIDATES)):  # type: ignore[arg-type]
        for place, hit in enumerate(hits, 1):
            sums[hit.key] = sums.get(hit.key, 0.0) + 1 / (60 + place)
    return sorted(sums, key=lambda key: -sums[key])[:5]


def _quality_table(python: Quality, korean: Quality) -> str:
    default = Ranking()
    lines = ["| way | Python | Korean |", "|---|---|---|"]
    for name, share in python.items():
        shown = f"**{name}** (the default)" if f"{default.embedding_weight:.1f} for" in name else name
        lines.append(f"| {shown} | {share:.3f} | {korean[name]:.3f} |")
    return "\n".join(lines)


def _speed(size: Size, pairs: list[Pair], real: Matrix, *, fts5: bool) -> str:
    random = np.random.default_rng(7)
    vectors, texts, packed = _many(size.chunks, pairs, real, random)
    per_file = size.chunks // FILES
    files = [
        (
            f"file-{number}",
            [
                Row(key, vectors[key].tobytes(), packed[texts[key]])
                for key in range(number * per_file, (number + 1) * per_file)
            ],
        )
        for number in range(FILES)
    ]
    began = time.perf_counter()
    index = StoreIndex(DIMENSIONS, files)
    built = time.perf_counter() - began
    questions = _unit(real[random.integers(0, len(real), size.searches)] + random.normal(0, 0.02, (size.searches, 512)))
    terms = [terms_of(pairs[at % len(pairs)].question) for at in range(size.searches)]
    allowed = {f"file-{number}" for number in range(0, FILES, ALLOWED_EVERY)}
    rows = np.concatenate([np.arange(n * per_file, (n + 1) * per_file) for n in range(0, FILES, ALLOWED_EVERY)])
    table = _in_turns(
        size.searches,
        {
            "numpy scan": lambda at: _scan(vectors, questions[at]),
            "index: meaning": lambda at: index.vector_search(questions[at], 50),
            "index: words (BM25)": lambda at: index.word_search(terms[at], 50),
            "index: both and their fusion": lambda at: rank(
                index.candidates(questions[at], terms[at], CANDIDATES), Ranking(), 50
            ),
            "numpy scan, filtered": lambda at: _scan(vectors[rows], questions[at]),
            "index: both, filtered": lambda at: rank(
                index.candidates(questions[at], terms[at], CANDIDATES, allowed), Ranking(), 50
            ),
        },
    )
    recall = np.mean([_overlap(index, vectors, question) for question in questions])
    memory = index.nbytes / vectors.nbytes
    lines = [
        table,
        "",
        (
            f"The 50 nearest by the index are those of the full scan: {recall:.4f} of them. Memory: {memory:.2f} times "
            f"the vectors ({index.nbytes / 1e6:,.0f} MB), words included. Built from rows in {built:.1f} s."
        ),
    ]
    if fts5:
        lines.append(_fts5(pairs, texts, terms))
    return "\n".join(lines)


def _many(
    count: int, pairs: list[Pair], real: Matrix, random: np.random.Generator
) -> tuple[Matrix, NDArray[np.int64], list[bytes]]:
    """Return vectors, and which of some thousand texts each chunk has, and the packed terms of these texts."""
    one, other = (real[random.integers(0, len(real), count)] for _ in range(2))
    share = random.random((count, 1), dtype=np.float32)
    vectors = _unit(share * one + (1 - share) * other + random.normal(0, 0.02, one.shape).astype(np.float32))
    packed = [pack_terms(text) for text in _mixed_texts(pairs, random)]
    return vectors, random.integers(0, len(packed), count), packed


def _mixed_texts(pairs: list[Pair], random: np.random.Generator) -> list[str]:
    return ["\n".join(pairs[at].passage for at in random.integers(0, len(pairs), 6)) for _ in range(10 * len(pairs))]


def _unit(vectors: NDArray[np.floating]) -> Matrix:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def _scan(vectors: Matrix, question: Matrix) -> NDArray[np.int64]:
    scores = vectors @ question
    best = np.argpartition(scores, len(scores) - 50)[len(scores) - 50 :]
    ordered: NDArray[np.int64] = best[np.argsort(-scores[best])]
    return ordered


def _overlap(index: StoreIndex, vectors: Matrix, question: Matrix) -> float:
    found = {hit.key for hit in index.vector_search(question.tolist(), 50)}
    return len(found & set(_scan(vectors, question).tolist())) / 50


def _in_turns(rounds: int, ways: dict[str, Callable[[int], object]]) -> str:
    """Return a table of durations; each round does every way once, so that a busy moment hits them all."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for at in range(rounds):
        for name, way in ways.items():
            began = time.perf_counter()
            way(at)
            taken[name].append(time.perf_counter() - began)
    lines = ["| search | p50 | p99 | of the scan's p50 |", "|---|---|---|---|"]
    for name, seconds in taken.items():
        floor = taken["numpy scan, filtered" if "filtered" in name else "numpy scan"]
        ratio = median(seconds) / median(floor)
        p99 = percentile(seconds, 99)
        lines.append(f"| {name} | {median(seconds) * 1000:.1f} ms | {p99 * 1000:.1f} ms | {ratio:.2f} |")
    return "\n".join(lines)


def _fts5(pairs: list[Pair], texts: NDArray[np.int64], terms: list[list[str]]) -> str:
    """The same number of texts in SQLite's index, in memory; the same questions, any of their words."""
    bodies = _mixed_texts(pairs, np.random.default_rng(7))
    database = sqlite3.connect(":memory:")
    database.execute("CREATE VIRTUAL TABLE chunks USING fts5(body, content='', tokenize='unicode61')")
    began = time.perf_counter()
    database.executemany(
        "INSERT INTO chunks (rowid, body) VALUES (?, ?)", ((n, bodies[t]) for n, t in enumerate(texts))
    )
    database.commit()
    built = time.perf_counter() - began
    taken = []
    for one in terms[:60]:
        asked = " OR ".join(f'"{term}"' for term in dict.fromkeys(one))
        began = time.perf_counter()
        database.execute("SELECT rowid FROM chunks WHERE chunks MATCH ? ORDER BY rank LIMIT 50", [asked]).fetchall()
        taken.append(time.perf_counter() - began)
    return (
        f"\nSQLite {sqlite3.sqlite_version} FTS5 over the same texts: p50 {median(taken) * 1000:.0f} ms, "
        f"p99 {percentile(taken, 99) * 1000:.0f} ms; built in {built:.0f} s."
    )


if __name__ == "__main__":
    main()
