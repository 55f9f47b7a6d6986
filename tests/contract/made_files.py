"""Files for the tests of extraction: real ones, made by the libraries that make them everywhere, and hostile ones."""

from __future__ import annotations

import struct
import zipfile
import zlib
from pathlib import Path

import docx
import fpdf
import openpyxl
import pptx
from pptx.util import Inches

MIB = 1024 * 1024
WORD = '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>{}</w:body></w:document>'


def make_docx(path: Path) -> Path:
    document = docx.Document()
    document.add_heading("Returns policy", 1)
    document.add_paragraph("환불은 구매 후 14일 안에 됩니다.")
    table = document.add_table(2, 2)
    for row, texts in enumerate((("Plan", "Price"), ("Pro", "10 €"))):
        for column, text in enumerate(texts):
            table.cell(row, column).text = text
    document.add_paragraph("The end.")
    document.save(str(path))
    return path


def make_pptx(path: Path) -> Path:
    deck = pptx.Presentation()
    for number in (1, 2, 3):
        slide = deck.slides.add_slide(deck.slide_layouts[5])
        slide.shapes.title.text = f"Slide {number}"
        box = slide.shapes.add_textbox(Inches(1), Inches(2), Inches(4), Inches(1))
        box.text_frame.text = f"환불 {number}"
        slide.notes_slide.notes_text_frame.text = f"Note {number}"
    table = deck.slides[2].shapes.add_table(1, 2, Inches(1), Inches(4), Inches(4), Inches(1)).table
    table.cell(0, 0).text, table.cell(0, 1).text = "left", "right"
    deck.save(str(path))
    return path


def make_xlsx(path: Path) -> Path:
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "Prices"
    sheet.append(["name", "price"])
    for number in range(60):
        sheet.append([f"item {number}", number / 2])
    other = book.create_sheet("환불")
    other["A1"] = "14일"
    other["XFD1048576"] = "far away"
    book.save(path)
    return path


def make_pdf(path: Path, pages: int = 3) -> Path:
    document = fpdf.FPDF()
    document.set_font("Helvetica", size=12)
    for number in range(1, pages + 1):
        document.add_page()
        if number != 2:  # an empty page keeps its number
            document.multi_cell(0, 10, f"Page {number} of the manual.\nRefunds take five days.")
    document.output(str(path))
    return path


def make_protected_pdf(path: Path) -> Path:
    document = fpdf.FPDF()
    document.set_encryption(owner_password="o", user_password="u")
    document.set_font("Helvetica", size=12)
    document.add_page()
    document.cell(text="secret")
    document.output(str(path))
    return path


def make_archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return path


def make_bomb(path: Path, size: int = 300 * MIB) -> Path:
    """A .docx of 300 KB that unpacks to 300 MB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("word/document.xml", "w") as member:
        for _ in range(size // MIB):
            member.write(b" " * MIB)
    return path


def make_lying_bomb(path: Path) -> Path:
    """A .docx that says that it unpacks to 100 bytes, and unpacks to 64 MiB."""
    make_bomb(path, 64 * MIB)
    body = path.read_bytes()
    at = body.rindex(b"PK\x01\x02") + 24
    path.write_bytes(body[:at] + struct.pack("<I", 100) + body[at + 4 :])
    return path


def make_laughs(path: Path) -> Path:
    """A .docx whose XML asks for a billion words."""
    make_docx(path)
    entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    xml = f'<?xml version="1.0"?><!DOCTYPE w [<!ENTITY l0 "ha">{entities}]>' + WORD.format(
        "<w:p><w:r><w:t>&l9;</w:t></w:r></w:p>"
    )
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return make_archive(path, {**members, "word/document.xml": xml.encode()})


def pdf_of(*objects: bytes) -> bytes:
    """Return a PDF of these objects; the first is the catalogue."""
    body, offsets = b"%PDF-1.7\n", []
    for number, one in enumerate(objects, 1):
        offsets.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    rows = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    size = len(objects) + 1
    return body + head + rows + b"trailer <</Size %d /Root 1 0 R>>\nstartxref\n%d\n%%%%EOF" % (size, len(body))


def million_pages() -> bytes:
    """A PDF of a few kilobytes with a million empty pages: six levels of ten references to one page."""
    levels = [
        b"<</Type /Pages /Count %d /Kids [%s]>>" % (10 ** (6 - level), b"%d 0 R " % (level + 3) * 10)
        for level in range(6)
    ]
    return pdf_of(b"<</Type /Catalog /Pages 2 0 R>>", *levels, b"<</Type /Page /MediaBox [0 0 9 9]>>")


def looping_pages() -> bytes:
    """A PDF whose tree of pages holds itself."""
    return pdf_of(
        b"<</Type /Catalog /Pages 2 0 R>>",
        b"<</Type /Pages /Count 5 /Kids [3 0 R]>>",
        b"<</Type /Pages /Parent 2 0 R /Count 5 /Kids [2 0 R 3 0 R]>>",
    )


def swollen_page(size: int = 256 * MIB) -> bytes:
    """A PDF whose one page unpacks to 256 MB of drawing."""
    packer = zlib.compressobj(9)
    content = b"".join(packer.compress(b"q Q " * (MIB // 4)) for _ in range(size // MIB)) + packer.flush()
    return pdf_of(
        b"<</Type /Catalog /Pages 2 0 R>>",
        b"<</Type /Pages /Count 1 /Kids [3 0 R]>>",
        b"<</Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R>>",
        b"<</Length %d /Filter /FlateDecode>>\nstream\n%s\nendstream" % (len(content), content),
    )
