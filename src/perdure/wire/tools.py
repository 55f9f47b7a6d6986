"""What a model may call and where its files are: tools, tool resources, tool choice, response format.

Input and output shapes are apart where the hosted server normalised: `normalised_tools` is that step.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType, field

from perdure.wire.kinds import Body, JsonSchema, Metadata

DEFAULT_RANKER: Literal["default_2024_08_21"] = "default_2024_08_21"

NAME_PATTERN = r"^[a-zA-Z0-9_-]+$(?!\n)"
"""The recorded pattern; in Python `$` alone would let a newline at the end through."""

FunctionName = Annotated[str, Meta(min_length=1, max_length=64, pattern=NAME_PATTERN)]
MOST_CODE_FILES = 20
FileIds = Annotated[list[str], Meta(max_length=MOST_CODE_FILES)]
Threshold = Annotated[float, Meta(ge=0, le=1)]


class RankingOptions(Body, kw_only=True):
    """How file search ranks. The hosted server added `hybrid_search` on output, so clients send it back."""

    ranker: Literal["auto", "default_2024_08_21"] | None = None
    score_threshold: Threshold | None = None
    hybrid_search: dict[str, Any] | None = None


class FileSearchOptions(Body, kw_only=True):
    """Options of the file search tool."""

    max_num_results: Annotated[int, Meta(ge=1, le=50)] | None | UnsetType = UNSET
    ranking_options: RankingOptions | None = None


class FunctionDefinition(Body, kw_only=True):
    """A function that the program offers."""

    name: FunctionName
    description: str | None | UnsetType = UNSET
    parameters: JsonSchema | None = None
    strict: bool | None = None


class CodeInterpreterTool(Body, tag_field="type", tag="code_interpreter", kw_only=True):
    """The tool that runs Python."""


class FunctionTool(Body, tag_field="type", tag="function", kw_only=True):
    """A function tool."""

    function: FunctionDefinition


class FileSearchTool(Body, tag_field="type", tag="file_search", kw_only=True):
    """The tool that searches vector stores."""

    file_search: FileSearchOptions | None = None


Tool = CodeInterpreterTool | FunctionTool | FileSearchTool
Tools = Annotated[list[Tool], Meta(max_length=128)]


def normalised_tools(tools: list[Tool] | None) -> list[Tool]:
    """Return the tools as the hosted server gave them back: defaults filled in, nulls dropped."""
    return [_normalised(tool) for tool in tools or []]


def _normalised(tool: Tool) -> Tool:
    if isinstance(tool, FunctionTool):
        given = tool.function
        return FunctionTool(
            function=FunctionDefinition(
                name=given.name,
                description=UNSET if given.description is None else given.description,
                parameters={"type": "object", "properties": {}} if given.parameters is None else given.parameters,
                strict=bool(given.strict),
            )
        )
    if isinstance(tool, FileSearchTool):
        options = tool.file_search or FileSearchOptions()
        ranking = options.ranking_options or RankingOptions()
        return FileSearchTool(
            file_search=FileSearchOptions(
                max_num_results=options.max_num_results or UNSET,
                ranking_options=RankingOptions(
                    ranker=ranking.ranker or DEFAULT_RANKER,
                    score_threshold=ranking.score_threshold or 0.0,
                    hybrid_search=ranking.hybrid_search,
                ),
            )
        )
    return tool


class StaticChunking(Body, kw_only=True):
    """Sizes of chunks, in tokens."""

    max_chunk_size_tokens: Annotated[int, Meta(ge=100, le=4096)]
    chunk_overlap_tokens: Annotated[int, Meta(ge=0)]


class AutoChunkingStrategy(Body, tag_field="type", tag="auto", kw_only=True):
    """The server chooses the chunks."""


class StaticChunkingStrategy(Body, tag_field="type", tag="static", kw_only=True):
    """The client chooses the chunks."""

    static: StaticChunking


class NewVectorStore(Body, kw_only=True):
    """A vector store to be made along with an assistant or a thread."""

    file_ids: list[str] | None = None
    chunking_strategy: AutoChunkingStrategy | StaticChunkingStrategy | None = None
    metadata: Metadata | None = None


class CodeInterpreterResources(Body, kw_only=True):
    """Files of the code interpreter."""

    file_ids: FileIds | None = None


class FileSearchResources(Body, kw_only=True):
    """Vector stores of file search. `vector_stores` is input only."""

    vector_store_ids: list[str] | None = None
    vector_stores: Annotated[list[NewVectorStore], Meta(max_length=1)] | None | UnsetType = UNSET


class ToolResources(Body, omit_defaults=True, kw_only=True):
    """What the tools may use."""

    code_interpreter: CodeInterpreterResources | None = None
    file_search: FileSearchResources | None = None


def normalised_resources(given: ToolResources | None, tools: list[Tool]) -> ToolResources:
    """Return resources as the hosted server gave them back: the code interpreter's list is there with its tool."""
    code = given.code_interpreter if given else None
    search = given.file_search if given else None
    if code is None and any(isinstance(tool, CodeInterpreterTool) for tool in tools):
        code = CodeInterpreterResources()
    return ToolResources(
        code_interpreter=None if code is None else CodeInterpreterResources(file_ids=code.file_ids or []),
        file_search=None if search is None else FileSearchResources(vector_store_ids=search.vector_store_ids or []),
    )


class FormatText(Body, tag_field="type", tag="text", kw_only=True):
    """Plain text."""


class FormatJsonObject(Body, tag_field="type", tag="json_object", kw_only=True):
    """Some JSON object."""


class SchemaFormat(Body, kw_only=True):
    """The schema of a structured answer."""

    name: Annotated[str, Meta(min_length=1, max_length=64, pattern=NAME_PATTERN)]
    description: str | None | UnsetType = UNSET
    schema_: JsonSchema | None | UnsetType = field(name="schema", default=UNSET)
    strict: bool | None | UnsetType = UNSET


class FormatJsonSchema(Body, tag_field="type", tag="json_schema", kw_only=True):
    """JSON that follows a schema."""

    json_schema: SchemaFormat


ResponseFormat = Literal["auto"] | FormatText | FormatJsonObject | FormatJsonSchema


class ChosenFunction(Body, kw_only=True):
    """The function that must be called."""

    name: FunctionName


class ChooseFunction(Body, tag_field="type", tag="function", kw_only=True):
    """Call this function first."""

    function: ChosenFunction


class ChooseFileSearch(Body, tag_field="type", tag="file_search", kw_only=True):
    """Search files first."""


class ChooseCodeInterpreter(Body, tag_field="type", tag="code_interpreter", kw_only=True):
    """Run code first."""


ToolChoice = Literal["none", "auto", "required"] | ChooseFunction | ChooseFileSearch | ChooseCodeInterpreter
