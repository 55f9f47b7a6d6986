"""How many tokens a chat has, where the model behind it does not say.

Rules. Nothing is ever downloaded: the vocabulary (o200k_base, of GPT-4o and later) is compiled into the wheel of
`toktok-rs`. For other models the count is an estimate: what an upstream reports itself goes before it. What a
message costs around its text is as OpenAI's cookbook has it ("How to count tokens with tiktoken").
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from perdure.models.base import ChatMessage, ModelRequest

ENCODING = "o200k_base"

MESSAGE_TOKENS = 4
"""Around a message: three that frame it, one for its role."""
REPLY_TOKENS = 3
"""After the last message: the frame of the answer, once a request."""
CALL_TOKENS = 4
"""Around a tool call, beside its name and its arguments. OpenAI has published no number: an estimate."""
TOOL_TOKENS = 7
"""Around a tool definition, beside its text (the cookbook's `func_init` for GPT-4o)."""
TOOLS_TOKENS = 12
"""Around all tool definitions together (the cookbook's `func_end`)."""
IMAGE_TOKENS = 765
"""An image, whatever its size: what OpenAI counts for 1024 by 1024 in high detail, 85 and four tiles of 170."""
SMALL_IMAGE_TOKENS = 85
"""An image in low detail."""

CACHED_TEXTS = 65_536
"""Texts whose counts are kept: some 10 MB, a hundred busy threads of several hundred messages."""

_LETTERS = re.compile(r"[A-Za-z\s]+")

CountTexts = Callable[[list[str]], list[int]]
"""Counts the tokens of each text. Called in any thread, by several at once."""


def count_at_most(texts: list[str]) -> list[int]:
    """Return at least as many tokens as a small model's tokenizer makes of the texts, which can not be asked itself.

    Three letters of English make a token or less than one; digits, signs, and the bytes of all other letters, one each
    at most (measured with SmolLM2: Korean 0.83 a byte, digits 1, emoji 0.8 a byte).
    """
    rest = [_LETTERS.sub("", text) for text in texts]
    return [
        (len(text) - len(other)) // 3 + len(other.encode("utf-8", "replace")) + 1
        for text, other in zip(texts, rest, strict=True)
    ]


class TokenCounter:
    """Counts what goes to a model. Safe to share among threads.

    The vocabulary is loaded at the first count, or by `load`: it takes half a second, in which the interpreter does
    nothing else, and 65 MB. Later counts run at 100 MB of text a second. `count_texts` puts another tokenizer in its
    place; `cached_texts` bounds the cache.
    """

    def __init__(self, count_texts: CountTexts | None = None, *, cached_texts: int = CACHED_TEXTS) -> None:
        self._count_texts = count_texts
        self._loading = threading.Lock()
        self._cache = _Cache(cached_texts)

    def load(self) -> None:
        """Load the vocabulary, unless it is loaded."""
        self._loaded()

    def count_text(self, text: str) -> int:
        """Return the tokens of a text. What looks like a special token counts as the text that it is."""
        return self._count([text])[0]

    def count_messages(self, messages: Sequence[ChatMessage]) -> int:
        """Return the tokens of a prompt made of these messages, the answer's frame included."""
        return sum(self.count_each(messages)) + REPLY_TOKENS

    def count_each(self, messages: Sequence[ChatMessage]) -> list[int]:
        """Return the tokens of each message, its frame included. Many at once are much cheaper than one by one."""
        texts: list[str] = []
        frames: list[tuple[int, int]] = []
        for message in messages:
            before = len(texts)
            around = _take_apart(message, texts)
            frames.append((around, len(texts) - before))
        counts = iter(self._count(texts))
        return [around + sum(next(counts) for _ in range(inside)) for around, inside in frames]

    def count_tools(self, tools: Sequence[dict[str, Any]] | None) -> int:
        """Return the tokens of the tool definitions: their JSON, which is how most models are shown them."""
        if not tools:
            return 0
        return TOOLS_TOKENS + sum(TOOL_TOKENS + count for count in self._count([_json(tool) for tool in tools]))

    def count_overhead(self, request: ModelRequest) -> int:
        """Return what a request costs beside its messages: tools, the schema of the answer, the answer's frame."""
        wanted = request.response_format or {}
        schema = wanted.get("json_schema")
        return REPLY_TOKENS + self.count_tools(request.tools) + (self.count_text(_json(schema)) if schema else 0)

    def count_request(self, request: ModelRequest) -> int:
        """Return the tokens of a whole prompt."""
        return sum(self.count_each(request.messages)) + self.count_overhead(request)

    def _count(self, texts: list[str]) -> list[int]:
        keys = [_digest(text) for text in texts]
        known = self._cache.find(keys)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if missing:
            counted = dict(zip(missing, self._loaded()(list(missing.values())), strict=True))
            self._cache.keep(counted)
            known |= counted
        return [known[key] for key in keys]

    def _loaded(self) -> CountTexts:
        with self._loading:
            if self._count_texts is None:
                self._count_texts = _load()
            return self._count_texts


class _Cache:
    """Counts by the digest of their text; the one that was not asked for the longest goes first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._counts: OrderedDict[bytes, int] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, keys: Sequence[bytes]) -> dict[bytes, int]:
        """Return those that are known."""
        found = {}
        with self._lock:
            for key in keys:
                count = self._counts.get(key)
                if count is not None:
                    self._counts.move_to_end(key)
                    found[key] = count
        return found

    def keep(self, counts: dict[bytes, int]) -> None:
        """Remember these."""
        with self._lock:
            self._counts.update(counts)
            while len(self._counts) > self._size:
                self._counts.popitem(last=False)


def _load() -> CountTexts:
    """Return the tokenizer of the wheel, its vocabulary loaded."""
    import toktok  # noqa: PLC0415  # half a second and 65 MB that a server without limits never needs

    def count_texts(texts: list[str]) -> list[int]:
        # One thread: its pool costs more than it saves on what a turn has to count.
        counts: list[int] = toktok.batch_count([_encodable(text) for text in texts], ENCODING, threads=1)
        return counts

    count_texts([""])
    return count_texts


def _encodable(text: str) -> str:
    """Return the text without lone surrogates, which no UTF-8 can carry."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def _take_apart(message: ChatMessage, texts: list[str]) -> int:
    """Add the texts of a message to `texts`; return the tokens of all that is not text."""
    around = MESSAGE_TOKENS
    content = message.get("content")
    if isinstance(content, str):
        texts.append(content)
    for part in content if isinstance(content, list) else ():
        text = part.get("text", part.get("refusal"))
        if isinstance(text, str):
            texts.append(text)
        else:
            around += _image_tokens(part)
    texts.extend(_called(message))
    return around + CALL_TOKENS * len(message.get("tool_calls") or ())


def _called(message: ChatMessage) -> Iterator[str]:
    for call in message.get("tool_calls") or ():
        yield call["function"]["name"]
        yield call["function"]["arguments"]


def _image_tokens(part: dict[str, Any]) -> int:
    image = part.get("image_url")
    return SMALL_IMAGE_TOKENS if isinstance(image, dict) and image.get("detail") == "low" else IMAGE_TOKENS


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
