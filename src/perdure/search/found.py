"""What a search of an index finds. Apart from the index, so that who only ranks needs no numpy."""

from __future__ import annotations

import msgspec


class Hit(msgspec.Struct, frozen=True):
    """A chunk that was found, and its score: the cosine, or the sum of BM25."""

    key: int
    file: str
    score: float


class Candidate(msgspec.Struct, frozen=True):
    """A chunk with both its scores: `cosine` from -1 to 1, `words` the share of the question's weight, from 0 to 1."""

    key: int
    file: str
    cosine: float
    words: float
