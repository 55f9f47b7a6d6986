"""The built-in model: llama.cpp's server inside the process, by xllamacpp, on any GGUF.

Rules. llama.cpp runs in threads of its own and is never called on the event loop. A stream that is closed stops its
slot at the next token or piece of prompt: the callback says so, and llama.cpp asks it once per token and once per
`PROMPT_PIECE_TOKENS`. No more answers are handed to llama.cpp than it has slots; the others wait here, where they can
be cancelled for nothing.

xllamacpp holds the interpreter while it opens weights (one to two seconds for a small model): call `warm_up` before
serving. llama.cpp also opens a loopback port that nobody needs; a random key closes it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from perdure.errors import OperatorError, RunFailure
from perdure.ids import Ids, RandomIds
from perdure.models.base import (
    Capacity,
    Finished,
    FinishReason,
    ModelPiece,
    ModelRequest,
    ModelUsage,
    TextDelta,
    ToolCallDelta,
)
from perdure.models.envelope import EnvelopeReader, envelope_of, plain_messages
from perdure.models.tokens import TokenCounter, count_at_most
from perdure.models.weights import read_context_tokens
from perdure.settings import Settings

PROMPT_PIECE_TOKENS = 64
"""How much of a prompt is read at one go. Other slots write, and a cancel is heard, between two pieces."""

REPEAT_PENALTY = 1.05
"""Keeps a small model from looping. More of it spoils the numbers that an answer has to repeat from its question."""

MISSING = "the built-in model needs the extra: pip install 'perdure[builtin]'"

JSON_OBJECT_GRAMMAR = r"""
root ::= object
object ::= "{" ws ( pair ( "," ws pair ){0,7} )? "}"
pair ::= string ":" ws ( scalar | list | inner )
list ::= "[" ws ( scalar ( "," ws scalar ){0,7} )? "]" ws
inner ::= "{" ws ( leaf ( "," ws leaf ){0,7} )? "}" ws
leaf ::= string ":" ws ( scalar | list )
scalar ::= string | number | ( "true" | "false" | "null" ) ws
string ::= "\"" char{0,200} "\"" ws
char ::= [^"\\\x7F\x00-\x1F] | "\\" ( ["\\/bfnrt] | "u" [0-9a-fA-F]{4} )
number ::= "-"? ( [0-9] | [1-9] [0-9]{1,12} ) ( "." [0-9]{1,6} )? ws
ws ::= | " " | "\n" [ ]{0,8}
"""
"""Any JSON object that ends: eight members on two levels. Without bounds a small model goes on forever."""

SEARCHING_BYTES = 1_000_000_000
"""Weights smaller than that do not make sense of built-in tools: they call them again and again, with nonsense."""
FRAME_TOKENS = 128
"""What the chat template and the envelope of tools add to a prompt at most."""

Chunk = dict[str, Any]


def _refuse_images(name: str, request: ModelRequest) -> None:
    """Raise RunFailure for a message with an image: an answer that ignores it would look as if it did not."""
    for message in request.messages:
        content = message.get("content")
        if isinstance(content, list) and any(part.get("type") == "image_url" for part in content):
            raise RunFailure(
                f"The built-in model '{name}' can not see images. Leave them out, or set PERDURE_UPSTREAM_URL to a "
                "server with a model that has vision.",
                code="invalid_prompt",
            )


class LocalModel:
    """A GGUF that answers in this process, loaded on first use.

    `ids` makes the ids of tool calls. Raises OperatorError when xllamacpp is not installed.
    """

    def __init__(self, name: str, weights: Path, settings: Settings, ids: Ids | None = None) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise OperatorError(MISSING)
        self.name = name
        self._weights = weights
        self._settings = settings
        self._ids = ids or RandomIds()
        self._counter = TokenCounter(count_at_most)
        self._own_tokens: int | None = None
        self._server: Any = None
        self._loading = asyncio.Lock()
        self._slots = asyncio.Semaphore(settings.builtin_parallel)
        self._threads = ThreadPoolExecutor(settings.builtin_parallel, thread_name_prefix="builtin-model")
        self._writing: set[_Writing] = set()
        self._closed = False

    def capacity(self, model: str) -> Capacity:
        """Return the window of each answer. Raises OperatorError when the file is no GGUF."""
        del model
        wanted = self._settings.builtin_context_tokens
        if self._own_tokens is None:
            self._own_tokens = read_context_tokens(self._weights) or wanted
        return Capacity(
            counter=self._counter,
            context_tokens=min(self._own_tokens, wanted) - FRAME_TOKENS,
            answer_tokens=self._settings.builtin_answer_tokens,
            searches=self._weights.stat().st_size >= SEARCHING_BYTES,
        )

    async def warm_up(self) -> None:
        """Load the weights, unless they are loaded. Raises OperatorError when llama.cpp does not take them."""
        async with self._loading:
            if self._server is None:
                self._refuse_closed()
                self._server = await asyncio.get_running_loop().run_in_executor(self._threads, self._load)

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelPiece, None]:
        """Answer piece by piece. Raises RunFailure.

        Finished("length") is said only of a run's own limit. Where the setting `builtin_answer_tokens`, or the end of
        the context, cut the answer, it is Finished("stop"): the run asked for no limit and must not end incomplete.
        """
        _refuse_images(self.name, request)
        try:
            await self.warm_up()
        except OperatorError as error:
            raise RunFailure(str(error)) from error
        answer = _Answer(self.name, request, self._settings, self._ids)
        await self._slots.acquire()
        writing = self._write(answer.payload())
        try:
            async for chunk in writing:
                for piece in answer.read(chunk):
                    yield piece
            for piece in answer.end():
                yield piece
        finally:
            writing.stop()

    async def list_models(self) -> list[str]:
        """Return the one name."""
        return [self.name]

    async def close(self) -> None:
        """Stop every answer, then free the memory. Answers cut by it raise RunFailure."""
        self._closed = True
        for writing in self._writing:
            writing.stop()
        await asyncio.to_thread(self._threads.shutdown)
        async with self._loading:
            server, self._server = self._server, None
            if server is not None:
                del server  # the last reference: llama.cpp ends its threads, which takes milliseconds

    def _refuse_closed(self) -> None:
        if self._closed:
            raise RunFailure(f"The built-in model '{self.name}' is shut down: the server is stopping.")

    def _write(self, payload: dict[str, Any]) -> _Writing:
        """Begin an answer on the slot that was acquired; the slot is given back when llama.cpp has let go of it."""
        loop = asyncio.get_running_loop()
        writing = _Writing(loop)
        try:
            self._refuse_closed()
            done = loop.run_in_executor(self._threads, writing.run, self._server, payload)
        except BaseException:
            self._slots.release()
            raise
        self._writing.add(writing)

        def let_go(_: object) -> None:
            self._writing.discard(writing)
            self._slots.release()

        done.add_done_callback(let_go)
        return writing

    def _load(self) -> Any:
        """Open the weights (in a thread)."""
        import xllamacpp  # noqa: PLC0415 - 106 MB that only this model needs

        own_tokens = read_context_tokens(self._weights)
        wanted = self._settings.builtin_context_tokens
        params = xllamacpp.CommonParams()
        params.model.path = str(self._weights)
        params.verbosity = -1  # llama.cpp logs to stderr by itself; what matters comes back as an error
        params.warmup = False
        _set_size(params, self._settings, min(own_tokens or wanted, wanted))
        _close_port(params)
        try:
            return xllamacpp.Server(params)
        except (RuntimeError, ValueError) as error:
            raise OperatorError(
                f"llama.cpp can not load {self._weights} ({error}): check that it is a whole GGUF of a chat model and "
                "that memory is left; `builtin_context_tokens` and `builtin_parallel` make it smaller"
            ) from error


def _set_size(params: Any, settings: Settings, context_tokens: int) -> None:
    """Set threads, slots and context. llama.cpp divides `n_ctx` among its slots."""
    params.n_parallel = settings.builtin_parallel
    params.n_ctx = context_tokens * settings.builtin_parallel
    params.cont_batching = True
    params.n_batch = params.n_ubatch = max(PROMPT_PIECE_TOKENS, settings.builtin_parallel)
    # As many threads as cores, with any other load, makes llama.cpp's spinning barriers five to ten times slower.
    threads = settings.builtin_threads or max(1, (os.cpu_count() or 2) - 1)
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0  # 8 GiB by default, for prompts that have left their slot
    params.prefill_assistant = False  # a thread that ends with the assistant gets a new message, not the old one's rest


def _close_port(params: Any) -> None:
    """Lock the HTTP port that llama.cpp's server always opens."""
    params.hostnames = ["127.0.0.1"]
    params.api_keys = [secrets.token_urlsafe(32)]
    params.n_threads_http = 1
    params.ui = False
    params.endpoint_slots = False


class _Writing:
    """One call into llama.cpp: its thread puts chunks in, the event loop iterates over them."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._chunks: asyncio.Queue[Chunk | None] = asyncio.Queue()
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make llama.cpp give up the slot at its next callback."""
        self._stopped.set()

    def run(self, server: Any, payload: dict[str, Any]) -> None:
        """Call llama.cpp and wait for the answer's end (in a thread)."""
        try:
            if self._stopped.is_set():
                return
            server.handle_chat_completions(payload, self._take)
        except (ValueError, RuntimeError) as error:
            self._take({"error": {"code": 400 if isinstance(error, ValueError) else 500, "message": str(error)}})
        finally:
            self._put(None)

    def _take(self, chunk: Chunk) -> bool:
        """Receive one chunk (in a thread). True makes llama.cpp stop."""
        return self._stopped.is_set() or not self._put(chunk)

    def _put(self, chunk: Chunk | None) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
        except RuntimeError:  # the loop is closed: nobody reads any more
            return False
        return True

    def __aiter__(self) -> _Writing:
        return self

    async def __anext__(self) -> Chunk:
        chunk = await self._chunks.get()
        if chunk is None:
            raise StopAsyncIteration
        return chunk


class _Answer:
    """One request's way into llama.cpp's words, and its chunks' way back into pieces."""

    def __init__(self, name: str, request: ModelRequest, settings: Settings, ids: Ids) -> None:
        self._name = name
        self._request = request
        self._settings = settings
        self._ids = ids
        self._envelope = envelope_of(request)
        self._reader = EnvelopeReader() if self._envelope else None
        self._reason: str | None = None
        self._usage = ModelUsage(0, 0)

    def payload(self) -> dict[str, Any]:
        """Return the body for llama.cpp."""
        request = self._request
        sampling = {"temperature": request.temperature, "top_p": request.top_p}
        return {
            "messages": plain_messages(request.messages, self._envelope),
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_progress": True,  # a callback for each piece of the prompt, so that a cancel is heard there too
            "max_tokens": request.max_completion_tokens or self._settings.builtin_answer_tokens,
            "repeat_penalty": REPEAT_PENALTY,
            **{key: value for key, value in sampling.items() if value is not None},
            **self._thinking(),
            **self._grammar(),
        }

    def _thinking(self) -> dict[str, Any]:
        """Skip thoughts where the template can, unless a run asks for them: they use up the answer's tokens unseen."""
        asked = self._request.reasoning_effort not in {None, "none", "minimal"}
        return {} if asked else {"chat_template_kwargs": {"enable_thinking": False}}

    def _grammar(self) -> dict[str, Any]:
        """Say what the answer must look like.

        Not by xllamacpp's `json_schema_to_grammar`: its grammars are another engine's, which obeys no schema that it
        does not know, and does not say so.
        """
        wanted = self._request.response_format or {}
        schema = self._envelope.schema if self._envelope else (wanted.get("json_schema") or {}).get("schema")
        if schema:
            rule: dict[str, Any] = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
        elif wanted.get("type") == "json_object":
            rule = {"grammar": JSON_OBJECT_GRAMMAR}
        else:
            return {}
        return {**rule, "reasoning_format": "none"}  # it rules from the first token: there are no thoughts to take out

    def read(self, chunk: Chunk) -> Iterator[ModelPiece]:
        """Translate a chunk of llama.cpp."""
        if error := chunk.get("error"):
            raise self._failure(error)
        if usage := chunk.get("usage"):
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            self._usage = ModelUsage(usage["prompt_tokens"], usage["completion_tokens"], cached)
        for choice in chunk.get("choices") or []:
            self._reason = choice.get("finish_reason") or self._reason
            text = choice["delta"].get("content") or ""
            if self._reader is not None:
                text = self._reader.feed(text)
            if text:
                yield TextDelta(text)

    def end(self) -> Iterator[ModelPiece]:
        """Say what comes after the last chunk: calls, the reason, the usage."""
        if self._reason is None:
            raise RunFailure(
                f"The built-in model '{self._name}' stopped before its answer's end: the server is stopping."
            )
        limit = self._request.max_completion_tokens
        reason: FinishReason = "stop"
        if self._reason == "length" and limit is not None and self._usage.completion_tokens >= limit:
            reason = "length"
        if self._reader is not None and reason == "stop":
            for piece in self._calls(self._reader):
                reason = "tool_calls"
                yield piece
        yield Finished(reason)
        yield self._usage

    def _calls(self, reader: EnvelopeReader) -> Iterator[ModelPiece]:
        try:
            calls = reader.calls()
        except ValueError:
            raise RunFailure(
                f"The built-in model '{self._name}' did not finish its tool call in "
                f"{self._usage.completion_tokens} tokens. Raise PERDURE_BUILTIN_ANSWER_TOKENS, or take a "
                "stronger model."
            ) from None
        for index, call in enumerate(calls):
            yield ToolCallDelta(index, self._ids.new("call"), call.name, call.arguments)

    def _failure(self, error: dict[str, Any]) -> RunFailure:
        if error.get("type") == "exceed_context_size_error":
            return RunFailure(
                f"The prompt has {error['n_prompt_tokens']} tokens and the built-in model '{self._name}' takes "
                f"{error['n_ctx']}. Shorten it by the run's truncation_strategy or in its instructions, raise "
                f"PERDURE_BUILTIN_CONTEXT_TOKENS (now {self._settings.builtin_context_tokens}) if the model can take "
                "more, or use an upstream.",
                code="invalid_prompt",
            )
        refused = 400 <= int(error.get("code") or 500) < 500  # noqa: PLR2004 - HTTP's ranges
        return RunFailure(
            f"The built-in model '{self._name}' can not answer: {error.get('message')} "
            + ("Check the run's response_format, tools and messages." if refused else "Check the server's memory."),
            code="invalid_prompt" if refused else "server_error",
        )
