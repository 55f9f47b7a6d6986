"""Puts the parts together from settings; the only file that knows them all.

`open_server` gives a running server inside an event loop; `serve` is the process around it: lock, loop, signals, log.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock, Timeout
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from perdure.api.auth import Keys, each_second
from perdure.api.call import ApiSettings, Context
from perdure.api.door import Front
from perdure.api.passthrough import Passthrough
from perdure.api.routes import routes
from perdure.blobs import open_blobs
from perdure.engine.dispatch import LocalDispatch
from perdure.engine.housekeeping import Housekeeping
from perdure.engine.ingestion import Ingestion, IngestionSettings
from perdure.engine.live import Feeds
from perdure.engine.worker import Worker, WorkerSettings
from perdure.errors import OperatorError, Unavailable
from perdure.http_server import MOST_CONNECTIONS, http_server
from perdure.ids import RandomIds, SystemClock
from perdure.models.base import Model
from perdure.models.chat_completions import ChatCompletionsModel
from perdure.models.cuts import TokenCuts
from perdure.models.embedders import EmbedderRegistry, builtin_embedder
from perdure.models.embeddings import EMBEDDER_NAME, Embedder, embedder_installed
from perdure.models.forward import build_forwards
from perdure.models.names import BUILTIN, ModelRegistry
from perdure.models.scripted import ScriptedModel, load_script
from perdure.sandbox.choose import records_of
from perdure.search.extract import Extractor
from perdure.settings import Settings
from perdure.store.db import Database, EdgeWatch
from perdure.store.key_stamp import KeyStamp
from perdure.store.keys import any_key_made
from perdure.store.postgres import PostgresDatabase
from perdure.store.sqlite import SqliteDatabase
from perdure.tools.code_interpreter import CodeBoxes, SandboxInterpreter
from perdure.tools.file_search import StoreSearch
from perdure.tools.images import FileImages
from perdure.tools.toolbox import Toolbox
from perdure.tools.vector_search import VectorSearch

log = logging.getLogger("perdure")

DATABASE_FILE = "perdure.db"
LOCK_FILE = "perdure.lock"
PID_FILE = "perdure.pid"
OWNER_LOOKS = 20  # for the pid of one that is just starting, a tenth of a second apart
RESTORING_FILE = "perdure.restoring"
"""It lies in the data folder while a restore changes what is there."""


async def open_database(settings: Settings, watch: EdgeWatch | None = None) -> Database:
    """Open the store that the settings name, migrated. Raises OperatorError.

    `watch` is told of the edges of transactions on SQLite.
    """
    refuse_half_restored(settings.data)
    if settings.database_url is not None:
        return await PostgresDatabase.open(settings.database_url)
    make_data_folder(settings.data)
    return await SqliteDatabase.open(settings.data / DATABASE_FILE, watch=watch)


def refuse_half_restored(data: Path) -> None:
    """Raise OperatorError if a restore broke off while it changed the data folder."""
    if (data / RESTORING_FILE).exists():
        raise OperatorError(
            f"a restore into {data} broke off: run `perdure restore FILE --force` again; what was there before is kept "
            f"in {data}/before-restore-*"
        )


def make_data_folder(data: Path) -> None:
    """Make the data folder, readable by its owner only. Raises OperatorError."""
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"the data folder {data} can not be made: {error.strerror}; set PERDURE_DATA") from None


def build_models(settings: Settings) -> ModelRegistry:
    """Return the registry of all models that the settings name. Raises OperatorError."""
    clock = SystemClock()
    models: dict[str, Model] = {
        name: ChatCompletionsModel(name, upstream, settings, clock)
        for name, upstream in settings.named_upstreams.items()
    }
    upstream_names = list(models)
    builtin = _builtin(settings, needed=not models)
    if builtin is not None:
        models[BUILTIN] = builtin[1]
    return ModelRegistry(
        models,
        upstream_names,
        builtin[0] if builtin else None,
        model_map=_with_embedder(settings.model_map),
        default_model=settings.default_model,
        clock=clock,
        log=logging.getLogger("perdure.models"),
    )


def _with_embedder(model_map: dict[str, str]) -> dict[str, str]:
    """Put the embedder's name into the map, so that it is listed among the models."""
    return {EMBEDDER_NAME: EMBEDDER_NAME, **model_map} if embedder_installed() else model_map


@asynccontextmanager
async def _beyond(context: Context, settings: Settings, embedder: Embedder | None) -> AsyncIterator[ASGIApp]:
    """Open what answers the paths that are not Perdure's own."""
    async with AsyncExitStack() as stack:
        forwards = build_forwards(settings)
        for forward in forwards.values():
            stack.push_async_callback(forward.close)
        yield Passthrough(context, forwards, embedder, patterns=settings.passthrough, model_map=settings.model_map)


def _builtin(settings: Settings, *, needed: bool) -> tuple[str, Model] | None:
    if settings.builtin_model == "none":
        return None
    if settings.builtin_model == "scripted":
        return "scripted", ScriptedModel(load_script(settings.script) if settings.script else None)
    from perdure.models.local import LocalModel  # noqa: PLC0415  # heavy, and not needed with an upstream alone
    from perdure.models.weights import find_weights  # noqa: PLC0415

    found = find_weights(settings)
    if found is None:
        if needed:
            raise OperatorError(
                f"no weights for the built-in model '{settings.builtin_model}': run `perdure models pull smollm2`, "
                "or set PERDURE_UPSTREAM_URL to an OpenAI-compatible server"
            )
        return None
    if not needed and find_spec("xllamacpp") is None:
        log.info("the built-in model is left out: it needs the extra `pip install 'perdure[builtin]'`")
        return None
    return found[0], LocalModel(found[0], found[1], settings)


class Running:
    """A server that answers. `url` is the base URL to give to clients."""

    def __init__(self, worker: Worker, ingestion: Ingestion, models: ModelRegistry, *, open_without_key: bool) -> None:
        self.url = ""
        self.worker = worker
        self.ingestion = ingestion
        self.models = models
        self.open_without_key = open_without_key


@asynccontextmanager
async def open_parts(settings: Settings, watch: EdgeWatch | None = None) -> AsyncIterator[tuple[ASGIApp, Running]]:
    """Open store and models and start the worker; yields the ASGI application. Raises OperatorError."""
    async with AsyncExitStack() as stack:
        try:
            parts = await _open_parts(settings, watch, stack)
        except Unavailable as error:
            raise OperatorError(error.message) from None
        yield parts


async def _open_parts(settings: Settings, watch: EdgeWatch | None, stack: AsyncExitStack) -> tuple[ASGIApp, Running]:
    database = await open_database(settings, watch)
    stack.push_async_callback(database.close)
    await _refuse_open_door(settings, database)
    blobs = open_blobs(settings)
    stack.push_async_callback(blobs.close)
    models = build_models(settings)
    stack.push_async_callback(models.close)
    await _warm_up(models)
    stamp = _stamp(settings, stack)
    clock, ids, dispatch, feeds = SystemClock(), RandomIds(), LocalDispatch(), Feeds(database)
    embedder = builtin_embedder()
    if embedder is not None:
        stack.push_async_callback(embedder.close)
    embedders = EmbedderRegistry(settings, clock, embedder=embedder)
    stack.push_async_callback(embedders.close)
    extractor = Extractor()
    stack.push_async_callback(extractor.close)
    ingestion = Ingestion(database, blobs, extractor, embedders, TokenCuts(), clock, ids, _ingestion_settings(settings))
    dispatch.listen_to_files(ingestion)
    search = VectorSearch(database, embedders, clock, settings.search_cache_bytes)
    boxes = CodeBoxes(settings, clock)
    await asyncio.to_thread(records_of(settings).sweep)  # what a server that was killed left behind
    stack.push_async_callback(boxes.close)
    toolbox = Toolbox(
        images=FileImages(database, blobs, clock),
        file_search=StoreSearch(database, search, clock),
        code_interpreter=SandboxInterpreter(boxes, database, blobs, clock, ids),
    )
    worker = Worker(database, models, feeds, clock, ids, _worker_settings(settings), toolbox)
    dispatch.listen(worker)
    context = Context(
        database=database,
        blobs=blobs,
        embedders=embedders,
        search=search,
        boxes=boxes,
        feeds=feeds,
        dispatch=dispatch,
        models=models,
        clock=clock,
        ids=ids,
        settings=_api_settings(settings),
        keys=Keys(database, stamp, open_without_key=settings.on_loopback),
    )
    open_now = settings.on_loopback and not await database.read(any_key_made)
    beyond = await stack.enter_async_context(_beyond(context, settings, embedder))
    app = _with_cors(Front(routes(context, beyond)), settings)
    await worker.start()
    await ingestion.start()
    housekeeping = Housekeeping(database, blobs, clock, orphan_seconds=settings.orphan_seconds)
    stack.push_async_callback(housekeeping.stop)
    housekeeping.start()
    return app, Running(worker, ingestion, models, open_without_key=open_now)


def _with_cors(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Let browser pages of the named origins in; none by default, as on loopback any page could call with any key."""
    origins = [origin.strip() for origin in settings.cors_origins.split(",") if origin.strip()]
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "openai-poll-after-ms", "openai-processing-ms", "openai-version"],
        max_age=3600,
    )


async def _warm_up(models: ModelRegistry) -> None:
    """Load the built-in model now if it is the only one: its loading would hold up the first run and all others.

    Beside an upstream it is loaded when it is first asked for, if ever. Raises OperatorError.
    """
    builtin = models.models.get(BUILTIN)
    if len(models.models) == 1 and builtin is not None:
        await builtin.warm_up()


def _stamp(settings: Settings, stack: AsyncExitStack) -> Callable[[], bytes]:
    """Return what tells the door that keys have changed."""
    if settings.database_url is not None:
        return each_second
    stamp = KeyStamp.open(settings.data)
    stack.callback(stamp.close)
    return stamp.read


def _worker_settings(settings: Settings) -> WorkerSettings:
    return WorkerSettings(
        concurrency=settings.concurrency,
        lease_seconds=settings.lease_seconds,
        grace_seconds=settings.shutdown_grace_seconds,
        event_log_seconds=settings.event_log_seconds,
        exclusive=settings.database_url is None,
    )


def _ingestion_settings(settings: Settings) -> IngestionSettings:
    return IngestionSettings(
        concurrency=settings.ingestion_concurrency,
        lease_seconds=settings.lease_seconds,
        grace_seconds=settings.shutdown_grace_seconds,
        exclusive=settings.database_url is None,
    )


def _api_settings(settings: Settings) -> ApiSettings:
    return ApiSettings(
        run_expiry_seconds=settings.run_expiry_seconds,
        poll_after_ms=settings.poll_after_ms,
        poll_hold_seconds=settings.poll_hold_seconds,
        keepalive_seconds=settings.keepalive_seconds,
        body_limit_bytes=settings.body_limit_bytes,
        body_timeout_seconds=settings.body_timeout_seconds,
        require_beta_header=settings.require_beta_header,
        file_limit_bytes=settings.file_limit_bytes,
        upload_limit_bytes=settings.upload_limit_bytes,
        refuse_downloads=settings.refuse_downloads,
        vector_stores_per_assistant=settings.vector_stores_per_assistant,
    )


async def _refuse_open_door(settings: Settings, database: Database) -> None:
    if not settings.on_loopback and not await database.read(any_key_made):
        raise OperatorError(
            f"refusing to bind {settings.host} without a key: run `perdure keys create` first, or bind 127.0.0.1"
        )


@asynccontextmanager
async def open_server(settings: Settings, watch: EdgeWatch | None = None) -> AsyncIterator[Running]:
    """Serve until the block is left; `watch` is told of the edges of transactions. Raises OperatorError."""
    address, port = choose_port(settings.host, settings.port)
    async with AsyncExitStack() as stack:
        if settings.database_url is None:
            stack.callback(own_data_folder(settings.data).release)
        app, running = await stack.enter_async_context(open_parts(settings, watch))
        server = http_server(app, address, port)
        serving = asyncio.get_running_loop().create_task(server.serve())
        try:
            await _until_listening(address, port, serving)
            shown = f"[{address}]" if ":" in address else settings.host
            running.url = f"http://{shown}:{port}/v1"
            yield running
        finally:
            # Runs first, while their streams can still be read; then the door.
            await asyncio.gather(running.worker.drain(), running.ingestion.drain())
            server.stop()  # type: ignore[no-untyped-call]  # granian ships no types for it
            await asyncio.wait({serving}, timeout=settings.shutdown_grace_seconds + 1)


async def _until_listening(address: str, port: int, serving: asyncio.Task[None]) -> None:
    while True:
        if serving.done():
            raise OperatorError(f"the server could not listen on {address}:{port}: {serving.exception()}")
        try:
            _, writer = await asyncio.open_connection(address, port)
        except OSError:
            await asyncio.sleep(0.01)
        else:
            writer.close()
            return


def choose_port(host: str, port: int) -> tuple[str, int]:
    """Return the address and a port that can be bound now. Raises OperatorError."""
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise OperatorError(
            f"the host '{host}' is not known here: set PERDURE_HOST to an address of this machine"
        ) from None
    with socket.socket(family, kind) as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where)
        except OSError as error:
            raise OperatorError(
                f"port {port} of {host} can not be bound ({error.strerror}): stop what uses it or set PERDURE_PORT"
            ) from None
        return str(where[0]), int(probe.getsockname()[1])


def own_data_folder(data: Path) -> FileLock:
    """Take the data folder for this process alone. Raises OperatorError, naming the owner."""
    make_data_folder(data)
    lock = FileLock(data / LOCK_FILE, timeout=0)
    note = data / PID_FILE
    try:
        lock.acquire()
        _write_pid(note)
    except Timeout:
        raise OperatorError(
            f"the data folder {data} is in use by another Perdure ({_owner(note)}): stop it or set PERDURE_DATA"
        ) from None
    except OSError as error:
        lock.release()
        raise OperatorError(f"the data folder {data} can not be written: {error.strerror}") from None
    return lock


def _write_pid(note: Path) -> None:
    """Write over the old note, not a new one: that needs no room on a full disk."""
    descriptor = os.open(note, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        written = os.write(descriptor, f"{os.getpid()}\n".encode())
        os.ftruncate(descriptor, written)
    finally:
        os.close(descriptor)


def _owner(note: Path) -> str:
    """Name who has the folder. The note is written after the lock is taken: just then it may name one that is gone."""
    for _ in range(OWNER_LOOKS):
        text = note.read_text().strip() if note.exists() else ""
        if text.isdigit() and _lives(int(text)):
            return f"process {text}"
        time.sleep(0.1)
    return "process unknown"


def _lives(pid: int) -> bool:
    if os.name != "posix":  # there a signal of 0 ends a process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, and alive
    return True


def run_loop(main: Callable[[], Awaitable[None]]) -> None:
    """Run a coroutine on the fastest event loop there is."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if sys.platform != "win32":
        import uvloop  # noqa: PLC0415  # not there on Windows

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_as_coroutine(main))


async def _as_coroutine(main: Callable[[], Awaitable[None]]) -> None:
    await main()


def serve(settings: Settings, announce: Callable[[Running], None], watch: EdgeWatch | None = None) -> None:
    """Serve until SIGINT or SIGTERM; `watch` is told of the edges of transactions. Raises OperatorError."""

    async def main() -> None:
        ended = asyncio.Event()
        async with open_server(settings, watch) as running:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                if os.name == "posix":
                    loop.add_signal_handler(number, ended.set)
            announce(running)
            await ended.wait()
            log.info("shutting down: running turns get %g seconds", settings.shutdown_grace_seconds)

    _allow_open_files()
    run_loop(main)


def _allow_open_files() -> None:
    """Take all the open files that the system lets us have: each stream is one, and many systems begin with 1024."""
    if os.name == "posix":
        import resource  # noqa: PLC0415  # not there on Windows

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MOST_CONNECTIONS if hard == resource.RLIM_INFINITY else min(hard, MOST_CONNECTIONS)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
