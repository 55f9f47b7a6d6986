"""Answering: the turns of a run, one after the other, until the run has left the worker's hands.

Every turn begins with a look at the store: what the model is shown is what is committed there.
"""

from __future__ import annotations

from perdure.domain.budget import PromptCapReached
from perdure.domain.builtin_tools import searches_of, sources_of
from perdure.domain.transcript import undelivered_images
from perdure.engine.question import History, Offers, build_question, found_room, history_of, limits_of, question_text
from perdure.engine.recorder import Recorder
from perdure.engine.turn import Stop, Task, find_for_question, run_turn
from perdure.models.base import Capacity, Model, ModelRequest
from perdure.models.names import ModelRegistry
from perdure.store.db import Database
from perdure.store.runs import Claim
from perdure.tools.toolbox import Toolbox
from perdure.wire.runs import Extra, Run


async def work_run(
    recorder: Recorder, claim: Claim, stop: Stop, database: Database, models: ModelRegistry, toolbox: Toolbox
) -> None:
    """Work a run that was claimed. Raises what `run_turn` raises."""
    stop.check()
    run = claim.row.run
    model, name = await stop.wait_for(models.resolve(run.model))
    work = _Work(recorder, run, model, name, stop, database, toolbox)
    extra: Extra | None = claim.row.extra
    while extra is not None:
        extra = await work.turn(extra)


class _Work:
    """One run in work."""

    def __init__(
        self, recorder: Recorder, run: Run, model: Model, name: str, stop: Stop, database: Database, toolbox: Toolbox
    ) -> None:
        self._recorder = recorder
        self._run = run
        self._model = model
        self._name = name
        self._stop = stop
        self._database = database
        self._toolbox = toolbox

    async def turn(self, extra: Extra) -> Extra | None:
        """Take one turn; return what was counted if another one follows."""
        run, capacity = self._run, self._model.capacity(self._name)
        offers = self._offers(capacity)
        history = await history_of(self._database, run, limits_of(run, extra, capacity).thread_room)
        if offers.found_is_given and await self._lacks_search(history):
            task = self._task(extra, history, capacity, ModelRequest(model=self._name, messages=[]))
            await find_for_question(self._recorder, task, question_text(history), self._stop)
            return extra
        question = build_question(run, extra, self._name, history, capacity, offers)
        if isinstance(question, PromptCapReached):
            await self._recorder.end_incomplete("max_prompt_tokens", extra)
            return None
        _, steps = history
        self._recorder.prepare(sources_of(steps), undelivered_images(steps))
        return await run_turn(self._recorder, self._task(extra, history, capacity, question), self._stop)

    def _offers(self, capacity: Capacity) -> Offers:
        kinds = self._toolbox.kinds(self._run)
        if capacity.searches:
            return Offers(kinds)
        return Offers(tuple(kind for kind in kinds if kind != "file_search"), found_is_given="file_search" in kinds)

    async def _lacks_search(self, history: History) -> bool:
        """Say whether the search that the model can not make by itself is still to be made."""
        search = self._toolbox.file_search
        if search is None or self._run.tool_choice == "none" or searches_of(history[1]):
            return False
        return bool(question_text(history)) and await search.has_stores(self._run)

    def _task(self, extra: Extra, history: History, capacity: Capacity, question: ModelRequest) -> Task:
        room = found_room(self._run, extra, history, capacity)
        return Task(self._run, extra, self._model, question, self._toolbox, room)
