"""Passages into chunks: so many tokens at most, so many of them shared with the chunk before.

Rules. Sizes hold exactly, by the tokenizer that is passed in. A chunk never crosses from one page to another, so that a
citation can name its page. It ends at the end of a paragraph, sentence or word where one lies in its last part, and
never inside a letter and its accents. What two chunks share is as many tokens as was asked for, less a part of a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Protocol

import msgspec

from perdure.search.passages import Passage

DEFAULT_MAX_TOKENS = 800
DEFAULT_OVERLAP_TOKENS = 400
"""What the hosted server gave for `auto`."""

LAST_PART = 0.2
"""How much of a chunk may be given up so that it ends well."""
_WINDOW_CHARACTERS = 8
"""Characters a token that are shown to the tokenizer at first; more where it takes them all."""
_ENDS = (
    re.compile(r"\n\s*\n\s*"),
    re.compile("(?<=[.!?\u3002\uff01\uff1f])[\"'\u201d\u2019)\\]]*\\s+|(?<=[\u3002\uff01\uff1f])|\\n\\s*"),
    re.compile(r"\s+"),
)
_JOINERS = {"\u200d", "\ufe0f", "\ufe0e"}


class Tokenizer(Protocol):
    """What is asked of a tokenizer. Called in any thread."""

    def count(self, texts: list[str]) -> list[int]:
        """Return the tokens of each text."""
        ...

    def truncate(self, text: str, max_tokens: int) -> str:
        """Return the longest beginning of a text that has at most so many tokens and ends between two code points."""
        ...


class Chunk(msgspec.Struct, frozen=True):
    """Some text of a file: what is embedded, found and shown. `page` counts from 1, where there are pages."""

    text: str
    page: int | None
    tokens: int


def chunk_passages(
    passages: Iterable[Passage], max_tokens: int, overlap_tokens: int, tokenizer: Tokenizer
) -> list[Chunk]:
    """Return the chunks of a file in order; none is empty.

    `overlap_tokens` is at most half of `max_tokens`. Runs for as long as the text is long: call it in a thread.
    """
    chunks: list[Chunk] = []
    for page, together in groupby(passages, key=lambda passage: passage.page):
        text = "".join(_clean(passage.text) for passage in together)
        texts = [piece for piece in _pieces(text, max_tokens, overlap_tokens, tokenizer) if piece]
        counts = tokenizer.count(texts)
        chunks += [Chunk(piece, page, count) for piece, count in zip(texts, counts, strict=True)]
    return chunks


def _pieces(text: str, max_tokens: int, overlap_tokens: int, tokenizer: Tokenizer) -> Iterator[str]:
    start = _skip(text, 0)
    while start < len(text):
        end = _end(text, start, max_tokens, tokenizer)
        yield text[start:end].rstrip()
        if _skip(text, end) >= len(text):
            return
        start = _next_start(text, start, end, overlap_tokens, tokenizer)


def _end(text: str, start: int, max_tokens: int, tokenizer: Tokenizer) -> int:
    """Return where a chunk that begins at `start` ends."""
    taken, whole = _take(text, start, max_tokens, tokenizer)
    if whole:
        return len(text)
    size = max(1, len(taken))
    end = _good_end(text, start, start + size)
    # A shorter text can, in theory, have more tokens than the longer one that it was cut from.
    while size > 1 and tokenizer.count([text[start:end].rstrip()])[0] > max_tokens:
        size = max(1, size - max(1, size // 16))
        end = _good_end(text, start, start + size)
    return end


def _take(text: str, start: int, max_tokens: int, tokenizer: Tokenizer) -> tuple[str, bool]:
    """Return what fits, and whether that is all the rest. The tokenizer is shown no more than it needs."""
    window = max_tokens * _WINDOW_CHARACTERS
    while True:
        shown = text[start : start + window]
        taken = tokenizer.truncate(shown, max_tokens)
        last = start + window >= len(text)
        if len(taken) < len(shown) or last:
            return taken, last and len(taken) == len(shown)
        window *= 4


def _good_end(text: str, start: int, end: int) -> int:
    """Return the best place to end, in the last part before `end`."""
    earliest = end - max(1, int((end - start) * LAST_PART))
    for pattern in _ENDS:
        best = 0
        for found in pattern.finditer(text, max(earliest, start + 1), end):
            best = found.end()
        if best > start:
            return best
    return _whole_letter(text, start, end)


def _next_start(text: str, start: int, end: int, overlap_tokens: int, tokenizer: Tokenizer) -> int:
    """Return where the next chunk begins: so many tokens before the end of this one, at the beginning of a word."""
    if overlap_tokens == 0:
        return _skip(text, end)
    body = text[start:end]
    total = tokenizer.count([body])[0]
    if total <= overlap_tokens:
        return _skip(text, end)
    begin = start + max(1, len(tokenizer.truncate(body, total - overlap_tokens)))
    if not text[begin - 1].isspace():
        word = re.compile(r"\s+").search(text, begin, min(end, begin + 64))
        begin = word.end() if word else _whole_letter(text, begin - 1, begin)
    return max(start + 1, min(_skip(text, begin), _skip(text, end)))


def _whole_letter(text: str, start: int, end: int) -> int:
    """Return the end, moved so that no letter is parted from its accents, no emoji from its parts."""
    moved = end
    while start + 1 < moved < len(text) and (_goes_on(text[moved]) or text[moved - 1] == "\u200d"):
        moved -= 1
        if end - moved > 32:  # noqa: PLR2004  # no letter is that long: somebody plays with us
            return end
    return moved


def _goes_on(character: str) -> bool:
    return character in _JOINERS or unicodedata.combining(character) != 0 or "\U0001f3fb" <= character <= "\U0001f3ff"


def _skip(text: str, at: int) -> int:
    """Return the first place from `at` on that is no white space."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _clean(text: str) -> str:
    """Return the text without what no UTF-8 can carry and no database takes."""
    text = text.replace("\x00", "")
    return text if text.isascii() else text.encode(errors="replace").decode()
