"""Text files: their encoding, and their text piece by piece.

Rules. UTF-8, UTF-16 and ASCII, as the hosted server took them; UTF-16 without a byte order mark is known by its zero
bytes. Other encodings are not guessed: a wrong guess is text that nobody finds and nobody notices. No more is read than
the limit allows, however long a line is.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from perdure.search.passages import Budget, ExtractFailure

PIECE_BYTES = 1024 * 1024

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path, budget: Budget) -> Iterator[str]:
    """Give a file's text in pieces, with plain newlines. Raises ExtractFailure."""
    with path.open("rb") as file:
        piece = file.read(PIECE_BYTES)
        encoding = encoding_of(piece)
        decoder = codecs.getincrementaldecoder(encoding)()
        held = ""
        while piece:
            try:
                text = held + decoder.decode(piece)
            except UnicodeDecodeError:
                raise _not_text(encoding) from None
            if "\x00" in text:
                raise _not_text(encoding)
            held = "\r" if text.endswith("\r") else ""  # its newline may come with the next piece
            yield budget.take(_plain(text.removesuffix("\r") if held else text))
            piece = file.read(PIECE_BYTES)
    try:
        yield budget.take(_plain(held + decoder.decode(b"", final=True)))
    except UnicodeDecodeError:
        raise _not_text(encoding) from None


def encoding_of(head: bytes) -> str:
    """Return the encoding of a text by its first bytes."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    sample = head[:4096]
    if len(sample) >= 4:  # noqa: PLR2004  # two characters: fewer prove nothing
        even, odd = sample[0::2].count(0), sample[1::2].count(0)
        if odd > len(sample) // 5 and even == 0:
            return "utf-16-le"
        if even > len(sample) // 5 and odd == 0:
            return "utf-16-be"
    return "utf-8"


def _plain(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _not_text(encoding: str) -> ExtractFailure:
    return ExtractFailure(
        "invalid_file",
        f"The file is no text in {encoding.upper()}. Text must be encoded as UTF-8, UTF-16 or ASCII: save it as UTF-8 "
        "and upload it again.",
    )
