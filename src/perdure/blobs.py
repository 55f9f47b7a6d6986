"""Blobs: the bytes of files, in a local folder or in a bucket. What is known of a file besides stands in the store.

Rules. A blob is written once, under a fresh random name, and never changed. It is there whole, on disk, or not at all.
Memory does not grow with its size. Whoever writes one makes the row that names it right afterwards: a blob without a
row is an orphan, and is swept once it is old.

The local folder is written by our own hands and not by obstore's LocalStore, which renames but never fsyncs (looked at
with strace, 0.12): after a power cut a file that was acknowledged could be empty. Layout: `ab/abcdef...`, one file a
blob, and `.incoming/` with those that are being written.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, ParamSpec, Protocol, TypeVar
from urllib.parse import parse_qsl, urlsplit

import msgspec
import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import ObjectStore, from_url

from perdure.errors import OperatorError, Unavailable
from perdure.ids import Ids, new_hex
from perdure.settings import Settings

T = TypeVar("T")
P = ParamSpec("P")

log = logging.getLogger("perdure.blobs")
gone_log = logging.getLogger("perdure.blobs.gone")

FOLDER = "files"
INCOMING = ".incoming"
PIECE_BYTES = 1 << 20
"""What is read and written at once."""
BUCKET_PART_BYTES = 5 << 20
"""The least that S3 takes, and 10,000 of them are 50 GB: an upload holds a handful in memory, here and in obstore."""
BUCKET_PARTS_AT_ONCE = 2
THREADS = 8
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
BUCKET_KINDS: Final = {
    "s3": ("region", "endpoint", "virtual_hosted_style_request"),
    "gs": (),
    "az": ("account_name", "endpoint"),
}
"""Schemes of PERDURE_BLOBS_URL, and what may stand behind the `?`. Keys and tokens come from the usual variables."""


class WrittenBlob(msgspec.Struct, frozen=True):
    """What was written. Digests are hexadecimal."""

    name: str
    bytes: int
    sha256: str
    md5: str


class FoundBlob(NamedTuple):
    """A blob that a listing found; `written_at` is Unix time in seconds."""

    name: str
    written_at: float


class BlobGone(Unavailable):
    """There is no such blob."""


class Blobs(Protocol):
    """Where bytes are kept. Failures of the place itself are raised as `errors.Unavailable`."""

    async def write(self, name: str, chunks: AsyncIterator[bytes]) -> WrittenBlob:
        """Store all that `chunks` gives. What it raises is passed on, and nothing is left of the blob."""
        ...

    def read(self, name: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """Give the bytes from `start` up to and without `end`, in pieces of about a megabyte. Raises BlobGone."""
        ...

    async def concat(self, names: Sequence[str], to: str) -> WrittenBlob:
        """Store the bytes of several blobs, one after the other, as a new one; they stay."""
        ...

    async def path_of(self, name: str) -> Path | None:
        """Return where a blob lies on this machine's disk, to be read only; None where it is somewhere else."""
        ...

    def local_copy(self, name: str) -> AbstractAsyncContextManager[Path]:
        """Give a path to read the blob from, for the length of a block: its own, or that of a copy."""
        ...

    async def delete(self, name: str) -> None:
        """Delete a blob; one that is not there is none to delete."""
        ...

    def list_all(self) -> AsyncGenerator[list[FoundBlob]]:
        """Give all blobs, some hundred at a time."""
        ...

    async def sweep_halves(self, before: float) -> int:
        """Delete what crashed writes left that nobody touched since `before`, Unix seconds; return how many."""
        ...

    async def close(self) -> None:
        """Let go."""
        ...


def new_blob_name(ids: Ids) -> str:
    """Return a name that was never given."""
    return new_hex(ids)


def open_blobs(settings: Settings) -> Blobs:
    """Open the place that the settings name. Raises OperatorError."""
    if settings.blobs_url is None:
        return LocalBlobs(settings.data / FOLDER)
    return BucketBlobs(_open_bucket(settings.blobs_url), settings.blobs_url.partition("?")[0])


async def drop(blobs: Blobs, names: Sequence[str]) -> None:
    """Delete blobs that no row names any more. What can not be deleted now is an orphan, and the sweep comes by."""
    for name in names:
        try:
            await blobs.delete(name)
        except Unavailable as error:
            log.warning("the blob %s is left to the sweep: %s", name, error.message)


async def joined(chunks: AsyncIterator[bytes], size: int) -> AsyncGenerator[bytes]:
    """Give the same bytes in pieces of at least `size`, but for the last one."""
    pieces, length = [], 0
    async for chunk in chunks:
        pieces.append(chunk)
        length += len(chunk)
        if length >= size:
            yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces, length = [], 0
    if pieces:
        yield b"".join(pieces)


class _Digests:
    """What is counted while bytes pass."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.bytes = 0

    def add(self, piece: bytes) -> None:
        self._sha256.update(piece)
        self._md5.update(piece)
        self.bytes += len(piece)

    def of(self, name: str) -> WrittenBlob:
        return WrittenBlob(name, self.bytes, self._sha256.hexdigest(), self._md5.hexdigest())


# -- a folder


class LocalBlobs:
    """Blobs in a folder of this machine. `folder` is made when the first one is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / INCOMING
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="perdure-blobs")

    async def write(self, name: str, chunks: AsyncIterator[bytes]) -> WrittenBlob:
        """Store all that `chunks` gives; return when it is on disk."""
        pen = _Pen(self._incoming / name, self._path(name))
        try:
            await self._do(pen.open)
            async for piece in joined(chunks, PIECE_BYTES):
                await self._do(pen.write, piece)
            return await self._do(pen.finish)
        finally:
            await self._do(pen.close)

    async def read(self, name: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """Give the bytes from `start` up to and without `end`."""
        file = await self._do(self._path(name).open, "rb", buffering=0)
        try:
            await self._do(file.seek, start)
            left = float("inf") if end is None else end - start
            while left > 0 and (piece := await self._do(file.read, int(min(left, PIECE_BYTES)))):
                left -= len(piece)
                yield piece
        finally:
            file.close()

    async def concat(self, names: Sequence[str], to: str) -> WrittenBlob:
        """Store the bytes of several blobs as a new one."""
        return await self.write(to, _one_after_the_other(self, names))

    async def path_of(self, name: str) -> Path | None:
        """Return where it lies."""
        return self._path(name)

    @asynccontextmanager
    async def local_copy(self, name: str) -> AsyncGenerator[Path]:
        """Give its own path: blobs are never changed."""
        yield self._path(name)

    async def delete(self, name: str) -> None:
        """Delete a blob. The folder is not fsynced: after a power cut it may be back, an orphan like others."""
        await self._do(self._path(name).unlink, missing_ok=True)

    async def list_all(self) -> AsyncGenerator[list[FoundBlob]]:
        """Give all blobs, a folder at a time."""
        for folder in await self._do(_folders_in, self._folder):
            yield await self._do(_files_in, folder)

    async def sweep_halves(self, before: float) -> int:
        """Delete what crashed writes left."""
        swept = 0
        for found in await self._do(_files_in, self._incoming):
            if found.written_at < before:
                await self._do((self._incoming / found.name).unlink, missing_ok=True)
                swept += 1
        return swept

    async def close(self) -> None:
        """Let what is being written end."""
        await asyncio.to_thread(self._threads.shutdown)

    def _path(self, name: str) -> Path:
        return self._folder / name[:2] / name

    async def _do(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a call on a thread of our own: a slow disk holds up nobody else. Raises Unavailable."""
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, lambda: call(*args, **kwargs))
        except OSError as error:
            raise self._unavailable(error) from None

    def _unavailable(self, error: OSError) -> Unavailable:
        if isinstance(error, FileNotFoundError):
            return _gone(self._folder, error)
        log.error("files in %s: %s", self._folder, error)
        if error.errno in FULL:
            return Unavailable("The server has no space left for files: nothing was stored. Free some and try again.")
        return Unavailable(f"The server can not read or write its files just now: {error.strerror}.")


class _Pen:
    """A local blob that is being written. A call that was cancelled may still be at work: they take turns."""

    def __init__(self, half: Path, whole: Path) -> None:
        self._half = half
        self._whole = whole
        self._turn = threading.Lock()
        self._file: Any = None
        self._digests = _Digests()

    def open(self) -> None:
        with self._turn:
            self._half.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = self._half.open("xb", buffering=0)

    def write(self, piece: bytes) -> None:
        with self._turn:
            if self._file is None:
                return  # closed after its caller was cancelled
            left = memoryview(piece)
            while left:  # a disk that fills up takes a part
                left = left[self._file.write(left) :]
            self._digests.add(piece)

    def finish(self) -> WrittenBlob:
        """Put the bytes on disk, then their name."""
        with self._turn:
            os.fsync(self._file.fileno())
            folder = self._whole.parent
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
                sync_folder(folder.parent)
            self._half.rename(self._whole)
            sync_folder(folder)
            self._file.close()
            self._file = None
            return self._digests.of(self._whole.name)

    def close(self) -> None:
        """Leave nothing behind if it was not finished."""
        with self._turn:
            if self._file is not None:
                self._file.close()
                self._file = None
                self._half.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Put on disk which names a folder has. Windows does so by itself."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _folders_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [Path(one.path) for one in os.scandir(folder) if one.is_dir() and one.name != INCOMING]


def _files_in(folder: Path) -> list[FoundBlob]:
    found: list[FoundBlob] = []
    if folder.is_dir():
        for one in os.scandir(folder):
            try:
                found.append(FoundBlob(one.name, one.stat().st_mtime))
            except FileNotFoundError:
                continue  # deleted while we look
    return found


# -- a bucket


def _open_bucket(url: str) -> ObjectStore:
    """Open `s3://bucket/prefix?region=...` and its kin. Raises OperatorError."""
    parts = urlsplit(url)
    known = BUCKET_KINDS.get(parts.scheme)
    given = dict(parse_qsl(parts.query))
    if known is None or not parts.netloc:
        raise OperatorError(f"'{url}' is no bucket: it should look like s3://bucket/prefix, gs://... or az://...")
    if unknown := sorted(set(given) - set(known)):
        raise OperatorError(f"PERDURE_BLOBS_URL: '{unknown[0]}' is not known for {parts.scheme}://, only {known}")
    plain = given.get("endpoint", "").startswith("http://")
    options: dict[str, Any] = {
        "config": {f"aws_{name}" if parts.scheme == "s3" else name: value for name, value in given.items()} or None,
        "client_options": {"allow_http": plain},
        "retry_config": {"max_retries": 4, "retry_timeout": timedelta(seconds=30)},
    }
    try:
        store: ObjectStore = from_url(url.partition("?")[0], **options)
    except BaseError as error:
        raise OperatorError(f"PERDURE_BLOBS_URL can not be used: {error}") from None
    return store


class BucketBlobs:
    """Blobs in a bucket, each an object; `place` names it in the log.

    A write that a crash cut short leaves parts that only a lifecycle rule of the bucket deletes
    (AbortIncompleteMultipartUpload); they are never seen as a blob.
    """

    def __init__(self, store: ObjectStore, place: str) -> None:
        self._store = store
        self._place = place

    async def write(self, name: str, chunks: AsyncIterator[bytes]) -> WrittenBlob:
        """Store all that `chunks` gives, at once if it is small; what it raises aborts the upload."""
        digests = _Digests()
        source = joined(chunks, BUCKET_PART_BYTES)

        async def counted() -> AsyncGenerator[bytes]:
            yield first
            async for piece in source:
                await asyncio.to_thread(digests.add, piece)
                yield piece

        first = await anext(source, b"")
        await asyncio.to_thread(digests.add, first)
        whole = len(first) < BUCKET_PART_BYTES
        try:
            await obstore.put_async(
                self._store,
                name,
                first if whole else counted(),
                chunk_size=BUCKET_PART_BYTES,
                max_concurrency=BUCKET_PARTS_AT_ONCE,
            )
        except (BaseError, OSError) as error:
            raise self._away(error) from None
        return digests.of(name)

    async def read(self, name: str, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes]:
        """Give the bytes from `start` up to and without `end`."""
        if end is not None and end <= start:
            return
        wanted: Any = {"range": {"offset": start} if end is None else (start, end)} if start or end else {}
        try:
            found = await obstore.get_async(self._store, name, options=wanted)
            async for piece in found.stream(min_chunk_size=PIECE_BYTES):
                yield bytes(piece)
        except (NotFoundError, FileNotFoundError) as error:
            raise _gone(self._place, error) from None
        except (BaseError, OSError) as error:
            raise self._away(error) from None

    async def concat(self, names: Sequence[str], to: str) -> WrittenBlob:
        """Store the bytes of several blobs as a new one; they pass through here to be hashed."""
        return await self.write(to, _one_after_the_other(self, names))

    async def path_of(self, name: str) -> Path | None:
        """Return None: it lies somewhere else."""
        del name
        return None

    @asynccontextmanager
    async def local_copy(self, name: str) -> AsyncGenerator[Path]:
        """Give the path of a copy that goes with the block."""
        with tempfile.TemporaryDirectory(prefix="perdure-") as folder:
            copy = LocalBlobs(Path(folder))
            try:
                await copy.write(name, self.read(name))
                path = await copy.path_of(name)
                assert path is not None  # noqa: S101  # a local one has one
                yield path
            finally:
                await copy.close()

    async def delete(self, name: str) -> None:
        """Delete a blob."""
        try:
            await obstore.delete_async(self._store, name)
        except (NotFoundError, FileNotFoundError):
            return
        except (BaseError, OSError) as error:
            raise self._away(error) from None

    async def list_all(self) -> AsyncGenerator[list[FoundBlob]]:
        """Give all blobs below the prefix."""
        try:
            async for page in obstore.list(self._store, chunk_size=500):
                yield [FoundBlob(one["path"], one["last_modified"].timestamp()) for one in page]
        except (BaseError, OSError) as error:
            raise self._away(error) from None

    async def sweep_halves(self, before: float) -> int:
        """Do nothing: a lifecycle rule does it."""
        del before
        return 0

    async def close(self) -> None:
        """Do nothing: obstore lets go by itself."""

    def _away(self, error: Exception) -> Unavailable:
        log.error("files in %s: %s", self._place, str(error).partition("\n")[0])
        return Unavailable("The server can not reach the place where it keeps files just now.")


async def _one_after_the_other(blobs: Blobs, names: Sequence[str]) -> AsyncGenerator[bytes]:
    for name in names:
        async for piece in blobs.read(name):
            yield piece


def _gone(place: object, error: Exception) -> BlobGone:
    gone_log.error("files in %s: %s", place, str(error).partition("\n")[0])
    return BlobGone("The bytes of this file are not where the server keeps files: they were deleted by other hands.")
