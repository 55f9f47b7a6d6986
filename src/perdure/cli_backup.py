"""`perdure backup`, `restore`, `export` and `import`.

Rule: nothing is decided here; `backup.py` and `exchange.py` do the work. What was done goes to stderr where stdout may
carry an export.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perdure.errors import OperatorError
from perdure.settings import read_settings

if TYPE_CHECKING:
    from perdure.archive import Manifest

Data = Annotated[Path | None, typer.Option("--data", help="The data folder.")]
DatabaseUrl = Annotated[str | None, typer.Option("--database-url", help="Postgres, if the server uses it.")]
BlobsUrl = Annotated[str | None, typer.Option("--blobs-url", help="The bucket, if the server keeps files in one.")]
Project = Annotated[str | None, typer.Option("--project", metavar="NAME", help="This project only.")]
SHOWN = ("assistants", "threads", "messages", "runs", "files", "vector_stores")
NAMED_AT_MOST = 5


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("backup")(backup)
    app.command("restore")(restore)
    app.command("export")(export)
    app.command("import")(import_lines)


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; it is a zip.")],
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    data: Data = None,
    database_url: DatabaseUrl = None,
    blobs_url: BlobsUrl = None,
) -> None:
    """Write everything (objects, keys, files) into one file, also while the server runs. Weights are left out.

    The exit status is 1 if bytes of files are not where they should be: all else is in the backup.
    """
    from rich.filesize import decimal

    from perdure.backup import make_backup

    logging.getLogger("perdure.blobs.gone").disabled = True  # what was deleted meanwhile is no news, the rest is below
    settings = read_settings(data=data, database_url=database_url, blobs_url=blobs_url)
    manifest = make_backup(settings, file, force=force)
    typer.echo(f"{file}: {_contents(manifest)}; {decimal(file.stat().st_size)}", err=True)
    if manifest.lost:
        lost = f"NOT in the backup, as they are not where the server keeps files: {_first(manifest.lost)}"
        typer.echo(
            f"the bytes of {len(manifest.lost)} files are {lost}. Is PERDURE_BLOBS_URL as for the server?", err=True
        )
        raise typer.Exit(1)


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `perdure backup` has written.")],
    force: Annotated[bool, typer.Option("--force", help="Keep what is there under another name.")] = False,
    data: Data = None,
    database_url: DatabaseUrl = None,
    blobs_url: BlobsUrl = None,
) -> None:
    """Put a backup into an empty data folder, database and bucket; the server must not run."""
    from perdure.backup import restore_backup

    settings = read_settings(data=data, database_url=database_url, blobs_url=blobs_url)
    restored = restore_backup(settings, file, force=force)
    made = datetime.fromtimestamp(restored.manifest.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    where = "the database" if settings.database_url else settings.data
    typer.echo(f"restored {_contents(restored.manifest)} of {made} into {where}", err=True)
    if restored.aside:
        typer.echo(f"what was there before is kept in {restored.aside}", err=True)
    if restored.unnamed:
        typer.echo(
            f"{restored.unnamed} files that were in the bucket before belong to nothing now: they are deleted when "
            "they are PERDURE_ORPHAN_SECONDS old. Set it to 0 before you start the server if you want to keep them",
            err=True,
        )


def _contents(manifest: Manifest) -> str:
    counts = {name: note.rows for name, note in manifest.tables.items()}
    counts["keys"] = counts.get("api_keys", 0)
    return _counted({name: counts.get(name, 0) for name in (*SHOWN, "keys")})


def _counted(counts: Mapping[str, int]) -> str:
    """Return `1 thread, 2 messages`; what there is none of is left out."""
    words = {name: name.replace("_", " ") for name in counts}
    shown = [f"{count} {words[name][:-1] if count == 1 else words[name]}" for name, count in counts.items() if count]
    return ", ".join(shown) or "nothing"


def _plural(kind: str) -> str:
    """Return the name of the table in which objects of a kind lie."""
    return "vector_store_files" if kind == "vector_store.file" else kind.rpartition(".")[2] + "s"


def _first(names: list[str]) -> str:
    return ", ".join(names[:NAMED_AT_MOST]) + (" ..." if names[NAMED_AT_MOST:] else "")


def export(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="The file to write; unset, stdout.")] = None,
    project: Project = None,
    thread: Annotated[
        list[str] | None, typer.Option("--thread", metavar="ID", help="This thread, with its assistants; repeatable.")
    ] = None,
    files: Annotated[
        Path | None, typer.Option("--files", metavar="FOLDER", help="Write the files' bytes there, named by their ids.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    data: Data = None,
    database_url: DatabaseUrl = None,
    blobs_url: BlobsUrl = None,
) -> None:
    """Write files, vector stores, assistants, threads, messages, runs and steps as JSON Lines; the server may run."""
    from perdure.archive import whole_file
    from perdure.exchange import export_lines

    logging.getLogger("perdure.blobs.gone").disabled = True  # it is said below
    settings = read_settings(data=data, database_url=database_url, blobs_url=blobs_url)
    if file is not None and str(file) != "-":
        with whole_file(file, force=force) as target:
            done = export_lines(settings, target, project, thread or [], files)
    else:
        try:
            done = export_lines(settings, sys.stdout.buffer, project, thread or [], files)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
            raise OperatorError("whoever reads the export has gone: it is not whole") from None
    typer.echo(f"exported {_counted(done.counts)}", err=True)
    if done.missing:
        typer.echo(f"the bytes of these are not where the server keeps files: {_first(done.missing)}", err=True)


def import_lines(
    file: Annotated[str, typer.Argument(metavar="FILE", help="An export, or one API object a line; `-` is stdin.")],
    project: Annotated[
        str | None,
        typer.Option(
            "--project",
            metavar="NAME",
            help="The project to put all into. Unset: an export's own ones, else `default`.",
        ),
    ] = None,
    files: Annotated[
        Path | None, typer.Option("--files", metavar="FOLDER", help="Where the files' bytes are, named by their ids.")
    ] = None,
    data: Data = None,
    database_url: DatabaseUrl = None,
    blobs_url: BlobsUrl = None,
) -> None:
    """Store objects written down as JSON Lines, ids kept. What is there already is never overwritten."""
    from perdure import exchange

    settings = read_settings(data=data, database_url=database_url, blobs_url=blobs_url)
    try:
        with sys.stdin.buffer if file == "-" else Path(file).open("rb") as source:
            report = exchange.import_lines(settings, source, project, lambda text: typer.echo(text, err=True), files)
    except OSError as error:
        raise OperatorError(f"{file} can not be read: {error.strerror or error}") from None
    counts = {_plural(name): count for name, count in report.imported.items()}
    there = f"; {report.same} there already" if report.same else ""
    typer.echo(f"imported {_counted(counts)}{there}", err=True)
    for kind, count in sorted(report.unknown.items()):
        typer.echo(f"left out: {count} of kind '{kind}', which can not be imported", err=True)
    if report.refused:
        typer.echo(f"refused: {len(report.refused)}, named above; nothing was overwritten", err=True)
    if report.cut_off:
        typer.echo("the export was cut off: its last line is missing. What is there of it was imported", err=True)
    if not report.whole:
        raise typer.Exit(1)
