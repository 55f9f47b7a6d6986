"""Questions and passages out of the documentation that ships with Python: docstrings of its standard library.

A docstring begins with one sentence that says what the thing is for, in words for a reader; the rest explains it. The
sentence is the question, the rest is the passage. The thing's name stands in neither, unless the rest uses it.
"""

from __future__ import annotations

import importlib
import inspect
import pydoc_data.topics
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

LEFT_OUT = {"antigravity", "this", "idlelib", "lib2to3", "test", "turtledemo", "turtle", "tkinter"}
"""Modules that open windows or browsers, or are no library."""


class Pair(NamedTuple):
    """A question, and the passage that answers it."""

    question: str
    passage: str


def pairs_of_docstrings() -> list[Pair]:
    """Return all pairs, in order of modules and names; no passage twice."""
    pairs: dict[str, Pair] = {}
    for doc in _docstrings():
        head, _, rest = doc.strip().partition("\n\n")
        question, passage = " ".join(head.split()), rest.strip()
        signature = re.search(r"\w\(.*\)\s*(->|$)", question)
        if 5 <= len(question.split()) <= 25 and len(passage.split()) >= 30 and not signature:
            pairs.setdefault(passage, Pair(question, passage))
    return list(pairs.values())


def documentation() -> str:
    """Return the language reference, as `help()` has it: half a megabyte of prose."""
    return "\n\n".join(pydoc_data.topics.topics.values())


def _docstrings() -> Iterator[str]:
    for name in sorted(sys.stdlib_module_names - LEFT_OUT):
        if name.startswith("_"):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                module = importlib.import_module(name)
        except ImportError:  # of another system
            continue
        for thing in list(vars(module).values()):
            yield from _docs_of(thing)
            if inspect.isclass(thing):
                for member in list(vars(thing).values()):
                    yield from _docs_of(member)


def _docs_of(thing: Any) -> Iterator[str]:
    if callable(thing) or isinstance(thing, property | staticmethod | classmethod):
        doc = inspect.getdoc(thing)
        if doc:
            yield doc
