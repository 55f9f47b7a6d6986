"""A part of a vector store's index that never changes: vectors to scan, words to look up, 65,536 chunks at most.

Rules. Nothing is written after `build` but by making another segment. Vectors are kept once, turned so that their first
numbers say most (their principal axes): a scan reads only these, and the few best are then scored exactly, because
turning changes no product. A posting is three bytes: chunk and count, in order of terms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Places = NDArray[np.int64]
Mask = NDArray[np.bool_]

MOST_CHUNKS = 65_536
"""So that a chunk's place takes two bytes in a posting."""
TURNED_FROM = 4096
"""Chunks from which on turning pays: fewer are scanned in a millisecond as they are."""
SAMPLE = 20_000
"""Vectors that the axes are found from."""
HEAD = 4
"""The scan reads one in so many dimensions."""
HEAD_DIMENSIONS = 96
"""But not fewer than these."""


class Row(msgspec.Struct, frozen=True):
    """One chunk as its store keeps it: `vector` is float32, little-endian, of length one; `terms` from `pack_terms`."""

    key: int
    vector: bytes
    terms: bytes


class Postings(NamedTuple):
    """Where terms occur: chunks `places[starts[i]:starts[i + 1]]` hold `terms[i]`, `counts` times each."""

    terms: NDArray[np.uint32]
    starts: NDArray[np.int64]
    places: NDArray[np.uint16]
    counts: NDArray[np.uint8]


class Segment(NamedTuple):
    """Chunks in order of their places. `files` are numbers that the index gives out; `alive` marks what is not removed.

    `lengths` are numbers of terms; `head` and `tail` are the two parts of each vector, turned by `axes`.
    """

    keys: NDArray[np.int64]
    files: NDArray[np.int32]
    alive: Mask
    lengths: Floats
    axes: Floats | None
    head: Floats
    tail: Floats
    postings: Postings

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        own: list[NDArray[Any]] = [self.keys, self.files, self.alive, self.lengths, self.head, self.tail]
        arrays: list[NDArray[Any]] = [*own, *self.postings]
        return sum(array.nbytes for array in arrays) + (0 if self.axes is None else self.axes.nbytes)

    def turned(self, vector: Floats) -> Floats:
        """Return a vector of the question in this segment's axes."""
        return vector if self.axes is None else vector @ self.axes

    def scan(self, turned: Floats, places: Places | None) -> Floats:
        """Return the part of each cosine that the head gives: of all chunks, or of those at `places`."""
        head = self.head if places is None else self.head[places]
        scores: Floats = head @ turned[: self.head.shape[1]]
        return scores

    def cosines(self, turned: Floats, places: Places) -> Floats:
        """Return exact cosines."""
        width = self.head.shape[1]
        scores: Floats = self.head[places] @ turned[:width] + self.tail[places] @ turned[width:]
        return scores

    def posting(self, term: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
        """Return the places that hold a term, and how often."""
        terms, starts, places, counts = self.postings
        at = int(np.searchsorted(terms, np.uint32(term)))  # of the same kind: another would copy all terms
        if at == len(terms) or terms[at] != term:
            return places[:0], counts[:0]
        return places[starts[at] : starts[at + 1]], counts[starts[at] : starts[at + 1]]

    def vectors(self) -> Floats:
        """Return the vectors as they came, but for the last digit."""
        if self.axes is None:
            return self.head
        width = self.head.shape[1]
        vectors: Floats = self.head @ self.axes[:, :width].T + self.tail @ self.axes[:, width:].T
        return vectors


def build(files: Sequence[int], rows: Sequence[Row], dimensions: int) -> Segment:
    """Make a segment of rows; `files` has each row's number of its file. Raises ValueError for another dimension."""
    keys = np.fromiter((row.key for row in rows), np.int64, len(rows))
    joined = b"".join(row.vector for row in rows)
    if len(joined) != 4 * dimensions * len(rows):
        raise ValueError(f"vectors of {dimensions} dimensions were expected")
    vectors = np.frombuffer(joined, "<f4").reshape(len(rows), dimensions).astype(np.float32, copy=False)
    sizes = np.fromiter((len(row.terms) // 5 for row in rows), np.int64, len(rows))
    terms = np.frombuffer(b"".join(row.terms[: 4 * size] for row, size in zip(rows, sizes, strict=True)), "<u4")
    counts = np.frombuffer(b"".join(row.terms[4 * size :] for row, size in zip(rows, sizes, strict=True)), np.uint8)
    places = np.repeat(np.arange(len(rows), dtype=np.uint64), sizes)
    lengths = np.bincount(places.astype(np.int64), counts, len(rows)).astype(np.float32)
    return _segment(keys, np.asarray(files, np.int32), lengths, vectors, postings_of(terms, places, counts))


def merge(segments: Sequence[Segment]) -> Segment:
    """Make one segment of several; what was removed is left out."""
    terms, places, counts = [], [], []
    before = 0
    for segment in segments:
        old = segment.postings
        moved = np.cumsum(segment.alive, dtype=np.int64) - 1 + before
        kept = segment.alive[old.places]
        terms.append(np.repeat(old.terms, np.diff(old.starts))[kept])
        places.append(moved[old.places[kept]].astype(np.uint64))
        counts.append(old.counts[kept])
        before += int(segment.alive.sum())
    return _segment(
        np.concatenate([one.keys[one.alive] for one in segments]),
        np.concatenate([one.files[one.alive] for one in segments]),
        np.concatenate([one.lengths[one.alive] for one in segments]),
        np.concatenate([one.vectors()[one.alive] for one in segments]),
        postings_of(np.concatenate(terms), np.concatenate(places), np.concatenate(counts)),
    )


def postings_of(terms: NDArray[np.uint32], places: NDArray[np.uint64], counts: NDArray[np.uint8]) -> Postings:
    """Order triples by term, then place. One sort of whole numbers that hold all three is the fastest there is."""
    packed = (terms.astype(np.uint64) << np.uint64(24)) | (places << np.uint64(8)) | counts
    packed.sort()
    ordered = (packed >> np.uint64(24)).astype(np.uint32)
    firsts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(ordered) else np.arange(0)
    return Postings(
        ordered[firsts],
        np.append(firsts, len(ordered)).astype(np.int64),
        ((packed >> np.uint64(8)) & np.uint64(0xFFFF)).astype(np.uint16),
        (packed & np.uint64(0xFF)).astype(np.uint8),
    )


def _segment(
    keys: NDArray[np.int64], files: NDArray[np.int32], lengths: Floats, vectors: Floats, postings: Postings
) -> Segment:
    alive = np.ones(len(keys), np.bool_)
    dimensions = vectors.shape[1]
    width = max(HEAD_DIMENSIONS, dimensions // HEAD)
    if len(keys) < TURNED_FROM or width >= dimensions:
        nothing = np.zeros((len(keys), 0), np.float32)
        return Segment(keys, files, alive, lengths, None, np.ascontiguousarray(vectors), nothing, postings)
    axes = _principal_axes(vectors)
    return Segment(keys, files, alive, lengths, axes, vectors @ axes[:, :width], vectors @ axes[:, width:], postings)


def _principal_axes(vectors: Floats) -> Floats:
    """Return an orthonormal matrix whose first columns carry most of the vectors' length."""
    sample = vectors[:: max(1, len(vectors) // SAMPLE)].astype(np.float64)
    _, axes = np.linalg.eigh(sample.T @ sample)
    return np.ascontiguousarray(axes[:, ::-1]).astype(np.float32)
