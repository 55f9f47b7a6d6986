"""Embeddings of an upstream: any server with an OpenAI-compatible `/v1/embeddings`.

Rules. Texts go out together, by number and by length; a server that takes fewer at once is sent fewer from then on. A
text that is too long for it is halved until it is taken. Refusals for the moment (429, 5xx, no connection) are tried
again; what is said then names the upstream, never its key.
"""

from __future__ import annotations

import base64
import binascii
import math
import random
import re
import sys
from array import array
from collections.abc import Callable
from typing import Any

import httpx2
import msgspec

from perdure.errors import RunFailure
from perdure.ids import Clock
from perdure.models.embeddings import EmbeddingFailure
from perdure.models.upstream_failures import (
    UpstreamAddress,
    UpstreamError,
    broke_off,
    read_error,
    refused,
    silent,
    unreachable,
    unreadable,
)
from perdure.models.upstream_http import (
    ERROR_BYTES,
    back_off,
    checked_key,
    checked_url,
    client,
    endpoint,
    wait_after,
    without_secrets,
)
from perdure.settings import Settings, UpstreamSettings

TEXTS_AT_ONCE = 64
CHARACTERS_AT_ONCE = 200_000
"""In one request: well under what OpenAI takes (2048 texts, 300,000 tokens)."""
SHORTEST_TEXT = 64
"""Characters down to which a text is halved."""

_TOO_LONG = re.compile(r"too (long|large|many tokens)|maximum|context|exceed|at most|less than|limit", re.IGNORECASE)
_TOO_MUCH = {400, 413, 422}


class _TooMuch(Exception):
    """The upstream may take less than it was sent."""

    def __init__(self, failure: RunFailure, about_length: bool) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.about_length = about_length


class UpstreamEmbeddings:
    """One model of one upstream. `dimensions` asks for shorter vectors, where the model can make them.

    Raises OperatorError for a URL or key that can not be used. `jitter` gives numbers from 0 to 1.
    """

    def __init__(
        self,
        upstream_name: str,
        upstream: UpstreamSettings,
        model: str,
        settings: Settings,
        clock: Clock,
        *,
        dimensions: int | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._model = model
        self._address = UpstreamAddress(upstream_name, without_secrets(upstream.url))
        self._base = checked_url(upstream.url, self._address)
        self._key = checked_key((upstream.key or "").strip(), self._address)
        self._settings = settings
        self._clock = clock
        self._jitter = jitter
        self._asked_dimensions = dimensions
        self._dimensions = dimensions
        self._texts_at_once = TEXTS_AT_ONCE
        self._client = client(settings, self._key)

    @property
    def name(self) -> str:
        """`UPSTREAM/model`, and `@256` behind it where shorter vectors are asked for."""
        shortened = "" if self._asked_dimensions is None else f"@{self._asked_dimensions}"
        return f"{self._address.name}/{self._model}{shortened}"

    @property
    def dimensions(self) -> int | None:
        """What was asked for, or what the first answer had."""
        return self._dimensions

    async def embed(self, texts: list[str]) -> list[array[float]]:
        """Return one vector for each text. Raises EmbeddingFailure."""
        vectors: list[array[float]] = []
        while len(vectors) < len(texts):
            group = self._group(texts, len(vectors))
            try:
                vectors += await self._whole(group)
            except RunFailure as failure:
                raise EmbeddingFailure(failure.message, code=failure.code) from None
        return vectors

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def _group(self, texts: list[str], first: int) -> list[str]:
        group = texts[first : first + 1]
        characters = len(group[0])
        for text in texts[first + 1 : first + self._texts_at_once]:
            characters += len(text)
            if characters > CHARACTERS_AT_ONCE:
                break
            group.append(text)
        return group

    async def _whole(self, group: list[str]) -> list[array[float]]:
        """Embed a group in one request, or, where that is too much, in two."""
        try:
            return await self._request(group)
        except _TooMuch as too_much:
            if len(group) == 1:
                return [await self._shortened(group[0], too_much)]
        half = len(group) // 2
        vectors = await self._whole(group[:half])
        self._texts_at_once = min(self._texts_at_once, half)  # it took the half: never send it more again
        return vectors + await self._whole(group[half:])

    async def _shortened(self, text: str, too_much: _TooMuch) -> array[float]:
        """Embed the beginning of a text, as much of it as is taken."""
        while too_much.about_length and len(text) > SHORTEST_TEXT:
            text = text[: len(text) // 2]
            try:
                return (await self._request([text]))[0]
            except _TooMuch as again:
                too_much = again
        raise too_much.failure

    async def _request(self, group: list[str]) -> list[array[float]]:
        """Ask until there is an answer, or a failure that stays."""
        retries = 0
        while True:
            answer = await self._ask(group)
            if isinstance(answer, httpx2.Response):
                if answer.is_success:
                    return self._read(answer.content, len(group))
                error = read_error(answer.content[:ERROR_BYTES])
                failure = self._refused(answer, error)
                if answer.status_code in _TOO_MUCH:
                    raise _TooMuch(failure, _TOO_LONG.search(error.message) is not None)
                wait = wait_after(answer, error, retries, now=self._clock.now(), jitter=self._jitter())
            else:
                failure = self._lost(answer)
                wait = None if isinstance(answer, httpx2.ReadTimeout) else back_off(retries, self._jitter())
            if wait is None or retries >= self._settings.upstream_retries:
                raise failure
            await self._clock.sleep(wait)
            retries += 1

    async def _ask(self, group: list[str]) -> httpx2.Response | httpx2.RequestError:
        body: dict[str, Any] = {"model": self._model, "input": [text or " " for text in group]}
        if self._asked_dimensions is not None:
            body["dimensions"] = self._asked_dimensions
        try:
            return await self._client.post(
                endpoint(self._base, "/embeddings"),
                content=msgspec.json.encode(body),
                headers={"content-type": "application/json"},
            )
        except httpx2.RequestError as error:
            return error

    def _read(self, body: bytes, count: int) -> list[array[float]]:
        """Return the vectors of an answer, in order of their texts, each made one long. Raises RunFailure."""
        vectors = _vectors(body)
        lengths = {len(vector) for vector in vectors or ()}
        if vectors is None or len(vectors) != count or len(lengths) != 1:
            raise unreadable(self._address, body, self._key, f"a list of {count} embeddings")
        dimensions = lengths.pop()
        if self._dimensions not in {None, dimensions}:
            raise RunFailure(
                f"The {self._address.described} sent vectors of {dimensions} dimensions for model '{self._model}', not "
                f"of {self._dimensions} as before or as asked: they can not be compared. Check "
                "PERDURE_EMBEDDING_DIMENSIONS and the model behind that name."
            )
        self._dimensions = dimensions
        return vectors

    def _refused(self, answer: httpx2.Response, error: UpstreamError) -> RunFailure:
        return refused(self._address, answer.status_code, error, self._model, self._key, "/embeddings")

    def _lost(self, error: httpx2.RequestError) -> RunFailure:
        if isinstance(error, httpx2.ReadTimeout):
            return silent(self._address, self._settings.upstream_silence_seconds)
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return unreachable(self._address, str(error) or "no connection in time", self._key)
        return broke_off(self._address, str(error), self._key)


def _vectors(body: bytes) -> list[array[float]] | None:
    """Return the vectors of an answer in order of `index`; None where it is no such answer."""
    try:
        rows = msgspec.json.decode(body)["data"]
        ordered = sorted(rows, key=lambda row: row.get("index", 0))  # stable: without an index they stay as they came
        vectors = [_unit(_numbers(row["embedding"])) for row in ordered]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError, binascii.Error):
        return None
    return vectors


def _numbers(embedding: Any) -> array[float]:
    """Return the numbers of one vector: a list, or base64 of single-precision numbers, little-endian."""
    if not isinstance(embedding, str):
        return array("f", embedding)
    numbers = array("f", base64.b64decode(embedding, validate=True))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _unit(vector: array[float]) -> array[float]:
    """Return the vector at length one. Raises ValueError for what has no length."""
    length = math.sqrt(math.fsum(one * one for one in vector))
    if not math.isfinite(length) or not vector:
        raise ValueError("no vector")
    return array("f", [one / length for one in vector]) if length else vector
