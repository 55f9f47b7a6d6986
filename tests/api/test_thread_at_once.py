"""Random operations of several clients at once on one thread; after each, what is seen agrees with the lifecycle.

Hypothesis draws the operations, the model plays a script with calls, slow answers, failures and silences. Timing is
real: what two calls at once do to each other is left to chance, what must hold afterwards is not.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import openai
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from openai.types.beta.threads import Message, Run
from openai.types.beta.threads.runs import RunStep

from perdure.domain.lifecycle import ACTIVE, BROKEN_OFF, RUN_MOVES, TERMINAL
from tests.api.scenes import SCRIPT, WEATHER, write_script
from tests.server import Client, running_server

SLOW = {"when": "^slow$", "say": "a b c d e f g h", "delay_seconds": 0.03}
SLOW_CALL = {**SCRIPT["rules"][1], "when": "^slow cities$", "delay_seconds": 0.01}
QUESTIONS = ("hello", "weather", "two cities", "think aloud", "slow", "slow cities", "hang", "break", "busy", "silence")
CLIENTS = 3
SECONDS = 30
"""For what must come to an end on a busy machine."""

RUN_ID, MESSAGE_ID = r"run_\w{24}", r"msg_\w{24}"
REFUSALS = {
    "say": rf"Can't add messages to thread_\w{{24}} while a run ({RUN_ID}) is active\.",
    "run": rf"Thread thread_\w{{24}} already has an active run ({RUN_ID})\.",
    "submit": r'Runs in status "(queued|in_progress|cancelling|cancelled|completed|failed|expired|incomplete)" do not '
    r"accept tool outputs\.|Expected tool outputs for call_ids \[.*\], got \[.*\]",
    "cancel": r"Cannot cancel run with status '(cancelling|cancelled|completed|failed|expired|incomplete)'\.",
    "modify": r"Cannot update run with status '(queued|in_progress|requires_action|cancelling)'\.",
    "delete": rf"Can't delete message {MESSAGE_ID} while a run ({RUN_ID}) is active\.|"
    rf"No message found with id '{MESSAGE_ID}'\.",
}
"""What each operation may be refused with; the recorded texts."""


FAILURES = {
    "The scripted model failed with status 429: Slow down.",
    "The scripted model broke off its answer.",
}
"""What the script makes fail; anything else is a defect."""


class Act(NamedTuple):
    """One operation; `number` chooses among what there is to act on, `good` whether outputs are all there."""

    name: str
    question: str
    number: int
    stream: bool
    good: bool


ACTS = st.builds(
    Act,
    st.sampled_from(["run", "run", "run", "submit", "submit", "submit", "cancel", "say", "modify", "delete", "list"]),
    st.sampled_from(QUESTIONS),
    st.integers(0, 20),
    st.booleans(),
    st.sampled_from([True, True, True, False]),
)


MOVES: dict[str, frozenset[Any]] = dict(RUN_MOVES.items())
WHY_INCOMPLETE: dict[str, str] = dict(BROKEN_OFF.items())


def check_stream(events: list[Any]) -> None:
    """Check that statuses move along the table, and that what was opened is closed before the run ends."""
    status, open_parts = "", set[str]()
    for event in events:
        kind, _, word = event.event.rpartition(".")
        if kind == "thread.run":
            now = "queued" if word == "created" else word
            assert event.data.status == now
            assert status in {"", now} or now in MOVES[status], f"{status} -> {now}"
            assert now not in TERMINAL or not open_parts, f"{now} with {open_parts} open"
            status = now
        elif word == "created" and kind != "thread":
            open_parts.add(event.data.id)
        elif word in {"completed", "failed", "cancelled", "expired", "incomplete"}:
            open_parts.discard(event.data.id)
    assert status in {*TERMINAL, "requires_action"}


def check_run(run: Run) -> None:
    """Check that the run's fields say the same as its status."""
    assert (run.expires_at is None) == (run.status in TERMINAL)
    assert (run.required_action is not None) == (run.status == "requires_action")
    assert (run.last_error is not None) == (run.status == "failed")
    assert run.last_error is None or run.last_error.message in FAILURES
    assert (run.failed_at is not None) == (run.status == "failed")
    assert (run.cancelled_at is not None) == (run.status == "cancelled")
    assert (run.completed_at is not None) == (run.status in {"completed", "incomplete"})
    assert (run.incomplete_details is not None) == (run.status == "incomplete")
    assert run.usage is None or run.status in TERMINAL


def check_ended(run: Run, steps: list[RunStep], messages: list[Message]) -> None:
    """Check that nothing of an ended run is open, and that what broke off says why."""
    for step in steps:
        assert step.status != "in_progress"
        assert step.status in {"completed", run.status}
        assert (step.last_error is not None) == (step.status == "failed")
    for message in messages:
        assert message.status != "in_progress"
        if message.status == "incomplete":
            assert message.incomplete_details is not None
            assert message.incomplete_details.reason == WHY_INCOMPLETE[run.status]
    if run.status == "completed":
        assert {step.status for step in steps} == {"completed"}


def check_refusal(act: Act, error: openai.APIStatusError, ended: set[str]) -> None:
    """Check a refusal's shape and text, and that it blames no run that had ended."""
    shown = error.response.json()["error"]
    assert set(shown) == {"message", "type", "param", "code"}
    assert error.status_code == (404 if shown["message"].startswith("No ") else 400)
    found = re.fullmatch(REFUSALS[act.name], shown["message"])
    assert found is not None, shown["message"]
    assert not ended & set(found.groups()), f"an ended run holds the lock: {shown['message']}"


class ThreadAtOnce(RuleBasedStateMachine):
    """One thread, several clients."""

    clients: ClassVar[list[Client]] = []
    ends: ClassVar[set[str]] = set()

    @initialize()
    def begin(self) -> None:
        self.beta = self.clients[0].beta
        self.pool = ThreadPoolExecutor(CLIENTS + 4, thread_name_prefix="client")
        self.streams: list[Future[None]] = []
        self.assistant = self.beta.assistants.create(model="gpt-4o", tools=[WEATHER]).id
        self.thread = self.beta.threads.create(messages=[{"role": "user", "content": "hello"}]).id
        self.runs: dict[str, Run] = {}
        self.messages: list[Message] = []

    @rule(acts=st.lists(ACTS, min_size=1, max_size=CLIENTS), seconds=st.sampled_from([0, 0, 0.05, 0.2]))
    def act(self, acts: list[Act], seconds: float) -> None:
        """Let each client do one thing, all at once, and wait a little."""
        active = [one for one in self.runs.values() if one.status in ACTIVE]
        ended = {one.id for one in self.runs.values() if one.status in TERMINAL}
        chosen = zip(self.clients, acts, strict=False)
        done = [self.pool.submit(self.call, client, act, ended) for client, act in chosen]
        took = [one.result(SECONDS) for one in done]
        time.sleep(seconds)
        if any(one in {"say", "run"} for one in took):  # the lock was free, so whoever had it has ended
            for run in active:
                now = self.beta.threads.runs.retrieve(run.id, thread_id=self.thread)
                assert now.status in TERMINAL, f"{took} while {run.id} is {now.status}"

    def call(self, client: Client, act: Act, ended: set[str]) -> str | None:
        """Do one thing; return its name if it was not refused, else check the refusal."""
        calls: dict[str, Callable[[Client, Act], object]] = {
            "run": self.run,
            "submit": self.submit,
            "cancel": self.cancel,
            "say": self.say,
            "modify": self.modify,
            "delete": self.delete,
            "list": self.page,
        }
        try:
            calls[act.name](client, act)
        except openai.APIStatusError as error:
            check_refusal(act, error, ended)
            return None
        return act.name

    # -- what a client can do

    def run(self, client: Client, act: Act) -> None:
        question: Any = [{"role": "user", "content": act.question}]
        runs: Any = client.beta.threads.runs
        ids = {"thread_id": self.thread, "assistant_id": self.assistant}
        if act.stream:
            self.follow(runs.create(**ids, additional_messages=question, stream=True))
        else:
            assert runs.create(**ids, additional_messages=question).status == "queued"

    def follow(self, stream: Any) -> None:
        """Read a stream to its end beside everything else."""
        self.streams.append(self.pool.submit(lambda: check_stream(list(stream))))

    def chosen(self, act: Act) -> Run | None:
        """Return the newest run for an even number, else any: most of the ended ones only get refusals."""
        runs = list(self.runs.values())
        return None if not runs else runs[-1] if act.number % 2 == 0 else runs[act.number % len(runs)]

    def submit(self, client: Client, act: Act) -> None:
        run = self.chosen(act)
        if run is None:
            return
        action = run.required_action
        calls = action.submit_tool_outputs.tool_calls if action else []
        outputs: Any = [{"tool_call_id": call.id, "output": act.question} for call in calls]
        outputs = outputs if act.good else [*outputs, {"tool_call_id": "call_other", "output": ""}]
        runs = client.beta.threads.runs
        if act.stream:
            self.follow(runs.submit_tool_outputs(run.id, thread_id=self.thread, tool_outputs=outputs, stream=True))
            return
        now = runs.submit_tool_outputs(run.id, thread_id=self.thread, tool_outputs=outputs)
        assert (now.status, now.required_action) == ("queued", None)

    def cancel(self, client: Client, act: Act) -> None:
        run = self.chosen(act)
        if run is not None:
            assert client.beta.threads.runs.cancel(run.id, thread_id=self.thread).status == "cancelling"

    def say(self, client: Client, act: Act) -> None:
        role: Any = "user" if act.good else "assistant"
        message = client.beta.threads.messages.create(self.thread, role=role, content=act.question)
        assert message.status == "completed"

    def modify(self, client: Client, act: Act) -> None:
        run = self.chosen(act)
        if run is not None:
            value = {"number": str(act.number)}
            now = client.beta.threads.runs.update(run.id, thread_id=self.thread, metadata=value)
            assert now.metadata == value
            assert now.status in TERMINAL

    def delete(self, client: Client, act: Act) -> None:
        if len(self.messages) > 1:  # one is kept, so that a run always has something to run on
            message = self.messages[1 + act.number % (len(self.messages) - 1)]
            assert client.beta.threads.messages.delete(message.id, thread_id=self.thread).deleted

    def page(self, client: Client, act: Act) -> None:
        limit = 1 + act.number
        paged = [one.id for one in client.beta.threads.runs.list(self.thread, limit=limit, order="asc")]
        assert paged[: len(self.runs)] == list(self.runs)

    # -- what must hold

    @invariant()
    def agrees_with_the_lifecycle(self) -> None:
        if not hasattr(self, "thread"):
            return
        seen = self.beta.threads.runs.list(self.thread, limit=100, order="asc").data
        assert sum(run.status in ACTIVE for run in seen) <= 1
        assert [run.id for run in seen][: len(self.runs)] == list(self.runs), "a run is gone, or they changed places"
        for run in seen:
            check_run(run)
            before = self.runs.get(run.id)
            if before is not None:
                self.check_move(before, run)
        self.runs = {run.id: run for run in seen}
        self.check_parts()
        for stream in [one for one in self.streams if one.done()]:
            stream.result()
            self.streams.remove(stream)

    def check_move(self, before: Run, now: Run) -> None:
        reachable, added = {before.status}, {before.status}
        while added:  # several moves may lie between two looks
            added = {to for one in added for to in RUN_MOVES[one]} - reachable
            reachable |= added
        assert now.status in reachable, f"{before.status} -> {now.status}"
        if before.status in TERMINAL:
            assert before.model_copy(update={"metadata": None}) == now.model_copy(update={"metadata": None})

    def check_parts(self) -> None:
        """Check steps and messages. They are read after the runs: what had ended by then has no open part."""
        self.messages = self.beta.threads.messages.list(self.thread, limit=100, order="asc").data
        for message in self.messages:
            assert message.run_id is None or message.assistant_id == self.assistant
        for run in self.runs.values():
            steps = self.beta.threads.runs.steps.list(run.id, thread_id=self.thread, limit=100, order="asc").data
            assert [step.run_id for step in steps] == [run.id] * len(steps)
            assert sum(step.status == "in_progress" for step in steps) <= 1
            if run.status in TERMINAL:
                check_ended(run, steps, [one for one in self.messages if one.run_id == run.id])
            elif (
                run.status == "requires_action"
                and self.beta.threads.runs.retrieve(run.id, thread_id=self.thread) == run
            ):  # nothing happened in between
                assert (steps[-1].type, steps[-1].status) == ("tool_calls", "in_progress")

    def teardown(self) -> None:
        """Let everything come to its end: a run that hangs or waits expires by itself."""
        if not hasattr(self, "thread"):
            return
        until = time.monotonic() + SECONDS
        while any(run.status in ACTIVE for run in self.runs.values()):
            assert time.monotonic() < until, "a run does not end"
            time.sleep(0.05)
            self.agrees_with_the_lifecycle()
        for stream in self.streams:
            stream.result(SECONDS)
        self.pool.shutdown()
        self.ends.update(run.status for run in self.runs.values())
        self.beta.threads.delete(self.thread)
        for run_id in self.runs:
            with pytest.raises(openai.NotFoundError):
                self.beta.threads.runs.retrieve(run_id, thread_id=self.thread)


@pytest.fixture
def clients(tmp_path: Path) -> Iterator[list[Client]]:
    script = write_script(tmp_path, {**SCRIPT, "rules": [SLOW, SLOW_CALL, *SCRIPT["rules"]]})
    with running_server(tmp_path / "data", script=script, run_expiry_seconds=1) as url:
        made = [Client(url) for _ in range(CLIENTS)]
        yield made
        for one in made:
            one.close()


def test_what_several_clients_do_at_once_keeps_to_the_lifecycle(
    clients: list[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ThreadAtOnce, "clients", clients)
    run_state_machine_as_test(
        ThreadAtOnce,
        settings=settings(
            max_examples=16,
            stateful_step_count=14,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],  # timing is not repeatable, so shrinking would only mislead
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert {"completed", "cancelled", "expired"} <= ThreadAtOnce.ends, "the draw was too narrow"
