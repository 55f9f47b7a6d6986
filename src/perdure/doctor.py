"""`perdure doctor`: what works on this machine, found by trying it."""

from __future__ import annotations

import asyncio
import platform
import sqlite3
import sys
import tempfile
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import msgspec

from perdure.app import DATABASE_FILE, build_models, choose_port, make_data_folder, open_database
from perdure.blobs import FOLDER, new_blob_name, open_blobs
from perdure.errors import OperatorError, RunFailure, Unavailable
from perdure.ids import RandomIds
from perdure.models.names import ModelRegistry
from perdure.sandbox.choose import AUTO, survey
from perdure.settings import Settings
from perdure.store.sqlite_file import find_damage


class Finding(msgspec.Struct, frozen=True):
    """One thing that was tried."""

    what: str
    ok: bool
    detail: str


def examine(settings: Settings) -> Iterator[Finding]:
    """Try everything that the settings ask for; each finding says what was seen or what to do."""
    yield Finding("python", ok=True, detail=f"{sys.version.split()[0]} on {platform.platform()}")
    yield _folder(settings)
    yield _port(settings)
    yield asyncio.run(_store(settings))
    if settings.database_url is None and (settings.data / DATABASE_FILE).exists():
        yield _database(settings.data / DATABASE_FILE)
    yield asyncio.run(_files(settings))
    yield from asyncio.run(_models(settings))
    yield from _sandboxes(settings)


def _folder(settings: Settings) -> Finding:
    try:
        make_data_folder(settings.data)
        with tempfile.TemporaryFile(dir=settings.data) as probe:
            probe.write(b"probe")
    except OperatorError as error:
        return Finding("data folder", ok=False, detail=str(error))
    except OSError as error:
        detail = f"{settings.data} can not be written ({error.strerror}): set PERDURE_DATA"
        return Finding("data folder", ok=False, detail=detail)
    return Finding("data folder", ok=True, detail=str(settings.data.absolute()))


def _port(settings: Settings) -> Finding:
    try:
        address, port = choose_port(settings.host, settings.port)
    except OperatorError as error:
        return Finding("port", ok=False, detail=str(error))
    return Finding("port", ok=True, detail=f"{address}:{port} is free")


async def _store(settings: Settings) -> Finding:
    try:
        if settings.database_url is not None:
            database = await open_database(settings)
            await database.close()
            return Finding("store", ok=True, detail="Postgres answers and is migrated")
        with tempfile.TemporaryDirectory() as folder:
            trial = settings.model_copy(update={"data": Path(folder)})
            database = await open_database(trial)
            await database.close()
    except (OperatorError, Unavailable) as error:
        return Finding("store", ok=False, detail=str(error))
    return Finding("store", ok=True, detail=f"SQLite {sqlite3.sqlite_version}")


def _database(path: Path) -> Finding:
    """Check every page and index; a server may be running meanwhile."""
    try:
        damage = find_damage(path)
    except OperatorError as error:
        return Finding("database", ok=False, detail=str(error))
    if damage is not None:
        detail = f"{path} is damaged: {damage}. Bring back a backup with `perdure restore FILE --force`"
        return Finding("database", ok=False, detail=detail)
    return Finding("database", ok=True, detail=f"{path} is whole")


async def _files(settings: Settings) -> Finding:
    """Write, read and delete a blob where files would be kept."""
    try:
        blobs = open_blobs(settings)
    except OperatorError as error:
        return Finding("files", ok=False, detail=str(error))
    name = new_blob_name(RandomIds())
    try:
        await blobs.write(name, _probe())
        read = b"".join([piece async for piece in blobs.read(name)])
        await blobs.delete(name)
    except Unavailable as error:
        where = "PERDURE_BLOBS_URL and its keys" if settings.blobs_url else f"{settings.data / FOLDER}"
        return Finding("files", ok=False, detail=f"{error.message} Check {where}")
    finally:
        await blobs.close()
    kept = settings.blobs_url.partition("?")[0] if settings.blobs_url else settings.data / FOLDER
    return Finding("files", ok=read == b"probe", detail=f"kept in {kept}")


async def _probe() -> AsyncGenerator[bytes]:
    yield b"probe"


async def _models(settings: Settings) -> list[Finding]:
    try:
        registry = build_models(settings)
    except OperatorError as error:
        return [Finding("models", ok=False, detail=str(error))]
    try:
        return await _each_model(registry)
    finally:
        await registry.close()


async def _each_model(registry: ModelRegistry) -> list[Finding]:
    findings = []
    for name, model in registry.models.items():
        try:
            listed = await model.list_models()
        except RunFailure as failure:
            findings.append(Finding(f"model {name}", ok=False, detail=failure.message))
        else:
            findings.append(Finding(f"model {name}", ok=True, detail=", ".join(listed[:5]) or "lists no names"))
    return findings


def _sandboxes(settings: Settings) -> list[Finding]:
    """Try every kind of sandbox. Only the one that the settings ask for must work; the others are told of."""
    if settings.code_sandbox in {"none", "unsafe-no-sandbox"}:
        unsafe = settings.code_sandbox != "none"
        detail = "code runs WITHOUT A SANDBOX, as the server's own user" if unsafe else "the code interpreter is off"
        return [Finding("sandbox", ok=not unsafe, detail=detail)]
    tried = asyncio.run(survey(settings))
    findings = [
        Finding(f"sandbox {one.kind}", ok=True, detail=one.words if one.works else f"not here: {one.words}")
        for one in tried
    ]
    wanted = AUTO if settings.code_sandbox == "auto" else (settings.code_sandbox,)
    taken = next((one.kind for one in tried if one.works and one.kind in wanted), None)
    detail = f"code runs in {taken}" if taken else f"no code can be run: {', '.join(wanted)} can not be used here"
    return [*findings, Finding("code interpreter", ok=taken is not None, detail=detail)]
