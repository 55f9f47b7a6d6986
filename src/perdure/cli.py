"""The command line: serve, demo, keys, models, backup and its kin, doctor.

Rule: an operator's mistake is one line on stderr that says what to do, and exit status 2; never a traceback.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.console import Console

from perdure import __version__, cli_backup
from perdure.cli_keys import keys_app
from perdure.cli_models import models_app
from perdure.cli_sandbox import sandbox_app
from perdure.cli_vector_stores import vector_stores_app
from perdure.errors import OperatorError
from perdure.settings import Settings, read_settings, unknown_variables

app = typer.Typer(
    name="perdure",
    help="A self-hosted server for the OpenAI Assistants API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(keys_app, name="keys")
app.add_typer(models_app, name="models")
app.add_typer(vector_stores_app, name="vector-stores")
app.add_typer(sandbox_app, name="sandbox")
cli_backup.register(app)
out = Console(soft_wrap=True, highlight=False)


def main() -> None:
    """Run the command line; OperatorError becomes one line."""
    try:
        app()
    except OperatorError as error:
        print(f"perdure: {error}", file=sys.stderr)  # noqa: T201  # the one line
        sys.exit(2)


def _with_settings_as_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each setting; what is not given is None."""
    parameters = []
    for name, field in Settings.model_fields.items():
        plain = _flag_type(field.annotation)
        flag = f"--{name.replace('_', '-')}"
        names = [f"{flag}/--no-{flag[2:]}"] if plain is bool else [flag]
        option = typer.Option(*names, help=field.description, show_default=False)
        optional: Any = plain | None
        annotation = Annotated[optional, option]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation))

    def with_flags(**flags: Any) -> None:
        command(read_settings(**flags))

    with_flags.__name__ = command.__name__
    with_flags.__doc__ = command.__doc__
    with_flags.__annotations__ = {one.name: one.annotation for one in parameters}
    with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # read by typer
    return with_flags


def _flag_type(annotation: Any) -> Any:
    """Return what typer parses: mappings come as JSON text, choices as text; the settings check them."""
    plain = next((one for one in get_args(annotation) if one is not type(None)), annotation)
    if type(None) not in get_args(annotation):
        plain = annotation
    if get_origin(plain) in {dict, Literal}:
        return str
    return plain if plain in {int, float, bool, Path} else str


def set_up_log(level: str) -> None:
    """Log to stderr, one line an event."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr, force=True
    )
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    logging.getLogger("httpcore2").setLevel(logging.WARNING)


@app.command()
@_with_settings_as_flags
def serve(settings: Settings) -> None:
    """Serve the API. Every option is also a variable (PERDURE_PORT) and a key of perdure.toml (port)."""
    from perdure.app import Running
    from perdure.app import serve as serve_until_stopped

    set_up_log(settings.log_level)
    for name in unknown_variables():
        logging.getLogger("perdure").warning("%s is no setting and is ignored: `perdure serve --help` lists all", name)

    def announce(running: Running) -> None:
        key = "any key will do" if running.open_without_key else "a key of `perdure keys list`"
        out.print(f"Perdure {__version__} serves the Assistants API. Give your program:")
        out.print(f"  export OPENAI_BASE_URL={running.url}")
        if running.open_without_key:
            out.print("  export OPENAI_API_KEY=perdure", f" # {key}", sep=" ")
        else:
            out.print(f"  export OPENAI_API_KEY=...  # {key}")
        sys.stdout.flush()

    serve_until_stopped(settings, announce)


@app.command()
def demo(
    model: Annotated[str | None, typer.Option(help="The built-in model to use: a name, a GGUF, or `scripted`.")] = None,
) -> None:
    """Hold the math tutor's conversation on a server of its own, and leave nothing behind."""
    from perdure.demo import hold_conversation

    set_up_log("error")
    hold_conversation(model)


@app.command()
def doctor() -> None:
    """Say what works on this machine, and what to do about the rest."""
    from perdure.doctor import examine

    healthy = True
    for finding in examine(read_settings()):
        healthy = healthy and finding.ok
        out.print(f"{'ok  ' if finding.ok else 'FAIL'} {finding.what}: {finding.detail}", markup=False)
    if not healthy:
        raise typer.Exit(1)


@app.command()
def version() -> None:
    """Print the version."""
    out.print(__version__)
