"""Plays seeds: `python -m tests.simulation.run --seeds 20000 --from 7` says what it found; `--trace 7` shows one."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import multiprocessing
import secrets
import sys
import time
from typing import Any, NamedTuple

from tests.simulation.check import check_all
from tests.simulation.loop import StandstillError, VirtualLoop
from tests.simulation.play import Play, ViolationError
from tests.simulation.world import IN_PROCESS, OWNERS, Alter, DeadError, World, make_task

FAULTS = (0.0, 0.01, 0.03, 0.08)


class Outcome(NamedTuple):
    """What a seed came to: the invariant that does not hold, if any, why, and all that happened."""

    seed: int
    violated: str | None
    detail: str
    trace: list[str]


class _Bugs(logging.Handler):
    """Catches what the engine itself calls a bug."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and not isinstance(record.exc_info[1], DeadError):
            self.records.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


def simulate(seed: int, alter: Alter | None = None) -> Outcome:
    """Play one seed."""
    engine, bugs = logging.getLogger("perdure.engine"), _Bugs()
    engine.propagate = False
    engine.addHandler(bugs)
    loop = VirtualLoop()
    loop.set_task_factory(make_task)
    loop.set_exception_handler(lambda _loop, context: _unexpected(bugs, context))
    world = World(seed, faults=FAULTS[seed % len(FAULTS)], alter=alter)
    try:
        loop.run_until_complete(_whole(world))
        if len(bugs.records) > world.bugs_wanted:
            return Outcome(seed, "no-bugs", "; ".join(bugs.records), world.trace)
    except ViolationError as violation:
        return Outcome(seed, violation.name, str(violation), world.trace)
    except StandstillError:
        return Outcome(seed, "every-run-ends", "everybody waits for somebody else", world.trace)
    finally:
        _bury(loop)
        engine.removeHandler(bugs)
        world.connection.close()
    return Outcome(seed, None, "", world.trace)


async def _whole(world: World) -> None:
    play = Play(world)
    await play.run()
    check_all(play)


def _unexpected(bugs: _Bugs, context: dict[str, Any]) -> None:
    fault = context.get("exception")
    if not isinstance(fault, DeadError | ViolationError):
        bugs.records.append(f"{context['message']}: {fault!r}")


def _bury(loop: VirtualLoop) -> None:
    """End what is left: the tasks of processes that died in the middle of something."""
    left = [task for task in asyncio.all_tasks(loop) if not task.done()]
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=1))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    OWNERS.clear()
    IN_PROCESS.clear()


def _simulate_many(seeds: range) -> tuple[list[Outcome], int]:
    gc.freeze()
    found = [outcome for outcome in map(simulate, seeds) if outcome.violated]
    return found, len(seeds)


def simulate_range(first: int, count: int, processes: int = 2) -> list[Outcome]:
    """Play `count` seeds from `first` on, over several processes; return those that violate an invariant."""
    chunk = max(1, min(100, count // processes))
    chunks = [range(begin, min(begin + chunk, first + count)) for begin in range(first, first + count, chunk)]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return [outcome for found, _ in pool.imap_unordered(_simulate_many, chunks) for outcome in found]


def report(outcome: Outcome) -> str:
    """Say what was found, and how to see it again."""
    tail = "\n".join(outcome.trace[-60:])
    return (
        f"seed {outcome.seed} violates {outcome.detail}\n{tail}\n"
        f"again: python -m tests.simulation.run --trace {outcome.seed}"
    )


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--from", dest="first", type=int, default=None, help="the first seed; by default any")
    parser.add_argument("--trace", type=int, default=None, help="play this seed only, and print all that happens")
    options = parser.parse_args()
    if options.trace is not None:
        outcome = simulate(options.trace)
        sys.stdout.write("\n".join([*outcome.trace, outcome.detail or "every invariant holds"]) + "\n")
        return bool(outcome.violated)
    first = secrets.randbelow(10**9) if options.first is None else options.first
    began = time.perf_counter()
    found = simulate_range(first, options.seeds)
    for outcome in found[:3]:
        sys.stdout.write(report(outcome) + "\n\n")
    took = time.perf_counter() - began
    sys.stdout.write(
        f"{options.seeds} seeds from {first}: {len(found)} violate an invariant ({options.seeds / took:.0f} a second)\n"
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
