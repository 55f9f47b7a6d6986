"""Thirty real documents of many types through the official client's `upload_and_poll`: this repository's own texts, as
they are and as an office would hold them.
"""

from __future__ import annotations

import csv
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docx
import fpdf
import openpyxl
import pptx
import pytest

from tests.server import Client, running_server

ROOT = Path(__file__).resolve().parents[2]
PLAIN = [
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "decisions").glob("*.md"))[:5],
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "docs" / "hosted_operations.json",
    ROOT / "examples" / "functions.py",
    ROOT / "src" / "perdure" / "errors.py",
    ROOT / "src" / "perdure" / "ids.py",
    ROOT / "tests" / "clients" / "walk.mjs",
    ROOT / "Makefile",
    ROOT / "pyproject.toml",
]


QUERY = "lease lapsed, worker gone: recovered into the queue"
SCRIPT: dict[str, Any] = {
    "rules": [
        {"when": "lease", "role": "user", "call": [{"name": "file_search", "arguments": {"queries": [QUERY]}}]},
        {
            "when": "",
            "role": "tool",
            "say": "A run whose lease lapsed is recovered【4:0†first】, so they say【4:1†second】.",
        },
    ]
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("documents")
    script = folder / "script.json"
    script.write_text(json.dumps(SCRIPT), encoding="utf-8")
    with running_server(folder / "data", embedding_model="hashing", script=script) as base_url:
        yield base_url


def paragraphs(path: Path) -> list[str]:
    """Return a text's paragraphs in letters that every font has."""
    text = path.read_text(encoding="utf-8").encode("latin-1", "replace").decode("latin-1")
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def as_docx(source: Path, target: Path) -> None:
    document = docx.Document()
    for part in paragraphs(source):
        document.add_paragraph(part)
    document.save(str(target))


def as_pptx(source: Path, target: Path) -> None:
    slides: Any = pptx.Presentation()
    for part in paragraphs(source):
        slide = slides.slides.add_slide(slides.slide_layouts[1])
        slide.shapes.title.text = part[:40]
        slide.placeholders[1].text = part
    slides.save(str(target))


def as_xlsx(source: Path, target: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(["number", "paragraph"])
    for number, part in enumerate(paragraphs(source)):
        sheet.append([number, f"'{part}"])
    book.save(target)


def as_pdf(source: Path, target: Path) -> None:
    pdf = fpdf.FPDF()
    pdf.set_font("Helvetica", size=11)
    for part in paragraphs(source):
        pdf.add_page()
        pdf.multi_cell(0, 6, part)
    pdf.output(str(target))


def as_html(source: Path, target: Path) -> None:
    body = "".join(f"<p>{html.escape(part)}</p>" for part in paragraphs(source))
    target.write_text(f"<html><head><script>unseen()</script></head><body>{body}</body></html>", encoding="utf-8")


def as_csv(source: Path, target: Path) -> None:
    with target.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["number", "paragraph"], *enumerate(paragraphs(source))])


def documents(folder: Path) -> list[Path]:
    """Return thirty files."""
    made = []
    texts = [ROOT / "docs" / "operating.md", ROOT / "docs" / "architecture.md"]
    for ending, make in (
        ("docx", as_docx),
        ("pptx", as_pptx),
        ("xlsx", as_xlsx),
        ("pdf", as_pdf),
        ("html", as_html),
        ("csv", as_csv),
    ):
        for source in texts:
            made.append(folder / f"{source.stem}.{ending}")
            make(source, made[-1])
    return [*PLAIN[: 30 - len(made)], *made]


def test_thirty_documents_are_read_and_found(client: Client, tmp_path: Path) -> None:
    paths = documents(tmp_path)
    assert len(paths) == 30
    store = client.vector_stores.create(name="Handbook")
    batch = client.vector_stores.file_batches.upload_and_poll(store.id, files=paths)
    failed = client.vector_stores.files.list(store.id, filter="failed").data
    assert [one.last_error for one in failed] == []
    assert (batch.status, batch.file_counts.completed) == ("completed", 30)
    names = {
        one.id: client.files.retrieve(one.id).filename for one in client.vector_stores.files.list(store.id, limit=100)
    }
    assert sorted(names.values()) == sorted(path.name for path in paths)
    for file_id, name in names.items():
        content = client.vector_stores.files.content(file_id, vector_store_id=store.id).data
        text = "".join(part.text or "" for part in content)
        assert len(text) > 100, name
        assert "unseen" not in text
        if name.startswith("architecture."):
            assert "import-linter" in text, name
    found = client.vector_stores.search(store.id, query=QUERY, max_num_results=20)
    assert {one.filename.partition(".")[0] for one in found.data} & {"architecture", "glossary"}
    assert len({one.filename.rpartition(".")[2] for one in found.data if one.filename.startswith("architecture")}) > 3
    check_cited(client, store.id, [found.data[0].filename, found.data[1].filename])


def check_cited(client: Client, store_id: str, expected: list[str]) -> None:
    """A streamed run over the store cites what the search found first; markers stand where annotations say."""
    helper = client.beta.assistants.create(
        model="gpt-4o",
        tools=[{"type": "file_search"}],
        tool_resources={"file_search": {"vector_store_ids": [store_id]}},
    )
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "What becomes of a lapsed lease?"}])
    with client.beta.threads.runs.stream(thread_id=thread.id, assistant_id=helper.id) as stream:
        part = stream.get_final_messages()[0].content[0]
    assert part.type == "text"
    cited = []
    for annotation in part.text.annotations:
        assert annotation.type == "file_citation"
        assert part.text.value[annotation.start_index : annotation.end_index] == annotation.text
        cited.append(client.files.retrieve(annotation.file_citation.file_id).filename)
    assert cited == expected
