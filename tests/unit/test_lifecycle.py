"""The lifecycle tables: every move, legal or not, and what each changes."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from perdure.domain.lifecycle import (
    ACTIVE,
    RUN_MOVES,
    STEP_MOVES,
    TERMINAL,
    IllegalMove,
    add_usage,
    move_run,
    move_step,
)
from perdure.errors import RunFailure
from perdure.wire.events import END_EVENTS, RUN_EVENTS
from perdure.wire.kinds import CompletionTokensDetails, PromptTokenDetails, Usage
from perdure.wire.runs import (
    FunctionCall,
    IncompleteRun,
    RequiredAction,
    RequiredCall,
    RequiredCalls,
    Run,
    RunStatus,
    TruncationStrategy,
)
from perdure.wire.steps import CreatedMessage, MessageCreation, RunStep, StepStatus
from perdure.wire.tools import ToolResources

RUN_STATUSES = get_args(RunStatus)
STEP_STATUSES = get_args(StepStatus)
LEGAL = {
    *(("queued", to) for to in ("in_progress", "cancelling", "expired", "failed")),
    *(("in_progress", to) for to in ("completed", "incomplete", "failed", "requires_action", "cancelling")),
    *(("in_progress", to) for to in ("expired", "queued")),
    *(("requires_action", to) for to in ("queued", "cancelling", "expired")),
    ("cancelling", "cancelled"),
}
ACTION = RequiredAction(
    submit_tool_outputs=RequiredCalls(
        tool_calls=[RequiredCall(id="call_1", function=FunctionCall(name="f", arguments="{}"))]
    )
)
FAILURE = RunFailure("It broke.", code="rate_limit_exceeded")
NOW = 2_000


def usage(number: int) -> Usage:
    return Usage(
        prompt_tokens=number,
        completion_tokens=10 * number,
        total_tokens=11 * number,
        prompt_token_details=PromptTokenDetails(cached_tokens=2 * number),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=3 * number),
    )


def run(status: RunStatus) -> Run:
    return Run(
        id="run_1",
        created_at=1_000,
        assistant_id="asst_1",
        thread_id="thread_1",
        status=status,
        started_at=None if status == "queued" else 1_500,
        expires_at=1_600,
        required_action=ACTION if status == "requires_action" else None,
        model="m",
        instructions="",
        tools=[],
        tool_resources=ToolResources(),
        metadata={"a": "b"},
        temperature=1.0,
        top_p=1.0,
        reasoning_effort=None,
        max_completion_tokens=None,
        max_prompt_tokens=None,
        truncation_strategy=TruncationStrategy(),
        response_format="auto",
        tool_choice="auto",
        parallel_tool_calls=True,
    )


def step(status: StepStatus = "in_progress") -> RunStep:
    return RunStep(
        id="step_1",
        created_at=1_000,
        run_id="run_1",
        assistant_id="asst_1",
        thread_id="thread_1",
        type="message_creation",
        status=status,
        expires_at=1_600,
        step_details=MessageCreation(message_creation=CreatedMessage(message_id="msg_1")),
    )


def changes(before: Run | RunStep, after: Run | RunStep) -> dict[str, Any]:
    old, new = msgspec.structs.asdict(before), msgspec.structs.asdict(after)
    return {name: value for name, value in new.items() if value != old[name]}


@pytest.mark.parametrize("to", RUN_STATUSES)
@pytest.mark.parametrize("status", RUN_STATUSES)
def test_every_run_move_is_legal_or_refused(status: RunStatus, to: RunStatus) -> None:
    before = run(status)
    if (status, to) in LEGAL:
        assert move_run(before, to, NOW).status == to
    else:
        with pytest.raises(IllegalMove, match=f"from {status} to {to}"):
            move_run(before, to, NOW)
    assert before == run(status)


def test_the_tables_name_every_status() -> None:
    assert set(RUN_MOVES) == set(RUN_STATUSES) == set(RUN_EVENTS)
    assert set(STEP_MOVES) == set(STEP_STATUSES)
    assert {"completed", "incomplete", "failed", "cancelled", "expired"} == TERMINAL
    assert {"queued", "in_progress", "requires_action", "cancelling"} == ACTIVE
    assert {RUN_EVENTS[status] for status in {*TERMINAL, "requires_action"}} == END_EVENTS


def test_every_active_status_can_reach_an_end() -> None:
    for status in ACTIVE:
        reached: set[RunStatus] = {status}
        while more := {to for one in reached for to in RUN_MOVES[one]} - reached:
            reached |= more
        assert reached & TERMINAL


ENDED = {"expires_at": None, "usage": usage(1)}
RUN_CHANGES: list[tuple[RunStatus, RunStatus, dict[str, Any], dict[str, Any]]] = [
    ("queued", "in_progress", {}, {"started_at": NOW}),
    ("queued", "cancelling", {}, {}),
    ("queued", "expired", {"usage": None}, {"expires_at": None}),
    ("in_progress", "completed", {"usage": usage(1)}, {"completed_at": NOW, **ENDED}),
    (
        "in_progress",
        "incomplete",
        {"usage": usage(1), "incomplete": IncompleteRun(reason="max_completion_tokens")},
        {"completed_at": NOW, "incomplete_details": IncompleteRun(reason="max_completion_tokens"), **ENDED},
    ),
    ("in_progress", "requires_action", {"required_action": ACTION}, {"required_action": ACTION}),
    ("in_progress", "queued", {}, {}),
    ("in_progress", "cancelling", {}, {}),
    ("requires_action", "queued", {}, {"required_action": None}),
    ("requires_action", "cancelling", {}, {"required_action": None}),
    ("requires_action", "expired", {"usage": usage(1)}, {"required_action": None, **ENDED}),
    ("cancelling", "cancelled", {"usage": usage(1)}, {"cancelled_at": NOW, **ENDED}),
]


@pytest.mark.parametrize(("status", "to", "given", "expected"), RUN_CHANGES)
def test_what_a_run_move_changes(
    status: RunStatus, to: RunStatus, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    before = run(status)
    assert changes(before, move_run(before, to, NOW, **given)) == {"status": to, **expected}


def test_a_failed_run_says_why() -> None:
    moved = move_run(run("in_progress"), "failed", NOW, failure=FAILURE, usage=usage(1))
    assert moved.last_error is not None
    assert (moved.last_error.code, moved.last_error.message) == ("rate_limit_exceeded", "It broke.")
    assert (moved.failed_at, moved.expires_at, moved.completed_at) == (NOW, None, None)


def test_a_run_that_is_picked_up_again_is_stamped_again() -> None:
    queued = move_run(run("requires_action"), "queued", NOW)
    assert (queued.started_at, queued.expires_at) == (1_500, 1_600)
    assert move_run(queued, "in_progress", NOW).started_at == NOW


@pytest.mark.parametrize("to", STEP_STATUSES)
@pytest.mark.parametrize("status", STEP_STATUSES)
def test_every_step_move_is_legal_or_refused(status: StepStatus, to: StepStatus) -> None:
    if status == "in_progress" and to != "in_progress":
        assert move_step(step(status), to, NOW).status == to
    else:
        with pytest.raises(IllegalMove, match=f"from {status} to {to}"):
            move_step(step(status), to, NOW)


@pytest.mark.parametrize(
    ("to", "stamp"),
    [
        ("completed", "completed_at"),
        ("cancelled", "cancelled_at"),
        ("expired", "expired_at"),
        ("failed", "failed_at"),
    ],
)
def test_what_a_step_move_changes(to: StepStatus, stamp: str) -> None:
    before = step()
    moved = move_step(before, to, NOW, usage=usage(1))
    assert changes(before, moved) == {"status": to, stamp: NOW, "expires_at": None, "usage": usage(1)}


def test_only_a_failed_step_has_an_error() -> None:
    failed = move_step(step(), "failed", NOW, failure=FAILURE)
    assert failed.last_error is not None
    assert failed.last_error.message == "It broke."
    assert move_step(step(), "cancelled", NOW, failure=FAILURE).last_error is None


def test_usage_adds_up_and_none_is_not_counted() -> None:
    left, right = usage(1), usage(4)
    assert add_usage(left, right) == usage(5)
    assert (left, right) == (usage(1), usage(4))
    assert add_usage(None, right) == right
    assert add_usage(left, None) == left
    assert add_usage(None, None) is None
