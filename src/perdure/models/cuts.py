"""Cutting texts by tokens: what splits files into chunks, by the tokenizer that counts everywhere else."""

from __future__ import annotations

import threading
from typing import Any

from perdure.models.tokens import ENCODING


class TokenCuts:
    """Counts and cuts texts. Safe to share among threads. The vocabulary is loaded at the first call."""

    def __init__(self) -> None:
        self._loading = threading.Lock()
        self._toktok: Any = None

    def count(self, texts: list[str]) -> list[int]:
        """Return the tokens of each text."""
        counts: list[int] = self._loaded().batch_count(texts, ENCODING, threads=1)
        return counts

    def truncate(self, text: str, max_tokens: int) -> str:
        """Return the longest beginning of a text that has at most so many tokens and ends between two code points."""
        cut: str = self._loaded().truncate(text, max_tokens, ENCODING)[0]
        return cut

    def _loaded(self) -> Any:
        with self._loading:
            if self._toktok is None:
                import toktok  # noqa: PLC0415  # half a second and 65 MB that a server without files never needs

                toktok.batch_count([""], ENCODING, threads=1)
                self._toktok = toktok
            return self._toktok
