"""Extraction from real files, and from files that want to do harm. Run with `-s` to see what became of each."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import pytest

from perdure.search.extract import Extractor
from perdure.search.passages import ExtractFailure, ExtractLimits, Passage
from tests.contract import made_files as made

resource = pytest.importorskip("resource", reason="limits and their figures are those of Unix")

FILES = Path(__file__).parent / "files"
MIB = made.MIB
LIMITS = ExtractLimits(memory_bytes=512 * MIB, seconds=20, file_bytes=2048 * MIB)
T = TypeVar("T")


def with_extractor(use: Callable[[Extractor], Awaitable[T]], limits: ExtractLimits = LIMITS) -> T:
    async def run() -> T:
        extractor = Extractor(limits)
        try:
            return await use(extractor)
        finally:
            await extractor.close()
            assert not extractor._all

    return asyncio.run(run())


def passages(path: Path, name: str | None = None, limits: ExtractLimits = LIMITS) -> list[Passage]:
    return with_extractor(lambda extractor: extractor.extract(path, name or path.name), limits)


def text(path: Path, name: str | None = None) -> str:
    return "".join(passage.text for passage in passages(path, name))


def failure(path: Path, name: str | None = None, limits: ExtractLimits = LIMITS) -> ExtractFailure:
    with pytest.raises(ExtractFailure) as caught:
        passages(path, name, limits)
    return caught.value


async def outcome(extractor: Extractor, path: Path, name: str) -> list[Passage] | ExtractFailure:
    """What a file gives: passages, or a failure that is the file's own."""
    try:
        return await extractor.extract(path, name)
    except ExtractFailure as failed:
        if failed.code == "server_error":
            raise
        return failed


def written(path: Path, body: bytes | str) -> Path:
    path.write_bytes(body.encode() if isinstance(body, str) else body)
    return path


# Files as people have them


def test_word(tmp_path: Path) -> None:
    assert text(made.make_docx(tmp_path / "a.docx")) == (
        "Returns policy\n환불은 구매 후 14일 안에 됩니다.\nPlan | Price\nPro | 10 €\nThe end.\n"
    )


def test_old_word() -> None:
    assert text(FILES / "returns.doc") == (
        "Returns policy\n환불은 구매 후 14일 안에 됩니다. A refund takes five days — “really”.\n"
        "Plan | Price\nPro | 10 €\nThe end, with naïve café text.\n"
    )


def test_slides_keep_their_numbers(tmp_path: Path) -> None:
    found = passages(made.make_pptx(tmp_path / "a.pptx"))
    assert [passage.page for passage in found] == [1, 2, 3]
    assert found[0].text == "Slide 1\n환불 1\nNote 1"
    assert found[2].text == "Slide 3\n환불 3\nleft | right\nNote 3"


def test_pages_keep_their_numbers(tmp_path: Path) -> None:
    assert passages(made.make_pdf(tmp_path / "a.pdf")) == [
        Passage("Page 1 of the manual.\nRefunds take five days.", 1),
        Passage("Page 3 of the manual.\nRefunds take five days.", 3),
    ]


def test_sheets_keep_their_numbers_and_repeat_their_header(tmp_path: Path) -> None:
    found = passages(made.make_xlsx(tmp_path / "a.xlsx"))
    first = "".join(passage.text for passage in found if passage.page == 1)
    assert first.startswith("Prices\nname | price\nitem 0 | 0\nitem 1 | 0.5\n")
    assert first.count("name | price") == 3
    assert first.count("item ") == 60
    second = "".join(passage.text for passage in found if passage.page == 2)
    assert second.startswith("환불\n14일\n")
    assert second.endswith("| ... | far away\n")
    assert len(second) < 100


@pytest.mark.parametrize(
    ("name", "body", "expected"),
    [
        ("a.csv", 'name,city\nKim,서울\n"Lee, J.",부산\n', "name | city\nKim | 서울\nLee, J. | 부산\n"),
        ("a.csv", "name;city\nKim;서울\n", "name | city\nKim | 서울\n"),
        ("a.tsv", "name\tcity\nKim\t서울\n", "name | city\nKim | 서울\n"),
        ("a.json", '{"a": "환불"}', '{"a": "환불"}'),
        ("a.py", "def f():\r\n    return 1\r\n", "def f():\n    return 1\n"),
        ("a", "no ending", "no ending"),
        ("a.yaml", "a: 1", "a: 1"),
    ],
)
def test_text_and_tables(tmp_path: Path, name: str, body: str, expected: str) -> None:
    assert text(written(tmp_path / "file", body), name) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    words = "Refunds: 환불은 14일 안에 됩니다. Refunds are made within days.\n" * 9
    assert text(written(tmp_path / "file", words.encode(encoding)), "a.txt") == words


def test_a_long_text_is_read_whole_across_pieces(tmp_path: Path) -> None:
    words = "환불은 14일\r\n" * 150_000
    assert text(written(tmp_path / "file", words), "a.txt") == words.replace("\r\n", "\n")


def test_html_is_read_as_a_reader_sees_it(tmp_path: Path) -> None:
    page = """<html><head><title>Shop</title><style>p{}</style><script>let x = "no";</script></head><body>
    <h1>Returns</h1><p>환불은   <b>14일</b>
    안에</p><ul><li>one</li><li>two</li></ul><table><tr><td>a</td><td>b</td></tr></table>
    <pre>  kept
    as it is</pre></body></html>"""
    found = text(written(tmp_path / "file", page), "a.html")
    assert found.splitlines()[:1] == ["Shop"]
    assert "Returns\n환불은 14일 안에\n" in found
    assert "one\ntwo\n" in found
    assert "a | b" in found
    assert "let x" not in found
    assert "p{}" not in found


# What a file is


def test_the_content_goes_before_the_name(tmp_path: Path) -> None:
    pdf, word = made.make_pdf(tmp_path / "1"), made.make_docx(tmp_path / "2")
    assert [passage.page for passage in passages(pdf, "a.txt")] == [1, 3]
    assert text(word, "a.pdf").startswith("Returns policy")


@pytest.mark.parametrize("name", ["a.pdf", "a.docx", "a.pptx", "a.xlsx", "a.doc"])
def test_a_text_is_no_document(tmp_path: Path, name: str) -> None:
    found = failure(written(tmp_path / "file", "just text"), name)
    assert found.code == "invalid_file"
    assert name[1:] in found.message


@pytest.mark.parametrize(
    ("name", "body", "code"),
    [
        ("a.txt", b"\x89PNG\r\n\x1a\n" + bytes(100), "unsupported_file"),
        ("a.gz", b"\x1f\x8b" + bytes(100), "unsupported_file"),
        ("a.rtf", b"{\\rtf1 text}", "unsupported_file"),
        ("a.txt", bytes(1000), "invalid_file"),
        ("a.txt", "환불은".encode("cp949"), "invalid_file"),
        ("a.txt", b"abc\xff\xfe\xfd", "invalid_file"),
        ("a.txt", b"", "invalid_file"),
        ("a.txt", b" \n\t ", "invalid_file"),
        ("a.docx", b"PK\x03\x04 and then nothing", "invalid_file"),
        ("a.pdf", b"%PDF-1.7 and then nothing", "invalid_file"),
        ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "invalid_file"),
    ],
)
def test_what_can_not_be_read_says_so(tmp_path: Path, name: str, body: bytes, code: str) -> None:
    found = failure(written(tmp_path / "file", body), name)
    assert found.code == code
    assert found.message.endswith(".")


def test_a_password_is_named(tmp_path: Path) -> None:
    assert "password" in failure(made.make_protected_pdf(tmp_path / "a.pdf")).message


def test_a_damaged_old_word_file_is_refused_at_any_place(tmp_path: Path) -> None:
    body = (FILES / "returns.doc").read_bytes()
    cuts = [body[:600], body[:5000], body[: len(body) // 2], body[:512] + bytes(len(body) - 512)]
    cuts += [body[:at] + b"\xff" * 64 + body[at + 64 :] for at in range(512, len(body) - 64, 1500)]

    async def use(extractor: Extractor) -> int:
        read = 0
        for number, cut in enumerate(cuts):
            read += isinstance(await outcome(extractor, written(tmp_path / f"{number}.doc", cut), "a.doc"), list)
        return read

    assert with_extractor(use) < len(cuts)


# Files that want to do harm


def hostile(folder: Path) -> dict[str, tuple[Path, str]]:
    docx_with = made.make_archive
    deep = made.WORD.format("<w:p>" * 100_000 + "</w:p>" * 100_000).encode()
    return {
        "zip bomb": (made.make_bomb(folder / "bomb.docx"), "a.docx"),
        "zip bomb that lies": (made.make_lying_bomb(folder / "lying.docx"), "a.docx"),
        "billion laughs": (made.make_laughs(folder / "laughs.docx"), "a.docx"),
        "document without parts": (docx_with(folder / "bare.docx", {"word/document.xml": deep}), "a.docx"),
        "million empty pages": (written(folder / "million.pdf", made.million_pages()), "a.pdf"),
        "pages in a loop": (written(folder / "loop.pdf", made.looping_pages()), "a.pdf"),
        "page of 256 MB": (written(folder / "swollen.pdf", made.swollen_page()), "a.pdf"),
        "line of 1 GB": (long_line(folder / "line.txt", 1024 * MIB), "a.txt"),
        "line of 100 MB": (long_line(folder / "short.txt", 100 * MIB), "a.txt"),
        "one field of 100 MB": (long_line(folder / "field.csv", 100 * MIB), "a.csv"),
        "million tags deep": (written(folder / "deep.html", "<div>" * 1_000_000 + "x"), "a.html"),
        "wrong name": (made.make_archive(folder / "photos.zip", {"a.png": b"x"}), "a.docx"),
    }


def long_line(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(b"a" * MIB)
    return path


class Watched:
    """The most memory that readers have had: looked at while they live, as this process's own children have others."""

    def __init__(self) -> None:
        self.peak_bytes = 0

    async def watch(self, extractor: Extractor) -> None:
        while True:
            for reader in list(extractor._all):
                with suppress(OSError):  # it ended in between
                    status = Path(f"/proc/{reader._process.pid}/status").read_text()  # noqa: ASYNC240  # no disk
                    found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
                    self.peak_bytes = max(self.peak_bytes, int(found[1]) * 1024 if found else 0)
            await asyncio.sleep(0.02)


def test_hostile_files_end_with_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = hostile(tmp_path)
    good = made.make_docx(tmp_path / "good.docx")
    before = sum(path.stat().st_size for path in tmp_path.iterdir())

    watched = Watched()

    async def use(extractor: Extractor) -> dict[str, str]:
        ends = {}
        watching = asyncio.ensure_future(watched.watch(extractor))
        for name, (path, filename) in files.items():
            found = await outcome(extractor, path, filename)
            if isinstance(found, list):
                ends[name] = f"{sum(len(passage.text) for passage in found):,} characters"
            else:
                ends[name] = f"{found.code}: {found.message}"
            assert (await extractor.extract(good, "good.docx"))[0].text == "Returns policy\n", f"after: {name}"
        watching.cancel()
        return ends

    ends = with_extractor(use)
    peak = watched.peak_bytes // MIB
    with capsys.disabled():
        lines = [f"  {name:25} {files[name][0].stat().st_size:>13,} bytes  {end}" for name, end in ends.items()]
        print("\n" + "\n".join(lines) + f"\n  largest process that read one of them: {peak} MiB")  # noqa: T201  # on purpose
    read = {"pages in a loop", "million tags deep", "page of 256 MB"}
    assert all(":" in ends[name] for name in set(ends) - read), "none of the others gives text"
    assert watched.peak_bytes <= LIMITS.memory_bytes
    assert peak > 0 or sys.platform != "linux"
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == before, "nothing was written"


NAMES = ["../../x/y.txt", "/x/y.txt", "a\x00b.txt", "a\nb\x1b[31m.txt", "..", "", "a.TXT ", "C:\\x.txt"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_never_a_path(tmp_path: Path, name: str) -> None:
    assert text(written(tmp_path / "file", "words"), name) == "words"


def test_a_file_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    limits = ExtractLimits(seconds=0.001)
    found = failure(written(tmp_path / "file", "words"), "a.txt", limits)
    assert found.code == "invalid_file"
    assert "0.001 seconds" in found.message


def test_a_file_that_takes_too_much_memory_is_ended_and_nothing_else_is(tmp_path: Path) -> None:
    large = written(tmp_path / "large.pdf", made.swollen_page())
    small = written(tmp_path / "small.txt", "words")
    limits = ExtractLimits(memory_bytes=256 * MIB, readers=3)

    async def use(extractor: Extractor) -> list[list[Passage] | BaseException]:
        reading = [extractor.extract(path, path.name) for path in (small, large, small, large, small)]
        return await asyncio.gather(*reading, return_exceptions=True)

    found = with_extractor(use, limits)
    assert [one == [Passage("words")] or one for one in found[0::2]] == [True] * 3
    for one in found[1::2]:
        assert isinstance(one, ExtractFailure)
        assert one.code == "invalid_file"
        assert "memory" in one.message


def test_limits_of_pages_cells_and_characters(tmp_path: Path) -> None:
    pdf, book = made.make_pdf(tmp_path / "a.pdf", 5), made.make_xlsx(tmp_path / "a.xlsx")
    assert "5 pages; 4 are the most" in failure(pdf, limits=ExtractLimits(pages=4)).message
    assert "more than 50 cells" in failure(book, limits=ExtractLimits(cells=50)).message
    assert "more than 20 characters" in failure(pdf, limits=ExtractLimits(characters=20)).message
    assert "30 are the most" in failure(pdf, limits=ExtractLimits(file_bytes=30)).message


def test_a_reader_serves_several_files_and_is_then_replaced(tmp_path: Path) -> None:
    path = written(tmp_path / "file", "words")
    large = bytearray(400 * 1024 * 1024)  # what its parent has is not held against a reader
    large[::4096] = b"x" * len(large[::4096])

    async def use(extractor: Extractor) -> list[int]:
        pids = []
        for _ in range(5):
            await extractor.extract(path, "a.txt")
            pids.append(next(iter(extractor._all))._process.pid if extractor._all else 0)
        return pids

    first, second, third, fourth, _ = with_extractor(use, ExtractLimits(files_per_reader=3))
    assert first == second != 0
    assert third == 0
    assert fourth not in {0, first}


def test_who_goes_away_takes_his_reader_along(tmp_path: Path) -> None:
    path = written(tmp_path / "file", "words")

    async def use(extractor: Extractor) -> None:
        reading = asyncio.ensure_future(extractor.extract(path, "a.txt"))
        while not extractor._all:  # noqa: ASYNC110 - a process has no event for its start
            await asyncio.sleep(0.001)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert not extractor._all
        assert await extractor.extract(path, "a.txt") == [Passage("words")]

    with_extractor(use)


@pytest.mark.skipif(sys.platform != "linux", reason="these walls are Linux's")
def test_the_child_has_no_secrets_no_network_and_writes_no_files(tmp_path: Path) -> None:
    os.environ["PERDURE_UPSTREAM_KEY"] = "sk-secret"

    async def use(extractor: Extractor) -> bytes:
        await extractor.extract(written(tmp_path / "file", "words"), "a.txt")
        pid = next(iter(extractor._all))._process.pid
        return await asyncio.to_thread(Path(f"/proc/{pid}/environ").read_bytes)

    try:
        assert b"secret" not in with_extractor(use)
    finally:
        del os.environ["PERDURE_UPSTREAM_KEY"]
    program = """
import pathlib, socket, sys
from perdure.search.passages import ExtractLimits
from perdure.search.reading import confine
server = socket.create_server(("127.0.0.1", 0))
confine(ExtractLimits())
def connect(): socket.create_connection(server.getsockname(), 5)
def write(): pathlib.Path(sys.argv[1]).write_text("x")
for what in (connect, write):
    try:
        what()
        print("done")
    except OSError as error:
        print(type(error).__name__)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    network, writing = ran.stdout.split() or [ran.stderr, ""]
    assert network != "done" or "CI" not in os.environ, "where the system forbids namespaces this wall is missing"
    assert writing == "OSError"
