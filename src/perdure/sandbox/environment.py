"""The Python that the box runs: an environment of its own with numpy and its like, or the plain interpreter.

Never the server's environment: what lies there is none of the code's business. `perdure sandbox build` makes it once;
finding it is reading one small file.

The interpreter below a virtual environment may lie where no other user can read it (under root's home, say). Then it is
copied into the environment, because the box's processes run under a uid of their own.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from perdure.errors import OperatorError
from perdure.settings import Settings

NOTE = "perdure-environment.json"
BEGUN = "perdure-environment.begun"
PACKAGES = {
    "numpy": "2.4.6",
    "pandas": "3.1.1",
    "matplotlib": "3.11.2",
    "scipy": "1.17.1",
    "openpyxl": "3.1.5",
    "pillow": "13.0.0",
}
"""What models expect of a code interpreter, at versions that have wheels for every Python from 3.11 on."""
NOT_COPIED = shutil.ignore_patterns(
    "site-packages",
    "test",
    "tests",
    "idlelib",
    "tkinter",
    "turtledemo",
    "lib2to3",
    "config-*",
    "*.a",
    "include",
    "share",
)
SYSTEM = (Path("/usr"), Path("/bin"), Path("/lib"))
SYSTEM_PYTHON = Path("/usr/bin/python3")


class Environment(msgspec.Struct, frozen=True):
    """A Python to run in a box. `roots` are the folders that it needs, beside the system's own."""

    python: Path
    roots: list[Path]
    packages: dict[str, str] = {}
    font_cache: Path | None = None

    @property
    def about(self) -> str:
        """What is there, in a few words."""
        if not self.packages:
            return "the standard library only (`perdure sandbox build` adds numpy and its like)"
        return ", ".join(f"{name} {version}" for name, version in self.packages.items())


def environment_folder(settings: Settings) -> Path:
    """Return where the environment is, or will be."""
    return (settings.code_environment or settings.data / "sandbox-env").absolute()


def find_environment(settings: Settings) -> Environment:
    """Return the environment that was built, else the interpreter that Perdure itself was made from."""
    folder = environment_folder(settings)
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        return Environment(
            python=folder / "venv" / "bin" / "python",
            roots=[Path(root) for root in note["roots"]] + [folder],
            packages=note["packages"],
            font_cache=folder / "fonts",
        )
    except (OSError, ValueError, KeyError):
        return plain_environment()


def plain_environment() -> Environment:
    """Return the interpreter below the server's environment, without anything that was installed into it."""
    base = Path(sys.base_prefix).resolve()
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    return Environment(python=python, roots=[] if _of_system(base) else [base])


def readable_environment(found: Environment) -> Environment | None:
    """Return an environment that a user without any rights can run: the one found, the system's, or None."""
    if all(open_to_all(path) for path in [found.python.resolve(), *found.roots]):
        return found
    if SYSTEM_PYTHON.exists():
        return Environment(python=SYSTEM_PYTHON.resolve(), roots=[])
    return None


def open_to_all(path: Path) -> bool:
    """Whether every user can reach and read this path."""
    try:
        if not path.stat().st_mode & stat.S_IROTH:
            return False
        return all(parent.stat().st_mode & stat.S_IXOTH for parent in path.resolve().parents)
    except OSError:
        return False


def _of_system(path: Path) -> bool:
    return any(path.is_relative_to(place) for place in SYSTEM)


def build_environment(settings: Settings, say: Callable[[str], None]) -> Environment:
    """Build the environment anew, in place of an earlier one. Raises OperatorError.

    Needs the package index; takes about a minute. A folder with anything else in it is left alone.
    """
    if os.name != "posix":
        raise OperatorError("the sandbox's environment is for Linux: here the wasm sandbox brings its own Python")
    folder = environment_folder(settings)
    if folder.exists() and not any((folder / name).exists() for name in (NOTE, BEGUN)) and any(folder.iterdir()):
        raise OperatorError(f"{folder} has something else in it: choose an empty folder or a new one")
    umask = os.umask(0o022)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / BEGUN).touch()
        _build_into(folder, say)
        (folder / BEGUN).unlink()
    except (OSError, subprocess.CalledProcessError) as error:
        if (folder / BEGUN).exists():
            shutil.rmtree(folder, ignore_errors=True)
        said = getattr(error, "stderr", b"") or b""
        last = said.decode(errors="replace").strip().rsplit("\n", 1)[-1]
        raise OperatorError(f"the sandbox's environment can not be built in {folder}: {last or error}") from None
    finally:
        os.umask(umask)
    return find_environment(settings)


def _build_into(folder: Path, say: Callable[[str], None]) -> None:
    base, python = Path(sys.base_prefix).resolve(), plain_environment().python
    roots = [] if _of_system(base) else [str(base)]
    if roots and not open_to_all(base):
        say(f"copying the interpreter: {base} can not be read by other users")
        shutil.copytree(base, folder / "python", symlinks=True, ignore=NOT_COPIED)
        python, roots = folder / "python" / "bin" / python.name, []
    say("making the environment")
    _call(python, "-m", "venv", str(folder / "venv"))
    wanted = [f"{name}=={version}" for name, version in PACKAGES.items()]
    say("installing " + ", ".join(wanted))
    inside = folder / "venv" / "bin" / "python"
    _call(inside, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", *wanted)
    (folder / "fonts").mkdir()
    _call(inside, "-c", "import matplotlib.font_manager", MPLCONFIGDIR=str(folder / "fonts"))
    note = {"roots": roots, "packages": PACKAGES, "python": sys.version.split()[0]}
    (folder / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")


def _call(python: Path, *arguments: str, **variables: str) -> None:
    subprocess.run([python, *arguments], check=True, capture_output=True, env={**os.environ, **variables})  # noqa: S603  # ours
