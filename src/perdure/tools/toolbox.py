"""The tools' port: what the engine asks of the built-in tools, and which of them this process has.

Rules. A tool that fails is no failure of the run: what it says goes back to the model. `RunFailure` is for what the
model can do nothing about. A call may be cancelled at any await, and then leaves nothing running.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from perdure.domain.builtin_tools import ToolKind
from perdure.domain.citations import Link
from perdure.wire.runs import Run
from perdure.wire.steps import CodeInterpreterCall, CodeOutput, FileSearchCall, StepRanking
from perdure.wire.tools import CodeInterpreterTool, FileSearchTool


class FoundRoom(msgspec.Struct, frozen=True):
    """How much text a search may bring: tokens, and what counts them."""

    tokens: int
    count: Callable[[str], int]


class FileSearch(Protocol):
    """Finds passages in the run's vector stores."""

    def ranking(self, run: Run) -> StepRanking:
        """Return how the run wants its results ranked."""
        ...

    async def has_stores(self, run: Run, project_id: str) -> bool:
        """Say whether there is anything to search."""
        ...

    async def search(self, run: Run, project_id: str, queries: list[str], room: FoundRoom) -> FileSearchCall:
        """Return what was found, best first, with its text. Raises RunFailure, for an expired store."""
        ...


class CodeInterpreter(Protocol):
    """Runs code."""

    async def file_names(self, run: Run, project_id: str) -> list[str]:
        """Return the names of the files that stand in /mnt/data before any code has run."""
        ...

    async def run_code(
        self, run: Run, project_id: str, call: CodeInterpreterCall, put_out: Callable[[CodeOutput], None]
    ) -> None:
        """Run `call.input`. Outputs go to `put_out` as they come, which adds them to the call as well.

        At the end `x_state` is `ended`, and `x_words` says what the model must know beside the outputs.
        """
        ...

    async def annotations_of(self, run: Run, project_id: str, links: list[Link]) -> list[dict[str, Any]]:
        """Make files of what the links name, as far as it is there, and return their annotations."""
        ...


class Images(Protocol):
    """Gives images that are files here."""

    async def data_url(self, file_id: str, project_id: str) -> str | None:
        """Return the image as a `data:` address; None if there is no such file, or it is no image that models take."""
        ...


class Toolbox(msgspec.Struct, frozen=True):
    """The built-in tools of this process."""

    images: Images | None = None

    file_search: FileSearch | None = None
    code_interpreter: CodeInterpreter | None = None

    def kinds(self, run: Run) -> tuple[ToolKind, ...]:
        """Return the kinds of built-in tools that the run has and this process can do."""
        found: list[ToolKind] = []
        if self.file_search is not None and any(isinstance(tool, FileSearchTool) for tool in run.tools):
            found.append("file_search")
        if self.code_interpreter is not None and any(isinstance(tool, CodeInterpreterTool) for tool in run.tools):
            found.append("code_interpreter")
        return tuple(found)


NO_TOOLS = Toolbox()
