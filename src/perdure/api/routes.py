"""The route table: every operation of the API with its path, its operationId, what it takes and who answers.

The API is mounted at `/v1`, at `/openai/v1` and at `/openai` (Azure's shape); longer prefixes come first.
`/openapi.json`, at each of them and at the root, describes it.
"""

from __future__ import annotations

from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp

from perdure.api import (
    assistants,
    events,
    file_batches,
    files,
    messages,
    models,
    runs,
    steps,
    threads,
    uploads,
    vector_store_files,
    vector_stores,
)
from perdure.api.call import Context
from perdure.api.door import Endpoint, Way, unknown_path
from perdure.api.openapi import Document, Operation
from perdure.api.shortcut import Shortcut
from perdure.wire.assistants import Assistant, CreateAssistant, ModifyAssistant
from perdure.wire.files import MOST_FILES_PER_PAGE, CreateFile, DeletedFile, File
from perdure.wire.kinds import Deleted
from perdure.wire.messages import AddMessage, Message, ModifyMessage
from perdure.wire.models import ModelList, ModelObject
from perdure.wire.runs import CreateRun, CreateThreadAndRun, ModifyRun, RetryRun, Run, SubmitToolOutputs
from perdure.wire.search import SearchPage, SearchRequest
from perdure.wire.steps import RunStep
from perdure.wire.threads import CreateThread, ForkThread, ModifyThread, Thread
from perdure.wire.uploads import AddUploadPart, CompleteUpload, CreateUpload, Upload, UploadPart
from perdure.wire.vector_stores import (
    CreateFileBatch,
    CreateVectorStore,
    CreateVectorStoreFile,
    FileBatch,
    FileTextPage,
    ModifyVectorStore,
    RebuildVectorStore,
    UpdateAttributes,
    VectorStore,
    VectorStoreFile,
)

__all__ = ["MOUNTS", "OPERATIONS", "Operation", "routes"]

STORE = "/vector_stores/{vector_store_id}"
MOUNTS = ("/v1", "/openai/v1", "/openai")

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "POST",
        "/threads/{thread_id}/messages",
        "createMessage",
        messages.create_message,
        AddMessage,
        gives=Message,
    ),
    Operation(
        "GET",
        "/threads/{thread_id}/messages",
        "listMessages",
        messages.list_messages,
        gives=Message,
        page=True,
        query=("run_id",),
    ),
    Operation("GET", "/threads/{thread_id}/runs/{run_id}", "getRun", runs.get_run, gives=Run),
    Operation("POST", "/threads/{thread_id}/runs/{run_id}", "modifyRun", runs.modify_run, ModifyRun, gives=Run),
    Operation(
        "POST",
        "/threads/{thread_id}/runs",
        "createRun",
        runs.create_run,
        CreateRun,
        gives=Run,
        query=("include[]",),
    ),
    Operation("GET", "/threads/{thread_id}/runs", "listRuns", runs.list_runs, gives=Run, page=True),
    Operation(
        "POST",
        "/threads/runs",
        "createThreadAndRun",
        runs.create_thread_and_run,
        CreateThreadAndRun,
        gives=Run,
    ),
    Operation("POST", "/threads", "createThread", threads.create_thread, CreateThread, gives=Thread),
    Operation("GET", "/threads/{thread_id}", "getThread", threads.get_thread, gives=Thread),
    Operation(
        "POST",
        "/threads/{thread_id}",
        "modifyThread",
        threads.modify_thread,
        ModifyThread,
        gives=Thread,
    ),
    Operation("DELETE", "/threads/{thread_id}", "deleteThread", threads.delete_thread, gives=Deleted),
    Operation("GET", "/threads/{thread_id}/messages/{message_id}", "getMessage", messages.get_message, gives=Message),
    Operation(
        "POST",
        "/threads/{thread_id}/messages/{message_id}",
        "modifyMessage",
        messages.modify_message,
        ModifyMessage,
        gives=Message,
    ),
    Operation(
        "DELETE",
        "/threads/{thread_id}/messages/{message_id}",
        "deleteMessage",
        messages.delete_message,
        gives=Deleted,
    ),
    Operation("POST", "/threads/{thread_id}/runs/{run_id}/cancel", "cancelRun", runs.cancel_run, gives=Run),
    Operation(
        "POST",
        "/threads/{thread_id}/runs/{run_id}/submit_tool_outputs",
        "submitToolOuputsToRun",
        runs.submit_tool_ouputs_to_run,
        SubmitToolOutputs,
        gives=Run,
    ),
    Operation(
        "GET",
        "/threads/{thread_id}/runs/{run_id}/steps",
        "listRunSteps",
        steps.list_run_steps,
        gives=RunStep,
        page=True,
        query=("include[]",),
    ),
    Operation(
        "GET",
        "/threads/{thread_id}/runs/{run_id}/steps/{step_id}",
        "getRunStep",
        steps.get_run_step,
        gives=RunStep,
        query=("include[]",),
    ),
    Operation(
        "POST",
        "/assistants",
        "createAssistant",
        assistants.create_assistant,
        CreateAssistant,
        gives=Assistant,
    ),
    Operation("GET", "/assistants", "listAssistants", assistants.list_assistants, gives=Assistant, page=True),
    Operation("GET", "/assistants/{assistant_id}", "getAssistant", assistants.get_assistant, gives=Assistant),
    Operation(
        "POST",
        "/assistants/{assistant_id}",
        "modifyAssistant",
        assistants.modify_assistant,
        ModifyAssistant,
        gives=Assistant,
    ),
    Operation("DELETE", "/assistants/{assistant_id}", "deleteAssistant", assistants.delete_assistant, gives=Deleted),
    Operation("GET", "/models", "listModels", models.list_models, gives=ModelList),
    Operation("GET", "/models/{model:path}", "retrieveModel", models.retrieve_model, gives=ModelObject),
    Operation(
        "DELETE",
        "/models/{model:path}",
        "deleteModel",
        models.delete_model,
        lacks="there are no fine-tuned models to delete: always a 400, or a 404 for an unknown name",
    ),
    Operation("POST", "/files", "createFile", files.create_file, CreateFile, file="file", gives=File),
    Operation(
        "GET",
        "/files",
        "listFiles",
        files.list_files,
        gives=File,
        page=True,
        most=MOST_FILES_PER_PAGE,
        query=("purpose",),
    ),
    Operation("GET", "/files/{file_id}", "retrieveFile", files.retrieve_file, gives=File),
    Operation("DELETE", "/files/{file_id}", "deleteFile", files.delete_file, gives=DeletedFile),
    Operation("GET", "/files/{file_id}/content", "downloadFile", files.download_file, gives=bytes),
    Operation("POST", "/uploads", "createUpload", uploads.create_upload, CreateUpload, gives=Upload),
    Operation(
        "POST",
        "/uploads/{upload_id}/parts",
        "addUploadPart",
        uploads.add_upload_part,
        AddUploadPart,
        file="data",
        gives=UploadPart,
    ),
    Operation(
        "POST",
        "/uploads/{upload_id}/complete",
        "completeUpload",
        uploads.complete_upload,
        CompleteUpload,
        gives=Upload,
    ),
    Operation("POST", "/uploads/{upload_id}/cancel", "cancelUpload", uploads.cancel_upload, gives=Upload),
    Operation(
        "POST",
        "/vector_stores",
        "createVectorStore",
        vector_stores.create_vector_store,
        CreateVectorStore,
        gives=VectorStore,
    ),
    Operation(
        "GET", "/vector_stores", "listVectorStores", vector_stores.list_vector_stores, gives=VectorStore, page=True
    ),
    Operation("GET", STORE, "getVectorStore", vector_stores.get_vector_store, gives=VectorStore),
    Operation(
        "POST", STORE, "modifyVectorStore", vector_stores.modify_vector_store, ModifyVectorStore, gives=VectorStore
    ),
    Operation("DELETE", STORE, "deleteVectorStore", vector_stores.delete_vector_store, gives=Deleted),
    Operation(
        "POST",
        f"{STORE}/search",
        "searchVectorStore",
        vector_stores.search_vector_store,
        SearchRequest,
        gives=SearchPage,
    ),
    Operation(
        "POST",
        f"{STORE}/files",
        "createVectorStoreFile",
        vector_store_files.create_vector_store_file,
        CreateVectorStoreFile,
        gives=VectorStoreFile,
    ),
    Operation(
        "GET",
        f"{STORE}/files",
        "listVectorStoreFiles",
        vector_store_files.list_vector_store_files,
        gives=VectorStoreFile,
        page=True,
        query=("filter",),
    ),
    Operation(
        "GET",
        f"{STORE}/files/{{file_id}}",
        "getVectorStoreFile",
        vector_store_files.get_vector_store_file,
        gives=VectorStoreFile,
    ),
    Operation(
        "POST",
        f"{STORE}/files/{{file_id}}",
        "updateVectorStoreFileAttributes",
        vector_store_files.update_vector_store_file_attributes,
        UpdateAttributes,
        gives=VectorStoreFile,
    ),
    Operation(
        "DELETE",
        f"{STORE}/files/{{file_id}}",
        "deleteVectorStoreFile",
        vector_store_files.delete_vector_store_file,
        gives=Deleted,
    ),
    Operation(
        "GET",
        f"{STORE}/files/{{file_id}}/content",
        "retrieveVectorStoreFileContent",
        vector_store_files.retrieve_vector_store_file_content,
        gives=FileTextPage,
    ),
    Operation(
        "POST",
        f"{STORE}/file_batches",
        "createVectorStoreFileBatch",
        file_batches.create_vector_store_file_batch,
        CreateFileBatch,
        gives=FileBatch,
    ),
    Operation(
        "GET",
        f"{STORE}/file_batches/{{batch_id}}",
        "getVectorStoreFileBatch",
        file_batches.get_vector_store_file_batch,
        gives=FileBatch,
    ),
    Operation(
        "POST",
        f"{STORE}/file_batches/{{batch_id}}/cancel",
        "cancelVectorStoreFileBatch",
        file_batches.cancel_vector_store_file_batch,
        gives=FileBatch,
    ),
    Operation(
        "GET",
        f"{STORE}/file_batches/{{batch_id}}/files",
        "listFilesInVectorStoreBatch",
        file_batches.list_files_in_vector_store_batch,
        gives=VectorStoreFile,
        page=True,
        query=("filter",),
    ),
    Operation(
        "GET",
        "/threads",
        "listThreads",
        threads.list_threads,
        gives=Thread,
        page=True,
        query=("metadata", "created_at"),
        extension="threads of the key's project, newest first; `metadata[key]=value` and "
        "`created_at[gte]=seconds` (gt, gte, lt, lte) narrow them down",
    ),
    Operation(
        "POST",
        "/threads/{thread_id}/fork",
        "forkThread",
        threads.fork_thread,
        ForkThread,
        gives=Thread,
        extension="a new thread with copies of the finished messages, up to and with `message_id` if it is given",
    ),
    Operation(
        "POST",
        "/threads/{thread_id}/runs/{run_id}/retry",
        "retryRun",
        runs.retry_run,
        RetryRun,
        gives=Run,
        extension="a failed, expired or incomplete run again, as a new run on the same thread, plain or streamed",
    ),
    Operation(
        "GET",
        "/threads/{thread_id}/runs/{run_id}/events",
        "followRunEvents",
        events.follow_run_events,
        header="Last-Event-ID",
        extension="the run's events as a stream, from the first one or after `Last-Event-ID`, to the run's end; while "
        "it is worked on and afterwards, as many readers as like",
    ),
    Operation(
        "POST",
        f"{STORE}/rebuild",
        "rebuildVectorStore",
        vector_stores.rebuild_vector_store,
        RebuildVectorStore,
        gives=VectorStore,
        extension="all files of a vector store again, by the embedding model that new stores are made with",
    ),
)


def routes(context: Context, beyond: ASGIApp = unknown_path) -> Shortcut:
    """Return the application with the API at all its mounts. `beyond` gets what is at them and not in the table."""
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    endpoints = {
        path: Endpoint(context, {method: _way(one) for method, one in methods.items()})
        for path, methods in sorted(by_path.items(), key=lambda item: _rank(item[0]))
    }
    document = Route("/openapi.json", Document(OPERATIONS, MOUNTS))
    paths = [Route(path, endpoint) for path, endpoint in endpoints.items()]
    api = Router([document, *paths], redirect_slashes=False, default=beyond)
    mounts = [Mount(prefix, app=api) for prefix in MOUNTS]
    health = Route("/health", Endpoint(context, {}, health=True))
    return Shortcut(Router([health, document, *mounts], default=unknown_path), endpoints, MOUNTS)


def _way(operation: Operation) -> Way:
    if operation.file:
        return Way(operation.handler, streamed=True)
    return Way(operation.handler, operation.body)


def _rank(path: str) -> int:
    """`/threads/runs` must be tried before `/threads/{thread_id}`; all else keeps its order in the table."""
    return 0 if path == "/threads/runs" else 1
