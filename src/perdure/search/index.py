"""The index of one vector store, in memory: vectors and words of all its chunks, searched in one pass.

Rules. The database is the truth; an index is made from its rows and may be dropped at any time. It is a list of
segments that never change: a search takes the list once and needs no lock, however much is added or removed meanwhile.
Whoever changes the list holds the lock and puts a new one in its place. Scores are exact: what is left out for speed is
only the look at chunks that can hardly be among the best.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from perdure.search.found import Candidate, Hit
from perdure.search.segment import MOST_CHUNKS, Floats, Mask, Places, Row, Segment, build, merge
from perdure.search.terms import hashes_of

__all__ = ["Candidate", "Hit", "Row", "StoreIndex"]

K1, B = 1.2, 0.75
"""Of BM25, as everybody has them."""
SAYS_NOTHING = 0.3
"""A term that occurs in more than this share of the chunks is left out, where others are rarer."""
LOOKED_AT = 400
"""Chunks whose exact cosine is found, of each segment: the best by the scan of its head."""
LONG_POSTING = 1024
"""Chunks that hold a term from which on a look whether the term is needed costs less than the term."""
SLACK = 1e-3
"""More than the rounding of single precision."""
TIER = 8
"""So many segments of a size are made one."""
GATHERED = 0.25
"""Where a filter lets through less than this share, its chunks are picked out before the scan, not after it."""


class _State(NamedTuple):
    """What a search takes hold of. `next_number` is above every file's number, removed ones included."""

    segments: tuple[Segment, ...]
    numbers: dict[str, int]
    names: dict[int, str]
    next_number: int


class _Words(NamedTuple):
    """The question's terms as the store weighs them."""

    terms: list[int]
    weights: list[float]
    mean_length: float

    @property
    def most(self) -> float:
        """More than any chunk can score: each term as if nothing but it stood there."""
        return sum(self.weights) * (K1 + 1)


class StoreIndex:
    """Chunks of one store. Safe to search in any thread while another adds or removes files.

    `files` are the store's files with their chunks; `dimensions` is that of its vectors. Raises ValueError for vectors
    of another dimension.
    """

    def __init__(self, dimensions: int, files: Iterable[tuple[str, Sequence[Row]]] = ()) -> None:
        self._dimensions = dimensions
        self._changing = threading.Lock()
        self._state = _State((), {}, {}, 0)
        self._load(files)

    @property
    def chunks(self) -> int:
        """How many can be found."""
        return sum(int(segment.alive.sum()) for segment in self._state.segments)

    @property
    def nbytes(self) -> int:
        """Bytes in memory, all but the names of files."""
        return sum(segment.nbytes for segment in self._state.segments)

    @property
    def files(self) -> set[str]:
        """Files that can be found."""
        return set(self._state.numbers)

    def add_file(self, file: str, rows: Sequence[Row]) -> None:
        """Add a file, in place of one of its name. Takes longer now and then, when segments are made one."""
        with self._changing:
            state = _without(self._state, file)
            number = state.next_number
            parts = tuple(build([number] * len(part), part, self._dimensions) for part in _parts(rows))
            numbers, names = {**state.numbers, file: number}, {**state.names, number: file}
            self._state = _State(_settled(state.segments + parts), numbers, names, number + 1)

    def remove_file(self, file: str) -> None:
        """Remove a file, if it is there."""
        with self._changing:
            state = _without(self._state, file)
            self._state = state._replace(segments=_settled(state.segments))

    def vector_search(self, vector: Sequence[float], k: int, allowed: Collection[str] | None = None) -> list[Hit]:
        """Return the k chunks that are nearest to a vector of length one, best first, of allowed files only."""
        state = self._state
        question = np.asarray(vector, np.float32)
        found = [
            (number, place, cosine)
            for number, segment in enumerate(state.segments)
            for place, cosine in _nearest(segment, segment.turned(question), _mask(segment, state, allowed), k)
        ]
        return _best(state, found, k)

    def word_search(self, terms: Iterable[str], k: int, allowed: Collection[str] | None = None) -> list[Hit]:
        """Return the k chunks that hold most of the terms, by BM25, best first, of allowed files only."""
        state = self._state
        words = _weighed(state.segments, hashes_of(terms))
        found = []
        for number, segment in enumerate(state.segments):
            found += [(number, *one) for one in _wordiest(segment, words, _mask(segment, state, allowed), k)]
        return _best(state, found, k)

    def candidates(
        self, vector: Sequence[float], terms: Iterable[str], k: int, allowed: Collection[str] | None = None
    ) -> list[Candidate]:
        """Return the k best by either search, each with both scores, in no order."""
        state = self._state
        question = np.asarray(vector, np.float32)
        words = _weighed(state.segments, hashes_of(terms))
        near: list[tuple[int, int, float]] = []
        said: list[tuple[int, int, float]] = []
        for number, segment in enumerate(state.segments):
            mask = _mask(segment, state, allowed)
            near += [(number, *one) for one in _nearest(segment, segment.turned(question), mask, k)]
            said += [(number, *one) for one in _wordiest(segment, words, mask, k)]
        chosen = {(number, place) for found in (near, said) for number, place, _ in _cut(found, k)}
        return list(_both(state, question, words, chosen))

    def _load(self, files: Iterable[tuple[str, Sequence[Row]]]) -> None:
        """Make segments of many files at once, as large as they may be."""
        numbers: dict[str, int] = {}
        rows = ((numbers.setdefault(file, len(numbers)), row) for file, its in files for row in its)
        segments = []
        while part := list(islice(rows, MOST_CHUNKS)):
            segments.append(build([number for number, _ in part], [row for _, row in part], self._dimensions))
        names = {number: file for file, number in numbers.items()}
        self._state = _State(tuple(segments), numbers, names, len(numbers))


def _parts(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for first in range(0, len(rows), MOST_CHUNKS):
        yield rows[first : first + MOST_CHUNKS]


def _without(state: _State, file: str) -> _State:
    """Return the state after a file was removed."""
    number = state.numbers.get(file)
    if number is None:
        return state
    segments = tuple(
        segment._replace(alive=segment.alive & (segment.files != number))
        if np.any(segment.files == number)
        else segment
        for segment in state.segments
    )
    return _State(
        segments,
        {name: one for name, one in state.numbers.items() if name != file},
        {one: name for one, name in state.names.items() if one != number},
        state.next_number,
    )


def _settled(segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """Return the segments without those that are empty, half-empty ones made anew, many small ones made one."""
    kept = []
    for segment in segments:
        alive = int(segment.alive.sum())
        if alive:
            kept.append(merge([segment]) if alive < len(segment.alive) // 2 else segment)
    while True:
        together = _together(kept)
        if not together:
            return tuple(kept)
        merged = merge([kept[at] for at in together])
        kept = [segment for at, segment in enumerate(kept) if at not in together] + [merged]


def _together(segments: list[Segment]) -> list[int]:
    """Return the places of segments of about one size that are many enough to be made one."""
    tiers: dict[int, list[int]] = {}
    for at, segment in enumerate(segments):
        tiers.setdefault(len(segment.keys).bit_length() // 3, []).append(at)
    for members in tiers.values():
        if len(members) >= TIER:
            members.sort(key=lambda at: len(segments[at].keys))
            sizes = accumulate(len(segments[at].keys) for at in members)
            fitting = [at for at, size in zip(members, sizes, strict=True) if size <= MOST_CHUNKS]
            if len(fitting) > 1:
                return fitting
    return []


def _mask(segment: Segment, state: _State, allowed: Collection[str] | None) -> Mask:
    """Return which chunks may be found."""
    if allowed is None:
        return segment.alive
    lookup = np.zeros(state.next_number, np.bool_)
    lookup[[state.numbers[file] for file in allowed if file in state.numbers]] = True
    mask: Mask = lookup[segment.files] & segment.alive
    return mask


def _nearest(segment: Segment, turned: Floats, mask: Mask, k: int) -> list[tuple[int, float]]:
    """Return the k best places by exact cosine, of those that the scan of the heads puts first."""
    looked_at = max(LOOKED_AT, 3 * k)
    allowed = int(np.count_nonzero(mask))
    if allowed > GATHERED * len(mask):
        scan = segment.scan(turned, None)
        if allowed < len(mask):
            scan[~mask] = -np.inf
        first = _top(scan, min(looked_at, allowed))
    else:
        places = np.flatnonzero(mask)
        first = places[_top(segment.scan(turned, places), looked_at)]
    cosines = segment.cosines(turned, first)
    return [(int(first[at]), float(cosines[at])) for at in _top(cosines, k)]


def _top(scores: Floats, k: int) -> Places:
    """Return where the k greatest are, in no order."""
    if k >= len(scores):
        return np.arange(len(scores))
    return np.argpartition(scores, len(scores) - k)[len(scores) - k :]


def _weighed(segments: tuple[Segment, ...], terms: list[int]) -> _Words:
    """Return the terms that say something, with their inverse document frequency. Dead chunks count until they go."""
    total = sum(len(segment.keys) for segment in segments)
    length = sum(float(segment.lengths.sum()) for segment in segments)
    found = {term: sum(len(segment.posting(term)[0]) for segment in segments) for term in terms}
    rare = [term for term in terms if found[term] <= SAYS_NOTHING * total] or terms
    weights = [float(np.log1p((total - found[term] + 0.5) / (found[term] + 0.5))) for term in rare]
    return _Words(rare, weights, length / total if total else 1.0)


def _word_scores(segment: Segment, words: _Words, places: Places) -> Floats:
    """Return BM25 of the chunks at some places."""
    scores = np.zeros(len(places), np.float32)
    wanted = places.astype(np.uint16)  # as in the postings: another kind would copy each of them
    for term, weight in zip(words.terms, words.weights, strict=True):
        holding, counts = segment.posting(term)
        if len(holding):
            at = np.minimum(np.searchsorted(holding, wanted), len(holding) - 1)
            often = np.where(holding[at] == wanted, counts[at], 0).astype(np.float32)
            scores += _share(segment, words, places, often) * np.float32(weight)
    return scores


def _share(segment: Segment, words: _Words, places: Places | NDArray[np.uint16], often: Floats) -> Floats:
    """Return how much of a term's weight each chunk gets that holds it so often: from 0 to K1 + 1."""
    room = np.float32(K1 * B / words.mean_length) * segment.lengths[places] + np.float32(K1 * (1 - B))
    return np.asarray(often * np.float32(K1 + 1) / (often + room), np.float32)


def _wordiest(segment: Segment, words: _Words, mask: Mask, k: int) -> list[tuple[int, float]]:
    """Return the k best places by BM25.

    Rare terms first, over all that hold them. As soon as the terms that are left can lift no chunk that holds none of
    the former among the k best, they are looked up for chunks with a chance only (MaxScore): the result is the same.
    """
    scores = np.zeros(len(mask), np.float32)
    postings = [(*segment.posting(term), weight) for term, weight in zip(words.terms, words.weights, strict=True)]
    postings = sorted((one for one in postings if len(one[0])), key=lambda one: len(one[0]))
    left = sum(weight for _, _, weight in postings) * (K1 + 1)
    few = np.count_nonzero(mask) < GATHERED * len(mask)
    for places, counts, weight in postings:
        if len(places) > LONG_POSTING and _settles(scores, mask, left, k):
            break
        if few:
            held = mask[places]
            places, counts = places[held], counts[held]  # noqa: PLW2901  # the same posting, of what is allowed
        scores[places] += _share(segment, words, places, counts.astype(np.float32)) * np.float32(weight)
        left -= weight * (K1 + 1)
    scores *= mask
    chance = np.flatnonzero(scores)
    if len(chance) > k:
        least = np.partition(scores[chance], len(chance) - k)[len(chance) - k]
        chance = chance[scores[chance] >= least - max(left, 0.0) - SLACK]
    exact = _word_scores(segment, words, chance)
    return [(int(chance[at]), float(exact[at])) for at in _top(exact, k)]


def _settles(scores: Floats, mask: Mask, left: float, k: int) -> bool:
    """Whether k chunks score more already than the terms that are left can give to any other."""
    found = scores[(scores > 0) & mask]
    return len(found) >= k and float(np.partition(found, len(found) - k)[len(found) - k]) > left


def _cut(found: list[tuple[int, int, float]], k: int) -> list[tuple[int, int, float]]:
    return sorted(found, key=lambda one: -one[2])[:k]


def _best(state: _State, found: list[tuple[int, int, float]], k: int) -> list[Hit]:
    return [
        Hit(int(segment.keys[place]), state.names[int(segment.files[place])], score)
        for number, place, score in _cut(found, k)
        for segment in (state.segments[number],)
    ]


def _both(state: _State, question: Floats, words: _Words, chosen: set[tuple[int, int]]) -> Iterator[Candidate]:
    for number, segment in enumerate(state.segments):
        places = np.array(sorted(place for one, place in chosen if one == number), np.int64)
        cosines = segment.cosines(segment.turned(question), places).tolist()
        shares = (_word_scores(segment, words, places) / (words.most or 1.0)).tolist()
        keys, files = segment.keys[places].tolist(), segment.files[places].tolist()
        for key, file, cosine, share in zip(keys, files, cosines, shares, strict=True):
            yield Candidate(key, state.names[file], cosine, share)
