"""`perdure sandbox`: build the environment that code runs in, and try the walls.

Rule: nothing is decided here; `sandbox/` does the work, this shows it. Errors go up as OperatorError.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

sandbox_app = typer.Typer(no_args_is_help=True, help="Where the code interpreter runs code.")

DataOption = Annotated[Path | None, typer.Option("--data", help="Data folder; unset, as `perdure serve` finds it.")]
ToOption = Annotated[Path | None, typer.Option("--to", help="Folder to build in; unset, as `perdure serve` finds it.")]


@sandbox_app.command("build")
def build(to: ToOption = None, data: DataOption = None) -> None:
    """Build the sandbox's own Python with numpy, pandas, matplotlib, scipy, openpyxl and pillow."""
    from perdure.sandbox.environment import build_environment, environment_folder
    from perdure.settings import read_settings

    settings = read_settings(data=data, code_environment=to)
    environment = build_environment(settings, lambda text: typer.echo(text, err=True))
    typer.echo(f"{environment_folder(settings)}: {environment.about}")


@sandbox_app.command("check")
def check(
    kind: Annotated[str, typer.Argument(help="bubblewrap, landlock, wasm or docker.")] = "bubblewrap",
    data: DataOption = None,
    limits: Annotated[bool, typer.Option(help="Also use up every limit: half a minute of heavy load.")] = False,
) -> None:
    """Try the walls of a kind from inside, and print what hostile code got."""
    from perdure.errors import OperatorError
    from perdure.sandbox.base import SandboxFailure
    from perdure.sandbox.choose import KINDS, make_kind
    from perdure.settings import read_settings

    if kind not in KINDS:
        raise OperatorError(f"'{kind}' is no kind of sandbox: {', '.join(KINDS)}")
    try:
        report = asyncio.run(make_kind(kind, read_settings(data=data)).self_check("limits" if limits else "walls"))
    except SandboxFailure as failure:
        raise OperatorError(str(failure)) from None
    for wall in report.walls:
        typer.echo(f"{'holds ' if wall.holds else 'BROKEN'} {wall.wall}")
        for line in wall.seen.splitlines():
            typer.echo(f"         {line}")
    if not report.holds:
        raise typer.Exit(1)
