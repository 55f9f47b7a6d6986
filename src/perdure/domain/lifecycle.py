"""The lifecycle of runs and run steps.

Owns the tables of legal moves and what each move changes in the object. Rules: nothing else decides whether a status
may change; `store/runs.py` and `store/steps.py` write what stands here, conditionally on the old status.

    queued ------> in_progress ------> completed | incomplete | failed
      |  ^           |   |  ^
      |  |           |   |  '-- (a worker claims)
      |  '-----------'   '----> requires_action ----> queued   (outputs submitted)
      |   (recovered,               |
      |    or let go)               |
      '----------> cancelling <-----'   <---- in_progress
                       '----> cancelled
    queued | in_progress | requires_action ----> expired
"""

from __future__ import annotations

from typing import Literal

import msgspec

from perdure.errors import RunFailure
from perdure.wire.kinds import LastError, Usage
from perdure.wire.messages import IncompleteReason
from perdure.wire.runs import IncompleteRun, RequiredAction, Run, RunStatus
from perdure.wire.steps import RunStep, StepStatus

RUN_MOVES: dict[RunStatus, frozenset[RunStatus]] = {
    "queued": frozenset({"in_progress", "cancelling", "expired", "failed"}),
    "in_progress": frozenset(
        {"completed", "incomplete", "failed", "requires_action", "cancelling", "expired", "queued"}
    ),
    "requires_action": frozenset({"queued", "cancelling", "expired"}),
    "cancelling": frozenset({"cancelled"}),
    "completed": frozenset(),
    "incomplete": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
    "expired": frozenset(),
}

TERMINAL: frozenset[RunStatus] = frozenset(status for status, moves in RUN_MOVES.items() if not moves)
ACTIVE: frozenset[RunStatus] = frozenset(RUN_MOVES) - TERMINAL
"""A run in one of these locks its thread."""

RETRIED: frozenset[RunStatus] = frozenset({"failed", "expired", "incomplete"})
"""A run that ended so may be tried again, as another run."""

STEP_MOVES: dict[StepStatus, frozenset[StepStatus]] = {
    "in_progress": frozenset({"completed", "failed", "cancelled", "expired"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
    "expired": frozenset(),
}

EndReason = Literal["cancelled", "failed", "expired"]

BROKEN_OFF: dict[EndReason, IncompleteReason] = {
    "cancelled": "run_cancelled",
    "failed": "run_failed",
    "expired": "run_expired",
}
"""Why a half-written message is incomplete, by how its step ended."""


class IllegalMove(Exception):
    """A bug: somebody asked for a move that the table does not have."""


def move_run(
    run: Run,
    to: RunStatus,
    now: int,
    *,
    usage: Usage | None = None,
    required_action: RequiredAction | None = None,
    failure: RunFailure | None = None,
    incomplete: IncompleteRun | None = None,
) -> Run:
    """Return the run after a move, `now` in Unix seconds. Raises IllegalMove.

    Odd, and recorded: `started_at` is stamped again each time a worker picks the run up, `expires_at` is kept while the
    run lives, submitted outputs do not extend it, and usage stays null until the end.
    """
    if to not in RUN_MOVES[run.status]:
        raise IllegalMove(f"run {run.id} can not move from {run.status} to {to}")
    moved = msgspec.structs.replace(run, status=to, required_action=required_action)
    if to == "in_progress":
        moved.started_at = now
    if to == "completed":
        moved.completed_at = now
    if to == "failed":
        moved.failed_at = now
    if to == "cancelled":
        moved.cancelled_at = now
    if failure is not None:
        moved.last_error = LastError(code=failure.code, message=failure.message)
    if incomplete is not None:
        moved.incomplete_details = incomplete
        moved.completed_at = now  # [R 2024]: set for incomplete runs as well
    if to in TERMINAL:
        moved.expires_at = None
        moved.usage = usage
    return moved


def move_step(
    step: RunStep, to: StepStatus, now: int, *, usage: Usage | None = None, failure: RunFailure | None = None
) -> RunStep:
    """Return the step after a move. Raises IllegalMove."""
    if to not in STEP_MOVES[step.status]:
        raise IllegalMove(f"step {step.id} can not move from {step.status} to {to}")
    moved = msgspec.structs.replace(step, status=to, expires_at=None, usage=usage)
    if to == "completed":
        moved.completed_at = now
    elif to == "cancelled":
        moved.cancelled_at = now
    elif to == "expired":
        moved.expired_at = now
    else:
        moved.failed_at = now
        if failure is not None:
            moved.last_error = LastError(code=failure.code, message=failure.message)
    return moved


def add_usage(left: Usage | None, right: Usage | None) -> Usage | None:
    """Return the sum; None means not counted."""
    if left is None or right is None:
        return left or right
    total = msgspec.structs.replace(left)
    total.prompt_tokens += right.prompt_tokens
    total.completion_tokens += right.completion_tokens
    total.total_tokens += right.total_tokens
    total.prompt_token_details = msgspec.structs.replace(
        left.prompt_token_details,
        cached_tokens=left.prompt_token_details.cached_tokens + right.prompt_token_details.cached_tokens,
    )
    total.completion_tokens_details = msgspec.structs.replace(
        left.completion_tokens_details,
        reasoning_tokens=left.completion_tokens_details.reasoning_tokens
        + right.completion_tokens_details.reasoning_tokens,
    )
    return total
