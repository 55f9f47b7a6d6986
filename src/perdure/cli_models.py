"""`perdure models`: what weights are there, and getting more.

Rule: nothing is decided here; `models/weights.py` does the work, this shows it. Errors go up as OperatorError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

models_app = typer.Typer(no_args_is_help=True, help="Weights of the built-in model.")

DataOption = Annotated[Path | None, typer.Option("--data", help="Data folder; unset, as `perdure serve` finds it.")]


@models_app.command("list")
def list_models(data: DataOption = None) -> None:
    """Show the weights that are there; `*` marks the built-in model."""
    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    from perdure.models.weights import list_weights
    from perdure.settings import read_settings

    settings = read_settings(data=data)
    found = list_weights(settings)
    if not found:
        typer.echo(
            f"No weights in {settings.data / 'models'}. `perdure models pull smollm2` gets a small model to try."
        )
        return
    table = Table("", "NAME", "SIZE", "PATH", box=None, header_style="bold")
    table.columns[3].overflow = "fold"
    for one in found:
        table.add_row("*" if one.builtin else "", one.name, decimal(one.size_bytes), str(one.path))
    Console().print(table)


@models_app.command("pull")
def pull_model(
    what: Annotated[
        str, typer.Argument(metavar="WHAT", help="`smollm2`, the path of a GGUF, or hf:OWNER/REPO[@REVISION]/FILE.")
    ],
    data: DataOption = None,
) -> None:
    """Put weights into the data folder. A broken download goes on where it broke."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    from perdure.models.weights import pull
    from perdure.settings import read_settings

    settings = read_settings(data=data)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        row = bar.add_task(what.rsplit("/", 1)[-1], total=None)
        pulled = pull(what, settings, lambda done, total: bar.update(row, completed=done, total=total))
    typer.echo(str(pulled.path))
    typer.echo(f"sha256 {pulled.sha256}")
    typer.echo(f"Serve it: PERDURE_BUILTIN_MODEL={pulled.path.stem} perdure serve")
