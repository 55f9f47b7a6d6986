"""`perdure demo`: the math tutor's conversation, held through the official client on a server of its own.

Rules. The server listens on a free loopback port and keeps everything in a temporary folder, whatever the settings say;
both are gone when the demo ends, however it ends. All that is shown came over HTTP, as any program would get it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from perdure import __version__
from perdure.app import Running, open_server, run_loop
from perdure.errors import OperatorError, RunFailure
from perdure.models.weights import DEFAULT_NAME, find_weights
from perdure.settings import Settings, read_settings

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OLD_NAME = "gpt-4-turbo-preview"
"""What programs of the hosted API's time ask for; the settings say who answers to it."""

INSTRUCTIONS = "You are a patient math tutor. Answer briefly, in a sentence or two, in the language of the question."
FIRST = ("방정식 `3x + 11 = 14`는 어떻게 푸나요?", "왜 그렇게 되는지 조금 더 자세히 설명해 주세요.")
AT_ONCE = (
    "방정식 `2x - 7 = 5`를 풀어 주세요.",
    "선형대수는 무엇을 배우는 과목인가요?",
    "수학이 너무 어려워요. 어떻게 공부하면 좋을까요?",
)
THANKS = "도와주셔서 고맙습니다!"

SMOKE = (
    "This 135M built-in model is a smoke model, and an English one: it shows that the road works, not what a good "
    "model answers. For that set PERDURE_UPSTREAM_URL, or PERDURE_BUILTIN_MODEL to a larger GGUF."
)
NO_CLIENT = "the demo speaks through the official client, which is not installed: run `pip install 'perdure[demo]'`"


def hold_conversation(model: str | None) -> None:
    """Hold the conversation and show it; None takes the model of the settings. Raises OperatorError.

    A model that is given is a built-in one (a name, a GGUF, `scripted`), and upstreams are left out then.
    """
    if importlib.util.find_spec("openai") is None:
        raise OperatorError(NO_CLIENT)
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="perdure-demo-", ignore_cleanup_errors=True) as folder:
        settings = _settings(model, Path(folder) / "data")

        async def main() -> None:
            async with _ended_by_signals(), open_server(settings) as running:
                await _converse(running, console)

        run_loop(main)
    console.print("\nThe demo is over; its server and its folder are gone.")


def _settings(model: str | None, data: Path) -> Settings:
    """Return the settings for a server that leaves nothing behind."""
    given = read_settings(builtin_model=model)
    own: dict[str, Any] = {"data": data, "host": "127.0.0.1", "port": 0, "database_url": None}
    own["shutdown_grace_seconds"] = 0.0  # whoever stops the demo does not want the rest of an answer
    if model is not None:
        own |= {"upstream_url": None, "upstreams": {}, "default_model": None, "model_map": {}}
    found = find_weights(given)
    if found is not None:
        own["builtin_model"] = _lend(*found, data)
    return given.model_copy(update=own)


def _lend(name: str, weights: Path, data: Path) -> str:
    """Show the weights to the temporary folder under the same name; return what the settings are to call them."""
    link = data / "models" / f"{name}.gguf"
    link.parent.mkdir(mode=0o700, parents=True)
    try:
        link.symlink_to(weights.resolve())
    except OSError:  # no rights to make links: by path then
        return str(weights.resolve())
    return name


@asynccontextmanager
async def _ended_by_signals() -> AsyncIterator[None]:
    """End the block at SIGTERM and SIGHUP as Ctrl-C ends it; the exit status is 128 and the number."""
    task, loop, received = asyncio.current_task(), asyncio.get_running_loop(), list[int]()
    numbers = (signal.SIGTERM, signal.SIGHUP) if os.name == "posix" else ()

    def end(number: int) -> None:
        received.append(number)
        if task is not None:
            task.cancel()

    for number in numbers:
        loop.add_signal_handler(number, end, number)
    try:
        yield
    except asyncio.CancelledError:
        if received:
            raise SystemExit(128 + received[0]) from None
        raise
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def _converse(running: Running, console: Console) -> None:
    from openai import AsyncOpenAI  # noqa: PLC0415  # the server itself does without

    try:
        name = (await running.models.resolve(OLD_NAME))[1]
    except RunFailure as failure:
        raise OperatorError(failure.message) from None
    console.print(
        f"Perdure {__version__} serves a demo on {running.url}, model '{name}'.", markup=False, soft_wrap=True
    )
    if name == DEFAULT_NAME:
        console.print(SMOKE, markup=False, soft_wrap=True)
    async with AsyncOpenAI(base_url=running.url, api_key="perdure", max_retries=0) as client:
        tutor = await client.beta.assistants.create(name="Math Tutor", instructions=INSTRUCTIONS, model=OLD_NAME)
        demo = _Demo(client, tutor.id, console)
        thread = await client.beta.threads.create()
        for question in FIRST:
            await demo.ask(thread.id, question)
        third = await demo.ask_at_once(AT_ONCE)
        await demo.ask(third, THANKS)


class _Reply:
    """An answer as it comes: its text, and when its first token and its end came, in seconds after the question."""

    def __init__(self, question: str) -> None:
        self.question = question
        self.text = ""
        self.first_seconds = 0.0
        self.seconds = 0.0
        self.cut = ""

    @property
    def times(self) -> str:
        """The two times in words, empty until the answer is whole."""
        if not self.seconds:
            return ""
        return f"first token after {self.first_seconds:.2f} s, whole answer after {self.seconds:.2f} s{self.cut}"


class _Demo:
    """Asks and shows. Pieces are shown as they come; three answers at once need a terminal for that."""

    def __init__(self, client: AsyncOpenAI, assistant_id: str, console: Console) -> None:
        self._client = client
        self._assistant_id = assistant_id
        self._console = console

    async def ask(self, thread_id: str, question: str) -> None:
        """Ask on a thread and show the answer while it comes."""
        self._say("USER", question)
        self._say("ASSISTANT", "")
        reply = _Reply(question)
        async for piece in self._pieces(thread_id, reply):
            self._console.out(piece, end="", highlight=False)
        self._console.out("", highlight=False)
        self._console.print(f"({reply.times})", style="dim", markup=False, soft_wrap=True)

    async def ask_at_once(self, questions: tuple[str, ...]) -> str:
        """Ask each question on a thread of its own, all at the same time; return the last thread's id."""
        self._console.print(f"\n{len(questions)} threads at once:", style="bold")
        replies = [_Reply(question) for question in questions]
        threads = [await self._client.beta.threads.create() for _ in questions]
        live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        try:
            with live or nullcontext():
                async with asyncio.TaskGroup() as group:
                    for thread, reply in zip(threads, replies, strict=True):
                        group.create_task(self._follow(thread.id, reply, replies, live))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None  # one line for the operator says enough
        if live is None:
            for reply in replies:
                self._say("USER", reply.question)
                self._say("ASSISTANT", reply.text)
                self._console.print(f"({reply.times})", style="dim", markup=False, soft_wrap=True)
        return threads[-1].id

    async def _follow(self, thread_id: str, reply: _Reply, replies: list[_Reply], live: Live | None) -> None:
        async for _ in self._pieces(thread_id, reply):
            if live is not None:
                live.update(_panels(replies), refresh=True)
        if live is not None:
            live.update(_panels(replies), refresh=True)

    async def _pieces(self, thread_id: str, reply: _Reply) -> AsyncIterator[str]:
        """Ask and yield the answer's pieces, kept in `reply` too. Raises OperatorError when the run fails."""
        threads, began = self._client.beta.threads, time.monotonic()
        await threads.messages.create(thread_id, role="user", content=reply.question)
        async with threads.runs.stream(thread_id=thread_id, assistant_id=self._assistant_id) as stream:
            async for delta in stream.text_deltas:
                piece = "".join(one for one in delta if one.isprintable() or one in "\n\t")
                reply.first_seconds = reply.first_seconds or time.monotonic() - began
                reply.text += piece
                yield piece
            run = await stream.get_final_run()
        reply.seconds = time.monotonic() - began
        if run.status == "incomplete":  # a limit of tokens: what came is still worth showing
            reply.cut = ", cut off by a limit"
        elif run.status != "completed":
            why = run.last_error.message if run.last_error else f"the run is {run.status}"
            raise OperatorError(f"the model gave no answer: {why}")

    def _say(self, role: str, text: str) -> None:
        self._console.print(f"\n[{role}]", style="bold cyan" if role == "USER" else "bold green", markup=False)
        if text:
            self._console.out(text, highlight=False)


def _panels(replies: list[_Reply]) -> Group:
    return Group(
        *(
            Panel(Text(reply.text), title=Text(reply.question), title_align="left", subtitle=reply.times or None)
            for reply in replies
        )
    )
