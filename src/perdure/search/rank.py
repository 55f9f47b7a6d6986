"""Candidates into results: one score from 0 to 1, best first.

The score is a weighted mean of two figures that mean something by themselves, and results stand in its order. Meaning:
the cosine, or 0 where it is below. Words: BM25 as a share of the most that this question could score anywhere, so that
0.5 is "half of what the question's words weigh". Both are the same for a chunk whatever else is found with it, so that
a `score_threshold` means the same in every store of one embedder. Reciprocal ranks, the usual fusion, mean nothing by
themselves and find less (docs/decisions/0015-how-scores-are-made.md has the figures).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:  # it brings numpy
    from perdure.search.found import Candidate

EMBEDDING_WEIGHT = 0.5
TEXT_WEIGHT = 0.5
CANDIDATES = 100
"""How many of the best by either search are worth a look, at least."""


class Ranking(msgspec.Struct, frozen=True):
    """How candidates are scored, and which score a result needs at least. The weights add up to 1."""

    embedding_weight: float = EMBEDDING_WEIGHT
    text_weight: float = TEXT_WEIGHT
    threshold: float = 0.0


class Ranked(msgspec.Struct, frozen=True):
    """A result: its chunk, its file, its score from 0 to 1."""

    key: int
    file: str
    score: float


def ranking_of(
    ranker: str | None = None, threshold: float | None = None, weights: tuple[float, float] | None = None
) -> Ranking:
    """Return the ranking that options ask for; None is what was not given.

    `none` goes by meaning alone. All named rankers are this one: the hosted ones were never published. `weights` are
    those of embedding and text; both 0 counts as not given.
    """
    least = threshold or 0.0
    if weights is not None and sum(weights) > 0:
        return Ranking(weights[0] / sum(weights), weights[1] / sum(weights), least)
    return Ranking(1.0, 0.0, least) if ranker == "none" else Ranking(threshold=least)


def weights_of(hybrid_search: dict[str, Any] | None) -> tuple[float, float] | None:
    """Return the weights inside a tool's `hybrid_search`, unchecked as clients send it; None for anything else."""
    given = hybrid_search or {}
    meaning, words = given.get("embedding_weight"), given.get("text_weight")
    numbers = [one for one in (meaning, words) if isinstance(one, int | float) and 0 <= one < float("inf")]
    return (float(numbers[0]), float(numbers[1])) if len(numbers) == 2 else None  # noqa: PLR2004  # both


def rank(candidates: Iterable[Candidate], ranking: Ranking, most: int) -> list[Ranked]:
    """Return the best, best first; equal scores in order of their chunks."""
    scored = [
        Ranked(
            one.key,
            one.file,
            min(1.0, max(0.0, one.cosine) * ranking.embedding_weight + one.words * ranking.text_weight),
        )
        for one in candidates
    ]
    return _first(scored, ranking.threshold, most)


def rank_together(lists: Sequence[Sequence[Ranked]], most: int) -> list[Ranked]:
    """Return the best of several questions' results: a chunk that answers more than one has its best score."""
    best: dict[int, Ranked] = {}
    for one in (one for results in lists for one in results):
        known = best.get(one.key)
        if known is None or one.score > known.score:
            best[one.key] = one
    return _first(list(best.values()), 0.0, most)


def _first(scored: list[Ranked], threshold: float, most: int) -> list[Ranked]:
    kept = [one for one in scored if one.score >= threshold]
    return sorted(kept, key=lambda one: (-one.score, one.key))[:most]
