"""What comes out of a file: passages, or one failure in words for whoever uploaded it. And the limits of both.

Rule. A failure's code is one of the three that the hosted server gave for a vector store's file.
"""

from __future__ import annotations

from typing import Literal

import msgspec

FailureCode = Literal["unsupported_file", "invalid_file", "server_error"]

MIB = 1024 * 1024


class Passage(msgspec.Struct, frozen=True):
    """Some text of a file. `page` counts from 1: a page, a slide or a sheet; None where the file has none of these.

    Passages without a page continue one another, character by character.
    """

    text: str
    page: int | None = None


class ExtractFailure(Exception):
    """The file gives no text; `code` and `message` become the `last_error` of the vector store's file."""

    def __init__(self, code: FailureCode, message: str) -> None:
        super().__init__(message)
        self.code: FailureCode = code
        self.message = message


class ExtractLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How far a file may go. What goes further ends as an ExtractFailure, never as a part of its text."""

    file_bytes: int = 512 * MIB
    """The hosted server's own limit."""
    characters: int = 20_000_000
    """The hosted limit of 5,000,000 tokens, at four characters each."""
    pages: int = 10_000
    cells: int = 2_000_000
    """Of all sheets of a workbook together."""
    markup_bytes: int = 64 * MIB
    """Of an HTML page, which is held whole."""
    members: int = 10_000
    """Files inside a .docx, .pptx or .xlsx."""
    unpacked_bytes: int = 256 * MIB
    """All of these together."""
    unpacked_ratio: int = 250
    """One of these against its packed size, where it is large."""
    memory_bytes: int = 1024 * MIB
    """Address space of the child process."""
    seconds: float = 120.0
    """For one file, by the clock; as many of CPU time."""
    readers: int = 2
    """Child processes at once."""
    files_per_reader: int = 50
    """Files until a child process is replaced, whatever happens."""


class Budget:
    """Counts the characters of one file against its limit."""

    def __init__(self, limits: ExtractLimits) -> None:
        self._limit = limits.characters
        self._left = limits.characters

    def take(self, text: str) -> str:
        """Return the text. Raises ExtractFailure where it is too much."""
        self._left -= len(text)
        if self._left < 0:
            raise ExtractFailure(
                "invalid_file",
                f"The file holds more than {self._limit:,} characters of text. Split it into smaller files.",
            )
        return text


def packages_missing(package: str) -> ExtractFailure:
    """Return the failure for a library that is not installed."""
    return ExtractFailure(
        "server_error",
        f"The server can not read files of this type: the package {package} is not installed there. "
        "Its operator can install it: pip install 'perdure[files]'.",
    )
