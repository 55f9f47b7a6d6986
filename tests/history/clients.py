"""Clients of one thread: the official client, asking for whatever the dice say, all at once on the same few objects.

Every text is said once only, so that a message is known by it also where the answer was lost; every run carries a token
in its metadata for the same reason.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import openai

from tests.history.model import Answer, Args
from tests.history.record import NeverArrivedError, Recorder

Work = Callable[[], Awaitable[Answer]]

KINDS = ("plain", "plain", "call", "fail", "slow", "slow", "think")
SCRIPT: dict[str, Any] = {
    "rules": [
        {"when": "", "role": "tool", "say": "It is {output}.", "delay_seconds": 0.004},
        {"when": "^call", "call": [{"name": "look", "arguments": {}}], "first_delay_seconds": 0.005},
        {"when": "^think", "say": "Let me see.", "call": [{"name": "look", "arguments": {}}], "delay_seconds": 0.003},
        {"when": "^fail", "fail": {"status": 400, "message": "The script says so."}},
        {"when": "^slow", "say": "one two three four five six", "delay_seconds": 0.015},
    ],
    "otherwise": {"say": "You said: {question}", "delay_seconds": 0.002},
}
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}

WHILE_IT_LIVES = {
    "add_message": 9,
    "create_run": 6,
    "submit_outputs": 4,
    "cancel_run": 2,
    "retry_run": 2,
    "mark_message": 6,
    "edit_message": 3,
    "delete_message": 2,
    "fork_thread": 1,
    "list_messages": 8,
    "get_message": 3,
    "get_run": 5,
    "list_runs": 2,
}
"""How often each call is made, beside the others."""
WHILE_IT_GOES = {
    "add_message": 6,
    "cancel_run": 1,
    "mark_message": 2,
    "edit_message": 2,
    "delete_message": 2,
    "fork_thread": 1,
    "list_messages": 3,
    "get_message": 2,
    "get_run": 2,
    "list_runs": 1,
    "delete_thread": 1,
}


class Shared:
    """What the clients of a thread tell each other: what there is to ask about."""

    def __init__(self, assistant_id: str) -> None:
        self.assistant_id = assistant_id
        self.thread_id = ""
        self.messages: list[str] = []
        self.half: list[str] = []  # messages that were half written when they were seen last
        self.runs: dict[str, str] = {}  # by id, the token
        self.calls: dict[str, list[str]] = {}  # by run, the calls that wait for outputs
        self.texts = 0

    def new_text(self, kind: str) -> str:
        self.texts += 1
        return f"{kind} {self.texts}"


def shown(message: Any) -> Answer:
    text = "".join(part.text.value for part in message.content)
    return (message.id, message.role, message.status, text, (message.metadata or {}).get("mark", ""))


class Program:
    """One client at work on one thread."""

    def __init__(self, name: str, seed: str, client: openai.AsyncOpenAI, shared: Shared, recorder: Recorder) -> None:
        self._name = name
        self._dice = random.Random(f"{seed}/{name}")  # noqa: S311  # a game, no secret
        self._client = client
        self._shared = shared
        self._recorder = recorder

    async def work(self, calls: int, weights: dict[str, int]) -> None:
        """Make so many calls, with hardly a pause."""
        names = list(weights)
        while calls:
            name = self._dice.choices(names, list(weights.values()))[0]
            try:
                if not await getattr(self, name)():
                    continue  # there is nothing yet to ask that about
                calls -= 1
            except NeverArrivedError:
                await asyncio.sleep(0.05)  # dead, or starting again
            await asyncio.sleep(self._dice.choice((0, 0, 0.001, 0.004, 0.015)))

    async def _ask(self, name: str, args: Args, work: Work) -> Answer:
        return await self._recorder.ask(self._name, name, {"thread": self._shared.thread_id, **args}, work)

    def _busy(self) -> str:
        return self._dice.choices(("reject", "queue", "interrupt"), (6, 3, 1))[0]

    def _some(self, among: list[str]) -> str:
        """One of the newest, mostly."""
        return self._dice.choice(among[-self._dice.choice((1, 3, 6)) :] if self._dice.random() < 0.9 else among)

    # -- calls that make something

    async def create_thread(self) -> bool:
        texts = [self._shared.new_text("plain") for _ in range(3)]
        messages: Any = [{"role": "user", "content": text} for text in texts]

        async def work() -> Answer:
            self._shared.thread_id = (await self._client.beta.threads.create(messages=messages)).id
            return ("ok",)

        await self._ask("create_thread", {"texts": texts}, work)
        return True

    async def add_message(self, kind: str = "", busy: str = "") -> bool:
        text, busy = self._shared.new_text(kind or self._dice.choice(KINDS)), busy or self._busy()

        async def work() -> Answer:
            raw = await self._client.beta.threads.messages.with_raw_response.create(
                self._shared.thread_id, role="user", content=text, extra_body={"x_when_busy": busy}
            )
            message = raw.parse()
            self._shared.messages.append(message.id)
            return ("ok", message.id, raw.headers.get("x-perdure-behind"))

        await self._ask("add_message", {"text": text, "busy": busy}, work)
        return True

    async def create_run(self, messages: int | None = None) -> bool:
        busy, token = self._busy(), self._shared.new_text("token")
        many = self._dice.choice((0, 0, 1, 2)) if messages is None else messages
        texts = [self._shared.new_text(self._dice.choice(KINDS)) for _ in range(many)]
        more: Any = [{"role": "user", "content": text} for text in texts]

        async def work() -> Answer:
            raw = await self._client.beta.threads.runs.with_raw_response.create(
                self._shared.thread_id,
                assistant_id=self._shared.assistant_id,
                additional_messages=more,
                metadata={"token": token},
                extra_body={"x_when_busy": busy},
            )
            return self._made(raw, token)

        await self._ask("create_run", {"texts": texts, "busy": busy, "token": token}, work)
        return True

    def _made(self, raw: Any, token: str) -> Answer:
        run = raw.parse()
        self._shared.runs[run.id] = token
        return ("ok", run.id, run.status, raw.headers.get("x-perdure-behind"))

    async def retry_run(self) -> bool:
        if not self._shared.runs:
            return False
        run_id, busy = self._some(list(self._shared.runs)), self._busy()
        token = self._shared.runs[run_id]

        async def work() -> Answer:
            path = f"/threads/{self._shared.thread_id}/runs/{run_id}/retry"
            raw = await self._client.post(path, body={"x_when_busy": busy}, cast_to=httpx2.Response)
            run = raw.json()
            self._shared.runs[run["id"]] = token
            return ("ok", run["id"], run["status"], raw.headers.get("x-perdure-behind"))

        await self._ask("retry_run", {"run": run_id, "busy": busy, "token": token}, work)
        return True

    async def fork_thread(self) -> bool:
        at = self._some(self._shared.messages) if self._shared.messages and self._dice.random() < 0.7 else None

        async def work() -> Answer:
            path = f"/threads/{self._shared.thread_id}/fork"
            fork = (await self._client.post(path, body={"message_id": at}, cast_to=httpx2.Response)).json()
            messages = self._client.beta.threads.messages.list(fork["id"], order="asc", limit=100)
            return ("ok", tuple([shown(one)[1:] async for one in messages]))

        await self._ask("fork_thread", {"message": at}, work)
        return True

    # -- calls that change something

    async def cancel_run(self) -> bool:
        if not self._shared.runs:
            return False
        run_id = self._some(list(self._shared.runs))

        async def work() -> Answer:
            run = await self._client.beta.threads.runs.cancel(run_id, thread_id=self._shared.thread_id)
            return ("ok", run.id, run.status)

        await self._ask("cancel_run", {"run": run_id}, work)
        return True

    async def submit_outputs(self) -> bool:
        if not self._shared.calls:
            return False
        run_id = self._some(list(self._shared.calls))
        outputs: Any = [{"tool_call_id": one, "output": "warm"} for one in self._shared.calls[run_id]]

        async def work() -> Answer:
            run = await self._client.beta.threads.runs.submit_tool_outputs(
                run_id, thread_id=self._shared.thread_id, tool_outputs=outputs
            )
            return ("ok", run.id, run.status)

        await self._ask("submit_outputs", {"run": run_id}, work)
        if self._dice.random() < 0.7:  # asking again must be refused
            self._shared.calls.pop(run_id, None)
        return True

    async def mark_message(self) -> bool:
        mark = self._shared.new_text("mark")
        return await self._change("mark_message", {"mark": mark}, {"metadata": {"mark": mark}})

    async def edit_message(self) -> bool:
        text = self._shared.new_text(self._dice.choice(KINDS))
        return await self._change("edit_message", {"text": text}, {"extra_body": {"x_content": text}})

    async def _change(self, name: str, args: Args, change: Any) -> bool:
        if not self._shared.messages:
            return False
        message_id = self._some(self._shared.half or self._shared.messages)

        async def work() -> Answer:
            changed = await self._client.beta.threads.messages.update(
                message_id, thread_id=self._shared.thread_id, **change
            )
            return ("ok", *shown(changed))

        await self._ask(name, {"message": message_id, **args}, work)
        return True

    async def delete_message(self) -> bool:
        if not self._shared.messages:
            return False
        message_id = self._some(self._shared.messages)

        async def work() -> Answer:
            gone = await self._client.beta.threads.messages.delete(message_id, thread_id=self._shared.thread_id)
            return ("ok", gone.id)

        await self._ask("delete_message", {"message": message_id}, work)
        return True

    async def delete_thread(self) -> bool:
        async def work() -> Answer:
            await self._client.beta.threads.delete(self._shared.thread_id)
            return ("ok",)

        await self._ask("delete_thread", {}, work)
        return True

    # -- calls that read

    async def list_messages(self) -> bool:
        after = self._some(self._shared.messages) if self._shared.messages and self._dice.random() < 0.3 else None
        order, limit = self._dice.choice(("asc", "desc", "desc")), self._dice.choice((1, 3, 10, 100))
        await self.see_messages(order, limit, after)
        return True

    async def see_messages(self, order: Any, limit: int, after: str | None) -> Answer:
        async def work() -> Answer:
            page = await self._client.beta.threads.messages.list(
                self._shared.thread_id, order=order, limit=limit, after=after or openai.omit
            )
            known = set(self._shared.messages)
            self._shared.messages += [one.id for one in page.data if one.id not in known]
            self._shared.half = [one.id for one in page.data if one.status == "in_progress"]
            return ("ok", tuple(shown(one) for one in page.data), page.has_more)

        return await self._ask("list_messages", {"order": order, "limit": limit, "after": after}, work)

    async def list_runs(self) -> bool:
        await self.see_runs(self._dice.choice(("asc", "desc")), self._dice.choice((1, 5, 100)), None)
        return True

    async def see_runs(self, order: Any, limit: int, after: str | None) -> Answer:
        async def work() -> Answer:
            page = await self._client.beta.threads.runs.list(
                self._shared.thread_id, order=order, limit=limit, after=after or openai.omit
            )
            for run in page.data:
                self._note(run)
            return ("ok", tuple((run.id, run.status) for run in page.data), page.has_more)

        return await self._ask("list_runs", {"order": order, "limit": limit, "after": after}, work)

    def _note(self, run: Any) -> None:
        self._shared.runs.setdefault(run.id, run.metadata["token"])
        if run.required_action is not None:
            calls = run.required_action.submit_tool_outputs.tool_calls
            self._shared.calls[run.id] = [call.id for call in calls]

    async def get_message(self) -> bool:
        if not self._shared.messages:
            return False
        message_id = self._some(self._shared.messages)

        async def work() -> Answer:
            message = await self._client.beta.threads.messages.retrieve(message_id, thread_id=self._shared.thread_id)
            return ("ok", *shown(message))

        await self._ask("get_message", {"message": message_id}, work)
        return True

    async def get_run(self) -> bool:
        if not self._shared.runs:
            return False
        await self.see_run(self._some(list(self._shared.runs)))
        return True

    async def see_run(self, run_id: str) -> Answer:
        async def work() -> Answer:
            run = await self._client.beta.threads.runs.retrieve(run_id, thread_id=self._shared.thread_id)
            self._note(run)
            return ("ok", run.id, run.status)

        return await self._ask("get_run", {"run": run_id}, work)
