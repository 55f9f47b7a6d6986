"""JSON while it is written: the characters of a string as they come, and code out of a call's arguments. Pure."""

from __future__ import annotations

import json
import re

# Whole characters of a JSON string only: an escape, or a surrogate pair, that has not arrived in full has to wait.
_CHARACTERS = re.compile(
    r"""[^"\\]+
    |\\["\\/bfnrt]
    |\\u(?![dD][89abAB])[0-9a-fA-F]{4}
    |\\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?=\\u(?![dD][c-fC-F])[0-9a-fA-F]{4})|(?!\\u|\\?\Z))
    """,
    re.VERBOSE,
)
_BEGIN = re.compile(r'\s*\{\s*"(?:code|input|source|python)"\s*:\s*"')
_KEYS = ("code", "input", "source", "python")


class StringReader:
    """The characters of a JSON string, from behind its opening quote, while it is written."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, text: str) -> str:
        """Take what is written next; return the characters that it completes. Nothing comes after the closing quote."""
        self._rest += text
        end = 0
        while found := _CHARACTERS.match(self._rest, end):
            end = found.end()
        piece, self._rest = self._rest[:end], self._rest[end:]
        read: str = json.loads(f'"{piece}"', strict=False)
        return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", read)  # half a pair has no UTF-8


class CodeReader:
    """The code of a call while its arguments are written.

    Models are asked for `{"code": "..."}`. Some use another name for it, and some write the code without any JSON.
    """

    def __init__(self) -> None:
        self._written = ""
        self._string: StringReader | None = None
        self._bare = False
        self._given = ""

    def feed(self, text: str) -> str:
        """Take what the model wrote next; return the code that it completes."""
        self._written += text
        piece = self._read(text)
        self._given += piece
        return piece

    def _read(self, text: str) -> str:
        if self._bare:
            return text
        if self._string is not None:
            return self._string.feed(text)
        begin = _BEGIN.match(self._written)
        if begin is not None:
            self._string = StringReader()
            return self._string.feed(self._written[begin.end() :])
        head = self._written.lstrip()
        if head and head[0] not in '{"[':
            self._bare = True
            return self._written
        return ""

    def end(self) -> str:
        """Return what is still missing of the code, now that all is written."""
        whole = self._whole()
        missing = whole[len(self._given) :] if whole.startswith(self._given) else ""
        self._given += missing
        return missing

    @property
    def code(self) -> str:
        """All of the code, after `end`."""
        return self._given

    def _whole(self) -> str:
        if self._bare:
            return self._written
        try:
            value = json.loads(self._written, strict=False)
        except ValueError:
            # Cut off in the middle of the string, or code that happens to begin with a bracket.
            return self._given if self._string is not None else self._written
        if isinstance(value, dict):
            return next((value[key] for key in _KEYS if isinstance(value.get(key), str)), "")
        return value if isinstance(value, str) else self._written
