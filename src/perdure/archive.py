"""The file of a backup: a zip of what was saved, and a manifest that says what must be in it.

    manifest.json           versions, time, and of each member its SHA-256
    tables/NAME.jsonl       a table, one row a line, a JSON array of its columns' values
    files/ab/abcdef...      a blob: the bytes of a file, or of a part of an upload

Rules: an archive is written under another name and put in its place when it is whole and on disk; nothing of it is used
before all of it was checked.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import msgspec

from perdure.blobs import sync_folder
from perdure.errors import OperatorError

FORMAT = "perdure-backup"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TABLES = "tables/"
FILES = "files/"
LEVEL = 1  # of compression: text gets five times smaller, and the disk stays the slower part
PIECE_BYTES = 1 << 20


class Member(msgspec.Struct, frozen=True):
    """What one member must be."""

    sha256: str
    bytes: int


class TableNote(msgspec.Struct, frozen=True):
    """What a table's member holds."""

    columns: list[str]
    rows: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an archive says of itself.

    Blobs that rows of the tables name and that are not in it: `gone` are those of files that were deleted while the
    backup ran, `lost` those that were not where they should have been.
    """

    format: str
    format_version: int
    schema_version: int
    perdure_version: str
    created_at: int
    tables: dict[str, TableNote]
    members: dict[str, Member]
    gone: list[str] = []
    lost: list[str] = []


class _Hashed(io.RawIOBase):
    """A stream that is hashed on its way into the archive."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self._hash = hashlib.sha256()
        self._bytes = 0

    def write(self, piece: Any) -> int:
        """Write all of it."""
        self._hash.update(piece)
        self._bytes += len(piece)
        return self._target.write(piece)

    @property
    def member(self) -> Member:
        """What was written."""
        return Member(self._hash.hexdigest(), self._bytes)


class ArchiveWriter:
    """An archive that is being written to a stream."""

    def __init__(self, target: IO[bytes]) -> None:
        self._zip = zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=LEVEL)
        self.members: dict[str, Member] = {}

    @contextmanager
    def member(self, name: str) -> Iterator[_Hashed]:
        """Write one member; one at a time."""
        with self._zip.open(name, "w", force_zip64=True) as target:
            hashed = _Hashed(target)
            yield hashed
        self.members[name] = hashed.member

    def add_manifest(self, manifest: Manifest) -> None:
        """Write the manifest, as the last member."""
        self._zip.writestr(MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))

    def close(self) -> None:
        """Write the zip's own end. An archive without a manifest is none."""
        self._zip.close()


def blob_member(blob: str) -> str:
    """Return the name of a blob's member: as it lies in a files folder."""
    return f"{FILES}{blob[:2]}/{blob}"


@contextmanager
def whole_file(path: Path, *, force: bool) -> Iterator[IO[bytes]]:
    """Write a file that is there whole or not at all, readable by its owner only. Raises OperatorError."""
    if path.is_dir():
        raise OperatorError(f"{path} is a folder: name a file")
    if path.exists() and not force:
        raise OperatorError(f"{path} exists already: name another file, or let --force replace it")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "w+b") as target:  # noqa: PTH123  # its mode
            yield target
            target.flush()
            os.fsync(target.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise OperatorError(f"{path} can not be written: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)


class ArchiveReader:
    """An archive that was checked. Use `open_archive`."""

    def __init__(self, archive: zipfile.ZipFile, manifest: Manifest) -> None:
        self._zip = archive
        self.manifest = manifest

    @property
    def blobs(self) -> dict[str, str]:
        """Names of the blobs, each with that of its member."""
        return {PurePosixPath(name).name: name for name in self.manifest.members if name.startswith(FILES)}

    def open(self, name: str) -> IO[bytes]:
        """Read one member."""
        return self._zip.open(name)


@contextmanager
def open_archive(path: Path) -> Iterator[ArchiveReader]:
    """Open an archive and check all of it. Raises OperatorError with one line."""
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _read_manifest(path, archive)
            _check_members(path, archive, manifest)
            yield ArchiveReader(archive, manifest)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise OperatorError(
            f"{path} is no whole backup ({error}): it was cut off, damaged, or is another file"
        ) from None
    except FileNotFoundError:
        if path.exists():
            raise
        raise OperatorError(f"there is no file {path}") from None


def _read_manifest(path: Path, archive: zipfile.ZipFile) -> Manifest:
    try:
        manifest = msgspec.json.decode(archive.read(MANIFEST), type=Manifest)
    except (KeyError, msgspec.DecodeError):
        raise OperatorError(f"{path} is a zip, but no backup of Perdure: it has no {MANIFEST} of one") from None
    if manifest.format != FORMAT or manifest.format_version > FORMAT_VERSION:
        raise OperatorError(
            f"{path} has the format {manifest.format} {manifest.format_version}, this Perdure reads {FORMAT} "
            f"{FORMAT_VERSION}: restore it with the Perdure that wrote it ({manifest.perdure_version}), or a newer one"
        )
    return manifest


def _check_members(path: Path, archive: zipfile.ZipFile, manifest: Manifest) -> None:
    names = archive.namelist()
    if sorted(names) != sorted([*manifest.members, MANIFEST]):
        raise OperatorError(f"{path} does not hold what its {MANIFEST} names: it is damaged")
    for name, member in manifest.members.items():
        parts = PurePosixPath(name).parts
        if name.startswith("/") or set(name) & {"\\", ":"} or ".." in parts or parts[0] + "/" not in {TABLES, FILES}:
            raise OperatorError(f"{path} has a member with the name {name!r}: nothing was restored")
        digest = hashlib.sha256()
        with archive.open(name) as source:
            while piece := source.read(PIECE_BYTES):
                digest.update(piece)
        if digest.hexdigest() != member.sha256:
            raise OperatorError(f"{path} is damaged: {name} does not have the SHA-256 that {MANIFEST} has of it")
    if missing := [name for name in manifest.tables if f"{TABLES}{name}.jsonl" not in manifest.members]:
        raise OperatorError(f"{path} is damaged: it lacks the table {missing[0]}")
