"""Every blob store keeps the same contract: a folder, and a bucket of an S3-like server."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.blobs import FOLDER, INCOMING, Blobs, LocalBlobs, WrittenBlob, drop, new_blob_name, open_blobs
from perdure.errors import BodyTooLarge, OperatorError, Unavailable
from perdure.ids import RandomIds
from perdure.settings import read_settings
from tests.contract.conftest import Run
from tests.s3_server import client_of, new_bucket, s3_server

LARGE = os.urandom(1 << 20) * 17  # more than two parts of a bucket's upload
IDS = RandomIds()


@pytest.fixture(scope="module")
def bucket_server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["folder", "bucket"])
def blobs(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run[Any]
) -> Iterator[Blobs]:
    if request.param == "folder":
        opened = open_blobs(read_settings(data=tmp_path / "data"))
    else:
        server: str = request.getfixturevalue("bucket_server")
        opened = open_blobs(read_settings(data=tmp_path / "data", blobs_url=new_bucket(server, monkeypatch)))
    yield opened
    run(opened.close())


async def pieces(*given: bytes, fail: BaseException | None = None) -> AsyncIterator[bytes]:
    for one in given:
        await asyncio.sleep(0)
        yield one
    if fail is not None:
        raise fail


async def content(blobs: Blobs, name: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in blobs.read(name, start, end)])


async def names_in(blobs: Blobs) -> set[str]:
    return {blob.name async for page in blobs.list_all() for blob in page}


@pytest.mark.parametrize("given", [[], [b""], [b"a"], [b"ab", b"", b"c"], [LARGE[:999_999]] * 18], ids=len)
def test_what_is_written_is_read(blobs: Blobs, run: Run[Any], given: list[bytes]) -> None:
    whole, name = b"".join(given), new_blob_name(IDS)
    written = run(blobs.write(name, pieces(*given)))
    digests = hashlib.sha256(whole).hexdigest(), hashlib.md5(whole, usedforsecurity=False).hexdigest()
    assert written == WrittenBlob(name, len(whole), *digests)
    assert run(content(blobs, name)) == whole


def test_a_part_is_read(blobs: Blobs, run: Run[Any]) -> None:
    name = new_blob_name(IDS)
    run(blobs.write(name, pieces(LARGE)))
    for start, end in ((0, 5), (3, 7), (5, None), (0, 0), (7, 7), (len(LARGE) - 3, None), (3, 5_000_000)):
        assert run(content(blobs, name, start, end)) == LARGE[start:end]


@pytest.mark.parametrize("given", [[], [b"abc"], [LARGE]], ids=len)
def test_a_write_that_fails_leaves_nothing(blobs: Blobs, run: Run[Any], given: list[bytes]) -> None:
    name = new_blob_name(IDS)
    with pytest.raises(BodyTooLarge, match="enough"):
        run(blobs.write(name, pieces(*given, fail=BodyTooLarge("enough"))))
    assert run(names_in(blobs)) == set()
    with pytest.raises(Unavailable, match="are not where"):
        run(content(blobs, name))


def test_blobs_are_put_one_after_the_other(blobs: Blobs, run: Run[Any]) -> None:
    names = [new_blob_name(IDS) for _ in range(3)]
    for name, text in zip(names, (b"one", LARGE, b"three"), strict=True):
        run(blobs.write(name, pieces(text)))
    joined = run(blobs.concat([names[2], names[1], names[0]], new_blob_name(IDS)))
    assert run(content(blobs, joined.name)) == b"three" + LARGE + b"one"
    assert run(names_in(blobs)) == {*names, joined.name}
    empty = run(blobs.concat([], new_blob_name(IDS)))
    assert (empty.bytes, run(content(blobs, empty.name))) == (0, b"")


def test_many_are_written_and_read_at_once(blobs: Blobs, run: Run[Any]) -> None:
    texts = {new_blob_name(IDS): os.urandom(3_000_000) for _ in range(12)}

    async def all_at_once() -> list[bytes]:
        await asyncio.gather(*(blobs.write(name, pieces(text[:7], text[7:])) for name, text in texts.items()))
        return await asyncio.gather(*(content(blobs, name) for name in texts))

    assert run(all_at_once()) == list(texts.values())


def test_deleting_and_dropping(blobs: Blobs, run: Run[Any]) -> None:
    names = [new_blob_name(IDS) for _ in range(3)]
    for name in names:
        run(blobs.write(name, pieces(b"x")))
    run(blobs.delete(names[0]))
    run(blobs.delete(names[0]))
    assert run(names_in(blobs)) == set(names[1:])
    run(drop(blobs, names))
    assert run(names_in(blobs)) == set()


def test_a_listing_tells_when(blobs: Blobs, run: Run[Any]) -> None:
    async def listed() -> list[float]:
        return [blob.written_at async for page in blobs.list_all() for blob in page]

    assert run(listed()) == []
    run(blobs.write(new_blob_name(IDS), pieces(b"x")))
    (written_at,) = run(listed())
    here = Path(__file__).stat().st_mtime
    assert written_at > here  # in the same kind of seconds, and later than this file


def test_a_path_for_programs(blobs: Blobs, run: Run[Any]) -> None:
    name = new_blob_name(IDS)
    run(blobs.write(name, pieces(LARGE)))

    async def copied() -> tuple[bytes, Path]:
        async with blobs.local_copy(name) as path:
            return path.read_bytes(), path

    text, path = run(copied())
    assert text == LARGE
    own = run(blobs.path_of(name))
    assert own is None or own.read_bytes() == LARGE
    assert path.exists() is (own is not None)


# -- the folder


def local(tmp_path: Path) -> tuple[LocalBlobs, Path]:
    return LocalBlobs(tmp_path / "files"), tmp_path / "files"


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_nobody_else_reads_the_folder(tmp_path: Path, run: Run[Any]) -> None:
    blobs, folder = local(tmp_path)
    run(blobs.write(new_blob_name(IDS), pieces(b"x")))
    assert {path.stat().st_mode & 0o777 for path in [folder / INCOMING, files_in(folder)[0].parent]} == {0o700}
    run(blobs.close())


def test_a_write_that_is_cancelled_leaves_nothing(tmp_path: Path, run: Run[Any]) -> None:
    blobs, folder = local(tmp_path)

    async def cancelled() -> None:
        waits = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield bytes(1 << 20)
                waits.set()

        writing = asyncio.ensure_future(blobs.write(new_blob_name(IDS), endless()))
        await waits.wait()
        writing.cancel()
        await asyncio.wait([writing])

    run(cancelled())
    run(blobs.close())
    assert files_in(folder) == []


def test_halves_of_a_crash_are_swept_once_they_are_old(tmp_path: Path, run: Run[Any]) -> None:
    blobs, folder = local(tmp_path)
    name = new_blob_name(IDS)
    run(blobs.write(name, pieces(b"whole")))
    half = folder / INCOMING / new_blob_name(IDS)
    half.write_bytes(b"hal")
    assert run(names_in(blobs)) == {name}
    assert run(blobs.sweep_halves(half.stat().st_mtime - 1)) == 0
    assert half.exists()
    assert run(blobs.sweep_halves(half.stat().st_mtime + 1)) == 1
    assert run(content(blobs, name)) == b"whole"
    assert not half.exists()
    run(blobs.close())


FILL = """
import asyncio, resource, signal, sys
from pathlib import Path
from perdure.blobs import LocalBlobs
from perdure.errors import Unavailable
async def main():
    async def pieces():
        for _ in range(40):
            yield bytes(1 << 20)
    blobs = LocalBlobs(Path(sys.argv[1]))
    try:
        await blobs.write("0" * 32, pieces())
    except Unavailable as error:
        print(error.message)
    await blobs.close()
asyncio.run(main())
"""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_in_words(tmp_path: Path, number: int) -> None:
    """A disk of one's own to fill needs rights that tests do not have; what they see of it is this."""
    said = LocalBlobs(tmp_path)._unavailable(OSError(number, os.strerror(number)))
    assert said.message == "The server has no space left for files: nothing was stored. Free some and try again."


def test_a_disk_that_takes_no_more_leaves_nothing(tmp_path: Path) -> None:
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))

    folder = tmp_path / "files"
    done = subprocess.run(
        [sys.executable, "-c", FILL, folder], preexec_fn=small_files, capture_output=True, text=True, check=True
    )
    assert "File too large" in done.stdout
    assert files_in(folder) == []


# -- the bucket


def test_an_upload_that_fails_is_aborted(
    bucket_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run[Any]
) -> None:
    url = new_bucket(bucket_server, monkeypatch)
    blobs = open_blobs(read_settings(data=tmp_path, blobs_url=url))
    with pytest.raises(BodyTooLarge):
        run(blobs.write(new_blob_name(IDS), pieces(LARGE, fail=BodyTooLarge("enough"))))
    assert "Uploads" not in client_of(bucket_server).list_multipart_uploads(Bucket=url.split("/")[2])
    assert not (tmp_path / FOLDER).exists()


def test_a_bucket_that_is_not_there_is_unavailable(
    bucket_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run[Any]
) -> None:
    url = new_bucket(bucket_server, monkeypatch).replace("s3://blobs", "s3://none")
    blobs = open_blobs(read_settings(data=tmp_path, blobs_url=url))
    for act in (blobs.write("0" * 32, pieces(b"x")), content(blobs, "0" * 32), names_in(blobs)):
        with pytest.raises(Unavailable):
            run(act)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://", "should look like"),
        ("http://bucket/prefix", "should look like"),
        ("s3://bucket/x?regoin=a", "'regoin' is not known for s3://"),
        ("gs://bucket/x?region=a", "'region' is not known for gs://"),
    ],
)
def test_a_url_that_is_none_is_refused_in_words(tmp_path: Path, url: str, says: str) -> None:
    with pytest.raises(OperatorError, match=says):
        open_blobs(read_settings(data=tmp_path, blobs_url=url))
