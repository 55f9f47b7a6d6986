"""Run steps in the store."""

from __future__ import annotations

from perdure.errors import ApiError, NotFound
from perdure.store.bodies import encode, read_step
from perdure.store.db import Do, Operation, Row, Rows
from perdure.store.pages import list_page
from perdure.wire.page import Page, PageQuery
from perdure.wire.steps import RunStep


def no_step(step_id: str) -> ApiError:
    """Return the refusal; its text is recorded."""
    return NotFound(f"No run step found with id '{step_id}'.")


def insert_step(step: RunStep) -> Operation[None]:
    """Store a new step. The caller holds the run."""
    yield Do(
        "INSERT INTO steps (id, run_id, thread_id, status, created_at, body) VALUES ($1, $2, $3, $4, $5, $6)",
        step.id,
        step.run_id,
        step.thread_id,
        step.status,
        step.created_at,
        encode(step),
    )


def write_step(step: RunStep) -> Operation[None]:
    """Write a step over its old self, which must still be in progress."""
    yield Do(
        "UPDATE steps SET status = $2, body = $3 WHERE id = $1 AND status = 'in_progress'",
        step.id,
        step.status,
        encode(step),
    )


def get_step(step_id: str, run_id: str) -> Operation[str]:
    """Return the stored JSON. Raises NotFound."""
    row = yield Row("SELECT body FROM steps WHERE id = $1 AND run_id = $2", step_id, run_id)
    if row is None:
        raise no_step(step_id)
    return str(row[0])


def list_steps(run_id: str, query: PageQuery) -> Operation[Page]:
    """Return a page of the run's steps."""
    return (yield from list_page("steps", ("run_id", run_id), query))


def list_all_steps(run_id: str) -> Operation[list[RunStep]]:
    """Return all of the run's steps, oldest first."""
    rows = yield Rows("SELECT body FROM steps WHERE run_id = $1 ORDER BY seq", run_id)
    return [read_step(row[0]) for row in rows]


def list_open_steps(run_id: str) -> Operation[list[RunStep]]:
    """Return the steps that are in progress, oldest first: one at most, unless somebody has erred."""
    rows = yield Rows("SELECT body FROM steps WHERE run_id = $1 AND status = 'in_progress' ORDER BY seq", run_id)
    return [read_step(row[0]) for row in rows]
