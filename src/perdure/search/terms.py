"""Texts into terms: what is looked up when words are looked for.

Rules. A text and a question go the same way, or nothing is found. Words lose case, compatibility forms and an English
plural; identifiers are found whole and by their parts; Korean, Chinese and Japanese are cut into pairs of letters,
since words have no ends there: `환불` is found in `환불은`. A term is kept as 32 bits, which never change: stores hold
them.
"""

from __future__ import annotations

import re
import struct
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable

_CJK = (
    "\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
_TOKEN = re.compile(rf"[{_CJK}]+|[^\W{_CJK}]+")
_IS_CJK = re.compile(rf"[{_CJK}]")
_PARTS = re.compile(r"[^\W\d_a-z]+(?![^\W\d_A-Z])|[^\W\d_]?[^\W\d_A-Z]+|\d+")
_PLAIN = re.compile(r"[a-z]+|[0-9]+|[A-Z][a-z]*")

LONGEST_TERM = 64
"""Characters of a word that count: longer ones are no words."""
MOST_COUNTED = 255


def terms_of(text: str) -> list[str]:
    """Return the terms of a text in order, repeated as often as they occur."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    terms: list[str] = []
    for word in _TOKEN.findall(text):
        if _PLAIN.fullmatch(word):
            terms.append(_singular(word.lower()))
        elif _IS_CJK.match(word):
            terms += [word] if len(word) == 1 else [word[at : at + 2] for at in range(len(word) - 1)]
        else:
            terms += _identifier(word)
    return terms


def _identifier(word: str) -> list[str]:
    """Return a name whole, and by the words that it is made of."""
    whole = word.strip("_").casefold()[:LONGEST_TERM]
    if not whole:
        return []
    parts = [_singular(part.casefold()[:LONGEST_TERM]) for part in _PARTS.findall(word[: 4 * LONGEST_TERM])]
    return [_singular(whole)] if len(parts) <= 1 else [whole, *parts]


def _singular(word: str) -> str:
    """Take an English plural off (Harman's S stemmer): too little for a grammar, enough to find."""
    word = word[:LONGEST_TERM]
    if len(word) < 4 or word[-1] != "s" or word[-2] in "us":  # noqa: PLR2004  # `gas` is no plural
        return word
    if word.endswith("ies") and word[-4] not in "ae":
        return word[:-3] + "y"
    return word[:-1]


def term_hash(term: str) -> int:
    """Return the 32 bits that stand for a term in every store."""
    return zlib.crc32(term.encode(errors="replace"))


def pack_terms(text: str) -> bytes:
    """Return a text's terms as a chunk's row keeps them: all hashes in order, 4 bytes each, then counts, 1 each."""
    counts = Counter(map(term_hash, terms_of(text)))
    hashes = sorted(counts)
    return struct.pack(f"<{len(hashes)}I{len(hashes)}B", *hashes, *(min(counts[one], MOST_COUNTED) for one in hashes))


def unpack_terms(packed: bytes) -> dict[int, int]:
    """Return how often each hash occurs."""
    size = len(packed) // 5
    values = struct.unpack(f"<{size}I{size}B", packed)
    return dict(zip(values[:size], values[size:], strict=True))


def hashes_of(terms: Iterable[str]) -> list[int]:
    """Return the different hashes of a question's terms, in order of appearance."""
    return list(dict.fromkeys(map(term_hash, terms)))
