"""What a file is: by its first bytes, and among text files by its name.

Rules. The content goes before the name: a PDF that is called .txt is read as a PDF. But a text that is called .pdf is
refused, because whoever named it expects a document. Of a name nothing but its ending is ever used.
"""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath
from typing import Literal

from perdure.search.passages import ExtractFailure, packages_missing

Kind = Literal["text", "html", "csv", "pdf", "docx", "pptx", "sheets", "doc"]

HEAD_BYTES = 4096
OFFICE: dict[str, Kind] = {"word/document.xml": "docx", "ppt/presentation.xml": "pptx", "xl/workbook.xml": "sheets"}
DOCUMENT_NAMES = {".pdf", ".docx", ".pptx", ".xlsx", ".doc"}
TEXT_KINDS: dict[str, Kind] = {".html": "html", ".htm": "html", ".xhtml": "html", ".csv": "csv", ".tsv": "csv"}

_SIGNATURES = (
    (b"\x89PNG\r\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program"),
    (b"{\\rtf", "a rich text file (RTF): save it as .docx or .txt"),
    (b"SQLite format 3", "a database"),
    (b"\x80\x04\x95", "a Python pickle"),
)
SUPPORTED = "text and source code in UTF-8 or UTF-16, .html, .csv, .pdf, .docx, .doc, .pptx and .xlsx"


def ending_of(filename: str) -> str:
    """Return a name's ending, such as `.pdf`, in small letters."""
    return PurePosixPath(filename.replace("\\", "/").rstrip()).suffix.lower()


def kind_of(path: Path, filename: str) -> Kind:
    """Return what the file is. Raises ExtractFailure for what can not be read, OSError where it can not be opened."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if b"%PDF-" in head[:1024]:
        return "pdf"
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    if head.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return _kind_of_ole(path)
    for signature, what in _SIGNATURES:
        if head.startswith(signature):
            raise ExtractFailure("unsupported_file", f"The file is {what}. What can be searched: {SUPPORTED}.")
    ending = ending_of(filename)
    if ending in DOCUMENT_NAMES:
        raise ExtractFailure(
            "invalid_file",
            f"The file is named {ending} but its content is something else, or it is damaged. Upload the original, or "
            "name a text .txt.",
        )
    return TEXT_KINDS.get(ending, "text")


def _kind_of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        raise ExtractFailure("invalid_file", "The file is damaged: its archive can not be opened.") from None
    for member, kind in OFFICE.items():
        if member in names:
            return kind
    raise ExtractFailure(
        "unsupported_file",
        f"The file is an archive of files: upload them one by one. What can be searched: {SUPPORTED}.",
    )


def _kind_of_ole(path: Path) -> Kind:
    try:
        import olefile  # noqa: PLC0415  # of the extra `files`
    except ImportError:
        raise packages_missing("olefile") from None
    try:
        with olefile.OleFileIO(str(path)) as ole:
            names = {entry[0] for entry in ole.listdir()}
    except (OSError, ValueError, IndexError, TypeError):
        raise ExtractFailure("invalid_file", "The file is damaged: its streams can not be listed.") from None
    if "EncryptedPackage" in names:
        raise ExtractFailure(
            "invalid_file", "The file is protected by a password. Remove it and upload the file again."
        )
    if "WordDocument" in names:
        return "doc"
    raise ExtractFailure(
        "unsupported_file",
        f"The file is an old Office file other than .doc: save it anew. What can be searched: {SUPPORTED}.",
    )
