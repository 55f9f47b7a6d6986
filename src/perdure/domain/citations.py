"""Citations: the markers that stand in an answer for the passages it rests on, and links to files that code wrote.

A marker looks like `【4:0†handbook.pdf】`: the search it comes from, the number of the result within that search, the
file's name. It is recognised while the answer is written, since streams carry it whole, in a delta of its own. A marker
that names no result of the run stays plain text. Offsets count code points. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

FIRST_SEARCH = 4
"""The number of a run's first search: every recording of a one-turn run has it."""

MOST_NAME = 400
_MARKER = re.compile(rf"【(\d{{1,6}}):(\d{{1,6}})(?:†[^【】\n]{{0,{MOST_NAME}}})?】")
_BEGUN = re.compile(rf"【(?:\d{{1,6}}(?::(?:\d{{1,6}}(?:†[^【】\n]{{0,{MOST_NAME}}})?)?)?)?\Z")
_LINK = re.compile(
    r"\((sandbox:/mnt/data/[^()\n]+(?:\([^()\n]*\)[^()\n]*)*)\)|(sandbox:/mnt/data/[^\s()\[\]{}<>\"'`]+)"
)
LINK_SCHEME = "sandbox:"

Sources = Mapping[tuple[int, int], str]
"""The file ids that markers may name, by search and result."""


class Cited(NamedTuple):
    """A marker of an answer and the file that it names."""

    text: str
    file_id: str


class Link(NamedTuple):
    """A link to a file of the code interpreter: where it stands in the text, and the path."""

    text: str
    start: int
    end: int
    path: str


def marker(search: int, result: int, file_name: str) -> str:
    """Return the marker of a result."""
    plain = re.sub(r"[【】\s]+", " ", file_name)[:MOST_NAME].strip()
    return f"【{search}:{result}†{plain}】"


class CitationReader:
    """Finds markers in a text while it is written."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._held = ""

    def feed(self, text: str) -> list[str | Cited]:
        """Take what is written next; return what can be shown of it. What may yet become a marker is held back."""
        text = self._held + text
        begun = _BEGUN.search(text)
        self._held = begun.group() if begun else ""
        return list(self._cut(text[: begun.start()] if begun else text))

    def end(self) -> list[str | Cited]:
        """Return what was held back, now that nothing follows."""
        held, self._held = self._held, ""
        return [held] if held else []

    def _cut(self, text: str) -> Iterator[str | Cited]:
        at = 0
        for found in _MARKER.finditer(text):
            file_id = self._sources.get((int(found[1]), int(found[2])))
            if file_id is None:
                continue
            if text[at : found.start()]:
                yield text[at : found.start()]
            yield Cited(found.group(), file_id)
            at = found.end()
        if text[at:]:
            yield text[at:]


def citation(cited: Cited, start: int) -> dict[str, Any]:
    """Return the annotation of a marker that begins at `start`."""
    return {
        "type": "file_citation",
        "text": cited.text,
        "start_index": start,
        "end_index": start + len(cited.text),
        "file_citation": {"file_id": cited.file_id},
    }


def citation_in_delta(annotation: dict[str, Any], index: int) -> dict[str, Any]:
    """Return an annotation as deltas carry it: with its place in the list, and an empty quote [recorded]."""
    shown = {"index": index, **annotation}
    if "file_citation" in shown:
        shown["file_citation"] = {**shown["file_citation"], "quote": ""}
    return shown


def links_in(text: str) -> list[Link]:
    """Return the links to files of the code interpreter, in their order."""
    links = []
    for found in _LINK.finditer(text):
        group = 1 if found[1] else 2
        link = found[group].rstrip(".,;:!?") if group == 2 else found[group]  # noqa: PLR2004  # the bare one
        start = found.start(group)
        links.append(Link(link, start, start + len(link), link.removeprefix(LINK_SCHEME)))
    return links


def file_path(link: Link, file_id: str) -> dict[str, Any]:
    """Return the annotation of a link."""
    return {
        "type": "file_path",
        "text": link.text,
        "start_index": link.start,
        "end_index": link.end,
        "file_path": {"file_id": file_id},
    }
