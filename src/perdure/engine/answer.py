"""Answering: the turns of a run, one after the other, until the run has left the worker's hands.

Every turn begins with a look at the store: what the model is shown is what is committed there.
"""

from __future__ import annotations

from functools import partial

from perdure.domain.budget import PromptCapReached
from perdure.domain.builtin_tools import searches_of, sources_of
from perdure.domain.transcript import undelivered_images
from perdure.engine.question import History, Offers, build_question, found_room, history_of, limits_of, question_text
from perdure.engine.recorder import Recorder
from perdure.engine.turn import Stop, Task, find_for_question, run_turn
from perdure.models.base import Capacity, Model, ModelRequest, ToolsRefused
from perdure.models.names import ModelRegistry
from perdure.store.db import Database
from perdure.store.runs import Claim
from perdure.tools.images import with_images
from perdure.tools.toolbox import Toolbox
from perdure.wire.runs import Extra
from perdure.wire.tools import ChooseCodeInterpreter, FunctionTool


async def work_run(
    recorder: Recorder, claim: Claim, stop: Stop, database: Database, models: ModelRegistry, toolbox: Toolbox
) -> None:
    """Work a run that was claimed. Raises what `run_turn` raises."""
    stop.check()
    model, name = await stop.wait_for(models.resolve(claim.row.run.model))
    work = _Work(recorder, claim, model, name, stop, database, toolbox)
    extra: Extra | None = claim.row.extra
    while extra is not None:
        extra = await work.turn(extra)


class _Work:
    """One run in work."""

    def __init__(
        self,
        recorder: Recorder,
        claim: Claim,
        model: Model,
        name: str,
        stop: Stop,
        database: Database,
        toolbox: Toolbox,
    ) -> None:
        self._recorder = recorder
        self._run = claim.row.run
        self._project_id = claim.row.project_id
        self._model = model
        self._name = name
        self._stop = stop
        self._database = database
        self._toolbox = toolbox

    async def turn(self, extra: Extra) -> Extra | None:
        """Take one turn; return what was counted if another one follows."""
        run, capacity = self._run, self._model.capacity(self._name)
        offers = await self._offers(capacity)
        history = await history_of(self._database, run, limits_of(run, extra, capacity).thread_room)
        if offers.found_is_given and await self._lacks_search(history):
            task = self._task(extra, history, capacity, ModelRequest(model=self._name, messages=[]))
            await find_for_question(self._recorder, task, question_text(history), self._stop)
            return extra
        question = build_question(run, extra, self._name, history, capacity, offers)
        if isinstance(question, PromptCapReached):
            await self._recorder.end_incomplete("max_prompt_tokens", extra)
            return None
        question = await self._stop.wait_for(with_images(question, self._toolbox.images, self._project_id))
        _, steps = history
        self._recorder.prepare(sources_of(steps), undelivered_images(steps))
        try:
            return await run_turn(self._recorder, self._task(extra, history, capacity, question), self._stop)
        except ToolsRefused:
            if not offers.kinds or any(isinstance(tool, FunctionTool) for tool in run.tools):
                raise
            return extra  # the next turn offers none

    async def _offers(self, capacity: Capacity) -> Offers:
        kinds = list(self._toolbox.kinds(self._run))
        given = not capacity.searches and "file_search" in kinds
        if not capacity.searches:  # nor does it write code that is worth running, unless it must
            must = isinstance(self._run.tool_choice, ChooseCodeInterpreter)
            kinds = [kind for kind in kinds if kind == "code_interpreter" and must]
        if not capacity.calls_tools:
            return Offers((), given)
        interpreter = self._toolbox.code_interpreter
        files: list[str] = []
        if interpreter is not None and "code_interpreter" in kinds:
            files = await interpreter.file_names(self._run, self._project_id)
        return Offers(tuple(kinds), given, tuple(files))

    async def _lacks_search(self, history: History) -> bool:
        """Say whether the search that the model can not make by itself is still to be made."""
        search = self._toolbox.file_search
        if search is None or self._run.tool_choice == "none" or searches_of(history[1]):
            return False
        return bool(question_text(history)) and await search.has_stores(self._run, self._project_id)

    def _task(self, extra: Extra, history: History, capacity: Capacity, question: ModelRequest) -> Task:
        room = partial(found_room, self._run, extra, history, capacity)
        return Task(self._run, self._project_id, extra, self._model, question, self._toolbox, room)
