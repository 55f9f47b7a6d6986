"""Vectors without a model: words and their pieces, hashed into places. For tests, and for machines without weights.

Texts that share words are near one another, and nothing else is: no meaning, no other language. The vectors are the
same on every machine and never change, because stores hold them.
"""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from array import array
from collections.abc import Iterator
from typing import Final

HASHING_NAME: Final = "hashing"
HASHING_DIMENSIONS: Final = 256

_WORDS = re.compile(r"\w+")
_PIECE = 3


class HashingEmbeddings:
    """A small embedder that needs nothing."""

    @property
    def name(self) -> str:
        """What a store remembers."""
        return HASHING_NAME

    @property
    def dimensions(self) -> int:
        """256."""
        return HASHING_DIMENSIONS

    async def embed(self, texts: list[str]) -> list[array[float]]:
        """Return one vector for each text; a text without a word has the zero vector, which is near nothing."""
        return [_vector(text) for text in texts]

    async def close(self) -> None:
        """Hold nothing."""


def _vector(text: str) -> array[float]:
    sums = [0.0] * HASHING_DIMENSIONS
    for feature in _features(text):
        bits = zlib.crc32(feature.encode(errors="replace"))
        sums[bits % HASHING_DIMENSIONS] += 1.0 if bits & 0x80000000 else -1.0
    length = math.sqrt(sum(one * one for one in sums)) or 1.0
    return array("f", [one / length for one in sums])


def _features(text: str) -> Iterator[str]:
    """Give words, and pieces of three letters of the longer ones: an ending more or less changes little."""
    for word in _WORDS.findall(unicodedata.normalize("NFKC", text).casefold()):
        yield word
        for at in range(len(word) - _PIECE + 1 if len(word) > _PIECE else 0):
            yield word[at : at + _PIECE]
