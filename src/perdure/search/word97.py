"""The text of binary Word files (.doc, Word 97 to 2003), read as [MS-DOC] lays it out.

Rules. Only what says where text is gets read: the file information block and the piece table. Everything is checked
against the length of its stream, because the numbers are the file's own. Field codes and drawings are left out.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

from perdure.search.passages import Budget, ExtractFailure, packages_missing

WORD_97 = 0x00C1
_MAGIC = 0xA5EC
_ENCRYPTED, _TABLE_1 = 0x0100, 0x0200
_CCP_TEXT, _CCP_FOOTNOTES = 0x4C, 0x50
_FC_CLX = 0x01A2
_COMPRESSED = 0x40000000
_PIECE_TABLE, _PROPERTIES = 2, 1

_FIELD_CODE = re.compile(r"\x13[^\x13\x14\x15]*(?:\x14|(?=\x15))")
_SIGNS = str.maketrans({"\r": "\n", "\x0b": "\n", "\x0c": "\n", "\x07": " | ", "\x1e": "-", "\xa0": " "})
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1f]")


def read_doc(path: Path, budget: Budget) -> Iterator[str]:
    """Give the text and the footnotes. Raises ExtractFailure."""
    try:
        import olefile  # noqa: PLC0415  # of the extra `files`
    except ImportError:
        raise packages_missing("olefile") from None
    try:
        with olefile.OleFileIO(str(path)) as ole:
            document = ole.openstream("WordDocument").read()
            flags = _flags(document)
            table = ole.openstream("1Table" if flags & _TABLE_1 else "0Table").read()
        text = "".join(_pieces(document, table, budget))
    except (struct.error, OSError, IndexError, ValueError, UnicodeDecodeError):
        raise ExtractFailure(
            "invalid_file", "The .doc file is damaged: its text can not be located. Save it as .docx."
        ) from None
    yield _shown(text)


def _flags(document: bytes) -> int:
    magic, version = struct.unpack_from("<HH", document, 0)
    flags: int = struct.unpack_from("<H", document, 0x0A)[0]
    if magic != _MAGIC or version < WORD_97:
        raise ExtractFailure("unsupported_file", "The file was written by Word 95 or older: save it as .docx.")
    if flags & _ENCRYPTED:
        raise ExtractFailure(
            "invalid_file", "The file is protected by a password. Remove it and upload the file again."
        )
    return flags


def _pieces(document: bytes, table: bytes, budget: Budget) -> Iterator[str]:
    """Give the pieces of the text in order, as the piece table has them, until the end of the footnotes."""
    length = sum(struct.unpack_from("<ii", document, _CCP_TEXT))
    start, size = struct.unpack_from("<II", document, _FC_CLX)
    plc = _piece_table(table[start : start + size])
    count = (len(plc) - 4) // 12
    ends = struct.unpack_from(f"<{count + 1}I", plc, 0)
    for number in range(count):
        position = struct.unpack_from("<I", plc, 4 * (count + 1) + 8 * number + 2)[0]
        characters = min(ends[number + 1], length) - ends[number]
        if characters <= 0:
            break
        if position & _COMPRESSED:
            first = (position & ~_COMPRESSED) // 2
            yield budget.take(document[first : first + characters].decode("cp1252", "replace"))
        else:
            yield budget.take(document[position : position + 2 * characters].decode("utf-16-le", "replace"))


def _piece_table(clx: bytes) -> bytes:
    """Return the table inside the block that may begin with properties."""
    at = 0
    while clx[at] == _PROPERTIES:
        at += 3 + int(struct.unpack_from("<H", clx, at + 1)[0])
    if clx[at] != _PIECE_TABLE:
        raise ValueError("no piece table")
    size = struct.unpack_from("<I", clx, at + 1)[0]
    return clx[at + 5 : at + 5 + size]


def _shown(text: str) -> str:
    """Return the text as a reader sees it: a field's result in its place, rows of tables on one line."""
    text = _FIELD_CODE.sub("", text).replace("\x07\x07", "\n").translate(_SIGNS)
    return _CONTROLS.sub("", text)
