"""Writes down the tool calls of a turn: one step, the calls in the order of their index.

Rules. Deltas say `id` and `name` once: clients join what comes again. What a built-in tool was asked is committed
before it is done, so that nothing is done twice unseen; its outputs are shown as they come and committed with the step.
"""

from __future__ import annotations

from typing import Any

import msgspec

from perdure.domain.json_text import CodeReader
from perdure.domain.lifecycle import move_step
from perdure.engine.recorder import Recorder
from perdure.wire.events import StepDelta, StepDeltaBody
from perdure.wire.kinds import Usage
from perdure.wire.runs import Extra, FunctionCall, RequiredAction, RequiredCall, RequiredCalls
from perdure.wire.steps import (
    CodeInterpreterCall,
    CodeInterpreterStepCall,
    CodeOutput,
    FileSearchCall,
    FileSearchStepCall,
    FunctionCallOutput,
    FunctionStepCall,
    LogsOutput,
    RunStep,
    StepCall,
    StepRanking,
    ToolCalls,
)


class CallRecorder:
    """The calls of one turn. `begin` comes once, then the calls begin in the order of their index."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._step: RunStep | None = None
        self.calls: list[StepCall] = []
        self._arguments: list[list[str]] = []
        self._code: dict[int, CodeReader] = {}

    async def _begin(self) -> None:
        if self._step is not None:
            return
        step = self._recorder.new_step(ToolCalls(tool_calls=[]))
        await self._recorder.begin_step(step)
        self._step = step

    # -- what the model asks

    async def begin_function(self, call_id: str | None, name: str) -> None:
        """Begin a function call. Recorded: its first delta has empty arguments, which follow in deltas of their own."""
        await self._begin()
        call = FunctionStepCall(id=self._id(call_id), function=FunctionCallOutput(name=name, arguments=""))
        self._append(call, {"function": {"name": name, "arguments": "", "output": None}})

    async def begin_code(self, call_id: str | None) -> None:
        """Begin a call of the code interpreter."""
        await self._begin()
        self._code[len(self.calls)] = CodeReader()
        call = CodeInterpreterStepCall(id=self._id(call_id), code_interpreter=CodeInterpreterCall(input="", outputs=[]))
        self._append(call, {"code_interpreter": {"input": "", "outputs": []}})

    async def begin_search(self, call_id: str | None, ranking: StepRanking) -> None:
        """Begin a call of file search. Its only delta says how is ranked; results come with the step's end."""
        await self._begin()
        call = FileSearchStepCall(id=self._id(call_id), file_search=FileSearchCall(ranking_options=ranking, results=[]))
        self._append(call, {"file_search": {"ranking_options": msgspec.to_builtins(ranking), "results": []}})

    def _id(self, call_id: str | None) -> str:
        known = {call.id for call in self.calls}
        return call_id if call_id and call_id not in known else self._recorder.ids.new("call")

    def _append(self, call: StepCall, shown: dict[str, Any]) -> None:
        index = len(self.calls)
        self.calls.append(call)
        self._arguments.append([])
        self._delta(index, call, shown, first=True)

    def argue(self, index: int, text: str) -> None:
        """Add to a call's arguments. Of code, what is code in them is shown as it comes."""
        if not text:
            return
        self._arguments[index].append(text)
        call = self.calls[index]
        if isinstance(call, FunctionStepCall):
            self._delta(index, call, {"function": {"arguments": text}})
        elif isinstance(call, CodeInterpreterStepCall):
            self._show_code(index, call, self._code[index].feed(text))

    def _show_code(self, index: int, call: StepCall, code: str) -> None:
        if code:
            self._delta(index, call, {"code_interpreter": {"input": code}})

    def arguments(self, index: int) -> str:
        """Return a call's arguments as the model wrote them."""
        return "".join(self._arguments[index])

    def _delta(self, index: int, call: StepCall, shown: dict[str, Any], *, first: bool = False) -> None:
        assert self._step is not None  # noqa: S101  # a call is begun with its step
        named = {"id": call.id} if first else {}  # recorded: the id stands before the type
        one = {"index": index, **named, "type": call.__struct_config__.tag, **shown}
        body = StepDeltaBody(step_details={"type": "tool_calls", "tool_calls": [one]})
        self._recorder.delta("thread.run.step.delta", StepDelta(id=self._step.id, delta=body))

    # -- what comes of it

    async def asked(self, *, commit: bool) -> None:
        """Take note that all is asked; `commit` it where something is done before the next change is."""
        for index, call in enumerate(self.calls):
            if isinstance(call, CodeInterpreterStepCall):
                reader = self._code[index]
                self._show_code(index, call, reader.end())
                call.code_interpreter.input = reader.code
            elif isinstance(call, FunctionStepCall):
                if not self.arguments(index):  # a function without parameters: programs read the arguments as JSON
                    self.argue(index, "{}")
                call.function.arguments = self.arguments(index)
        if commit:
            await self._commit()

    async def begin_running(self, index: int) -> CodeInterpreterCall:
        """Commit that the code is about to run; return the call, whose outputs the caller fills in."""
        call = self.calls[index]
        assert isinstance(call, CodeInterpreterStepCall)  # noqa: S101  # the caller has looked
        call.code_interpreter.x_state = "began"
        await self._commit()
        return call.code_interpreter

    async def _commit(self) -> None:
        await self._recorder.keep_step(self._whole())

    def _whole(self) -> RunStep:
        assert self._step is not None  # noqa: S101  # a turn that has calls has begun their step
        return msgspec.structs.replace(self._step, step_details=ToolCalls(tool_calls=list(self.calls)))

    def put_out(self, index: int, output: CodeOutput) -> None:
        """Show an output of code. Logs that follow logs are one output, in the object and in the deltas."""
        call = self.calls[index]
        assert isinstance(call, CodeInterpreterStepCall)  # noqa: S101  # only code has outputs
        outputs = call.code_interpreter.outputs
        last = outputs[-1] if outputs else None
        if isinstance(output, LogsOutput) and isinstance(last, LogsOutput):
            last.logs += output.logs
        else:
            outputs.append(output)
        shown = {"index": len(outputs) - 1, **msgspec.to_builtins(output)}
        self._delta(index, call, {"code_interpreter": {"outputs": [shown]}})

    def found(self, index: int, search: FileSearchCall) -> None:
        """Take note of what a search found."""
        call = self.calls[index]
        assert isinstance(call, FileSearchStepCall)  # noqa: S101  # the caller has looked
        call.file_search = search

    async def complete(self, usage: Usage | None, extra: Extra) -> None:
        """End the step; the run goes on with another turn."""
        step = move_step(self._whole(), "completed", self._recorder.now(), usage=usage)
        await self._recorder.end_step(step, extra)

    async def require_action(self, extra: Extra) -> None:
        """Let the program answer the functions among the calls: the step stays open and nobody holds the run."""
        required = [
            RequiredCall(id=call.id, function=FunctionCall(name=call.function.name, arguments=call.function.arguments))
            for call in self.calls
            if isinstance(call, FunctionStepCall)
        ]
        action = RequiredAction(submit_tool_outputs=RequiredCalls(tool_calls=required))
        await self._recorder.require_action(self._whole(), action, extra)
