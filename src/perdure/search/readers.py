"""How each kind of document becomes passages, by a library that is kept for it.

Rules. This runs in the child process only (`reading.py`), because these libraries parse what strangers send. A library
is imported with the first file of its kind. What a reader sees as text goes out: no markup, no scripts, no headers that
stand on every page; tables row by row.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec

from perdure.search.passages import MIB, Budget, ExtractFailure, ExtractLimits, Passage, packages_missing
from perdure.search.plain_text import read_text
from perdure.search.sniff import Kind
from perdure.search.word97 import read_doc

ROWS_UNDER_A_HEADER = 25
"""The first row of a sheet is repeated after so many rows: a chunk from the middle knows what its columns are."""

SMALL_MEMBER = 16 * MIB
"""A part of an archive up to this size may swell as it likes: the XML of a long table packs very well."""

_BLOCKS = frozenset(
    """
    address article aside blockquote body br caption dd details div dl dt fieldset figcaption figure footer form
    h1 h2 h3 h4 h5 h6 header hr legend li main nav ol option p pre section summary table tbody tfoot thead title tr ul
    """.split()  # noqa: SIM905  # forty strings in a list are forty lines
)
_CELLS = frozenset({"td", "th"})
_UNSEEN = ["script", "style", "template", "noscript", "svg", "iframe"]
_GAP = re.compile(r"(?:\| *){8,}")
"""Cells that are empty one after the other: a value in the last column of all has 16,383 before it."""
_SPACES = re.compile(r"[ \t\r\n\f]+")

Reader = Callable[[Path, ExtractLimits, Budget], Iterator[Passage]]


def read_passages(path: Path, kind: Kind, limits: ExtractLimits) -> Iterator[Passage]:
    """Give a file's passages in order. Raises ExtractFailure, and whatever a library raises for a broken file."""
    return READERS[kind](path, limits, Budget(limits))


def _read_text(path: Path, _: ExtractLimits, budget: Budget) -> Iterator[Passage]:
    for piece in read_text(path, budget):
        yield Passage(piece)


def _read_doc(path: Path, _: ExtractLimits, budget: Budget) -> Iterator[Passage]:
    for piece in read_doc(path, budget):
        yield Passage(piece)


def _read_csv(path: Path, limits: ExtractLimits, budget: Budget) -> Iterator[Passage]:
    text = "".join(read_text(path, Budget(limits)))
    try:
        dialect: type[csv.Dialect] = csv.Sniffer().sniff(text[:4096], delimiters=",;\t|")
    except csv.Error:
        dialect = csv.excel
    csv.field_size_limit(limits.characters)
    try:
        for block in _sheet_blocks(csv.reader(io.StringIO(text), dialect), limits.cells):
            yield Passage(budget.take(block))
    except csv.Error as error:
        raise ExtractFailure("invalid_file", f"The file can not be read as a table: {error}.") from None


def _read_html(path: Path, limits: ExtractLimits, budget: Budget) -> Iterator[Passage]:
    try:
        from selectolax.lexbor import LexborHTMLParser  # noqa: PLC0415  # of the extra `files`
    except ImportError:
        raise packages_missing("selectolax") from None
    if path.stat().st_size > limits.markup_bytes:
        most = limits.markup_bytes // MIB
        raise ExtractFailure("invalid_file", f"The HTML page is larger than {most} MiB. Split it into smaller files.")
    markup = Budget(msgspec.structs.replace(limits, characters=limits.markup_bytes))
    tree = LexborHTMLParser("".join(read_text(path, markup)))
    tree.strip_tags(_UNSEEN)
    parts: list[str] = []
    for node in tree.root.traverse(include_text=True) if tree.root else ():
        if node.tag == "-text":
            inside = node.parent is not None and node.parent.tag == "pre"
            parts.append(node.text_content or "" if inside else _SPACES.sub(" ", node.text_content or ""))
        elif node.tag in _BLOCKS:
            parts.append("\n")
        elif node.tag in _CELLS:
            parts.append(" | ")
    yield Passage(budget.take(_tidy("".join(parts))))


def _read_pdf(path: Path, limits: ExtractLimits, budget: Budget) -> Iterator[Passage]:
    try:
        import pypdfium2  # noqa: PLC0415  # of the extra `files`
    except ImportError:
        raise packages_missing("pypdfium2") from None
    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        raise _unopened(str(error)) from None
    with closing(document):
        count = len(document)
        if count > limits.pages:
            raise ExtractFailure(
                "invalid_file",
                f"The PDF has {count:,} pages; {limits.pages:,} are the most. Split it into smaller files.",
            )
        for index in range(count):
            text = budget.take(_page_text(document, index))
            if text and not text.isspace():
                yield Passage(text, index + 1)


def _page_text(document: Any, index: int) -> str:
    """Return the text of one page, hyphens at line ends taken out as the PDF marks them."""
    page = document[index]
    with closing(page), closing(page.get_textpage()) as text_page:
        text: str = text_page.get_text_range()
    return re.sub("[\ufffe\u00ad\x02]\r?\n?", "", text).replace("\r\n", "\n").replace("\x00", "")


def _unopened(why: str) -> ExtractFailure:
    if "assword" in why:
        return ExtractFailure(
            "invalid_file", "The PDF is protected by a password. Remove it and upload the file again."
        )
    return ExtractFailure("invalid_file", "The PDF is damaged and can not be opened. Save it anew and upload it again.")


def _read_docx(path: Path, limits: ExtractLimits, budget: Budget) -> Iterator[Passage]:
    try:
        import docx  # noqa: PLC0415  # of the extra `files`
    except ImportError:
        raise packages_missing("python-docx") from None
    check_archive(path, limits)
    for block in docx.Document(str(path)).iter_inner_content():
        text = block.text if hasattr(block, "text") else "\n".join(_docx_rows(block))
        yield Passage(budget.take(text + "\n"))


def _docx_rows(table: Any) -> Iterator[str]:
    for row in table.rows:
        cells: list[str] = []
        seen = None
        for cell in row.cells:
            if cell._tc is not seen:  # noqa: SLF001  # a merged cell comes once for each column that it covers
                cells.append(" ".join(cell.text.split()))
            seen = cell._tc  # noqa: SLF001
        yield " | ".join(cells)


def _read_pptx(path: Path, limits: ExtractLimits, budget: Budget) -> Iterator[Passage]:
    try:
        import pptx  # noqa: PLC0415  # of the extra `files`
    except ImportError:
        raise packages_missing("python-pptx") from None
    check_archive(path, limits)
    for number, slide in enumerate(pptx.Presentation(str(path)).slides, 1):
        lines = list(_shape_lines(slide.shapes))
        notes = slide.notes_slide.notes_text_frame if slide.has_notes_slide else None
        if notes is not None and notes.text.strip():
            lines.append(notes.text)
        text = budget.take("\n".join(lines))
        if text and not text.isspace():
            yield Passage(text, number)


def _shape_lines(shapes: Iterable[Any]) -> Iterator[str]:
    """Give the text of shapes, those inside groups included. No recursion: groups can lie in groups without end."""
    waiting = list(shapes)[::-1]
    while waiting:
        shape = waiting.pop()
        if hasattr(shape, "shapes"):
            waiting.extend(list(shape.shapes)[::-1])
        elif shape.has_text_frame:
            yield shape.text_frame.text
        elif getattr(shape, "has_table", False):
            for row in shape.table.rows:
                yield " | ".join(" ".join(cell.text.split()) for cell in row.cells)


def _read_sheets(path: Path, limits: ExtractLimits, budget: Budget) -> Iterator[Passage]:
    try:
        import openpyxl  # noqa: PLC0415  # of the extra `files`
    except ImportError:
        raise packages_missing("openpyxl") from None
    check_archive(path, limits)
    with (
        path.open("rb") as file,  # by its path it would have to be named .xlsx
        closing(openpyxl.load_workbook(file, read_only=True, data_only=True)) as workbook,
    ):
        cells = limits.cells
        for number, sheet in enumerate(workbook.worksheets, 1):
            yield Passage(budget.take(f"{sheet.title}\n"), number)
            sheet.reset_dimensions()  # what a file says of its size would pad every row to the farthest cell
            for block in _sheet_blocks(sheet.iter_rows(values_only=True), cells):
                cells -= block.count(" | ") + block.count("\n")
                yield Passage(budget.take(block), number)


def _sheet_blocks(rows: Iterable[Iterable[Any]], most_cells: int) -> Iterator[str]:
    """Give rows as lines, some at a time with the first row above them. Empty rows and cells at the end go."""
    header = ""
    lines: list[str] = []
    cells = 0
    for row in rows:
        shown = ["" if value is None else " ".join(str(value).split()) for value in row]
        while shown and not shown[-1]:
            shown.pop()
        if not shown:
            continue
        cells += len(shown)
        if cells > most_cells:
            raise ExtractFailure("invalid_file", f"The tables hold more than {most_cells:,} cells. Split the file.")
        line = _GAP.sub("| ... | ", " | ".join(shown))
        header = header or line
        lines.append(line)
        if len(lines) > ROWS_UNDER_A_HEADER:
            yield "\n".join(lines) + "\n"
            lines = [header]
    if len(lines) > 1 or lines == [header]:
        yield "\n".join(lines) + "\n"


def check_archive(path: Path, limits: ExtractLimits) -> None:
    """Raise ExtractFailure for an archive that would unpack to more than the limits allow.

    The sizes are what the archive says of itself; `zipfile` unpacks no more than that.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    unpacked = sum(member.file_size for member in members)
    swollen = any(
        member.file_size > SMALL_MEMBER and member.file_size > limits.unpacked_ratio * max(1, member.compress_size)
        for member in members
    )
    if len(members) > limits.members or unpacked > limits.unpacked_bytes or swollen:
        raise ExtractFailure(
            "invalid_file",
            f"The file unpacks to {unpacked / MIB:,.0f} MiB in {len(members):,} parts, which is more than any document "
            "needs. Save it anew, without embedded media, and upload it again.",
        )


def _tidy(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]*\n[ \t]*", "\n", text)).strip()


READERS: dict[Kind, Reader] = {
    "text": _read_text,
    "html": _read_html,
    "csv": _read_csv,
    "pdf": _read_pdf,
    "docx": _read_docx,
    "pptx": _read_pptx,
    "sheets": _read_sheets,
    "doc": _read_doc,
}
