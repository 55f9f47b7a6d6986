"""What a cell shows beside its prints: the value of its last expression, `display()`, figures of matplotlib.

Rule: an object that can draw itself becomes an image, everything else text, since logs are text; both stay in order,
because text is flushed before an image is sent.
"""

from __future__ import annotations

import base64
import html.parser
import pprint
import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any, Callable, Sequence  # 3.9's own abc differs in nothing we use

WIDTH = 80


class Display:
    """Shows values. `send` takes an image: media type and bytes; `names` is the session's namespace."""

    def __init__(self, send: Callable[[str, bytes], None], names: dict[str, Any]) -> None:
        self._send = send
        self._names = names
        self._count = 0
        self._shown: set[int] = set()
        self.values: dict[int, Any] = {}

    def install(self) -> None:
        """Offer `IPython.display` to whoever imports it, and take over pyplot's `show` when it is imported."""
        sys.meta_path.append(_Offered(self))  # a finder by its methods
        sys.meta_path.insert(0, _Inline(self))  # the same

    def begin_cell(self, count: int) -> None:
        """Begin cell number `count`."""
        self._count = count
        self._shown.clear()

    def end_cell(self) -> None:
        """Show the figures that are open, as matplotlib's inline backend does, and close them."""
        self.show_figures()

    def write(self, text: str) -> None:
        """Write to where prints go."""
        stream = sys.stdout if sys.stdout is not None else sys.__stdout__
        if stream is not None:
            stream.write(text)
            stream.flush()

    def show_value(self, value: object) -> None:
        """Show the value of a last expression, and keep it as `_` and `Out[n]`. It is sys.displayhook."""
        if value is None:
            return
        self.display(value)
        self._names["___"], self._names["__"] = self._names.get("__"), self._names.get("_")
        self._names["_"] = self.values[self._count] = value

    def display(self, *values: object, **_: Any) -> None:
        """Show values, as `IPython.display.display`."""
        for value in values:
            if not self._as_image(value):
                self.write(text_of(value) + "\n")

    def show_figures(self) -> None:
        """Send every open figure of pyplot in its order, and close it."""
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is None or not hasattr(pyplot, "get_fignums"):
            return
        try:
            for number in pyplot.get_fignums():
                figure = pyplot.figure(number)
                if id(figure) not in self._shown:
                    self._send_figure(figure)
        finally:
            pyplot.close("all")

    def _as_image(self, value: object) -> bool:
        matplotlib_figure = sys.modules.get("matplotlib.figure")
        if matplotlib_figure is not None and isinstance(value, matplotlib_figure.Figure):
            self._shown.add(id(value))
            self._send_figure(value)
            return True
        if isinstance(value, type):
            return False
        for method, media_type in (("_repr_png_", "image/png"), ("_repr_jpeg_", "image/jpeg")):
            data = _call(value, method)
            if isinstance(data, tuple):
                data = data[0]
            if isinstance(data, str):
                data = base64.b64decode(data)
            if isinstance(data, bytes):
                self._send_image(media_type, data)
                return True
        return False

    def _send_figure(self, figure: Any) -> None:
        import io  # noqa: PLC0415  # with matplotlib it is there already

        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", bbox_inches="tight", dpi=figure.dpi)
        self._send_image("image/png", drawn.getvalue())

    def _send_image(self, media_type: str, data: bytes) -> None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        self._send(media_type, data)


def _call(value: object, method: str) -> Any:
    """Ask an object for one of its representations; one that fails has none, as in IPython."""
    function = getattr(value, method, None)
    if not callable(function):
        return None
    try:
        return function()
    except Exception:  # noqa: BLE001  # foreign code
        return None


def text_of(value: object) -> str:
    """Return the text that stands for a value: its repr, wide containers over several lines, bare HTML as text."""
    if type(value) in {dict, list, tuple, set, frozenset}:
        text = repr(value)
        return text if len(text) <= WIDTH else pprint.pformat(value, width=WIDTH, compact=True, sort_dicts=False)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}" if value.__module__ != "builtins" else value.__qualname__
    if type(value).__repr__ is object.__repr__:
        for method in ("_repr_markdown_", "_repr_latex_", "_repr_html_"):
            text = _call(value, method)
            if isinstance(text, str):
                return _without_tags(text) if method == "_repr_html_" else text
    return repr(value)


class _Text(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        del attrs
        if tag in {"br", "p", "div", "tr", "li", "h1", "h2", "h3", "table"}:
            self.parts.append("\n")
        elif tag in {"td", "th"}:
            self.parts.append("\t")


def _without_tags(markup: str) -> str:
    parser = _Text()
    parser.feed(markup)
    return "".join(parser.parts).strip()


class _Offered:
    """Finds modules that are made here when they are asked for: IPython's display."""

    def __init__(self, display: Display) -> None:
        self.makers: dict[str, Callable[[types.ModuleType], None]] = {
            "IPython": self._fill_ipython,
            "IPython.display": self._fill_ipython_display,
            "IPython.core.display": self._fill_ipython_display,
            "IPython.core": lambda _: None,
        }
        self.display = display

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        del path, target
        if name not in self.makers:
            return None
        return ModuleSpec(name, self, is_package=name in {"IPython", "IPython.core"})  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return types.ModuleType(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        self.makers[module.__name__](module)

    def _fill_ipython(self, module: types.ModuleType) -> None:
        module.get_ipython = lambda: None  # type: ignore[attr-defined]  # libraries must not hook into what is not there
        module.version_info = (8, 0, 0)  # type: ignore[attr-defined]

    def _fill_ipython_display(self, module: types.ModuleType) -> None:
        display = self.display
        module.display = display.display  # type: ignore[attr-defined]
        module.clear_output = lambda **_: None  # type: ignore[attr-defined]
        module.Image = _Image  # type: ignore[attr-defined]
        for name in ("Markdown", "Latex", "HTML", "JSON", "SVG", "Code", "Pretty", "Math"):
            setattr(module, name, type(name, (_Shown,), {}))


class _Inline:
    """Finds pyplot as everybody does, and lets `show` show its figures between the prints, whatever the backend.

    No backend of our own: the variable that names it would hold for Python programs that the code starts, too.
    """

    def __init__(self, display: Display) -> None:
        self.display = display

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name != "matplotlib.pyplot":
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Patched(spec.loader, self.display)  # type: ignore[assignment]  # a loader by its methods
                return spec
        return None


class _Patched:
    def __init__(self, loader: Any, display: Display) -> None:
        self.loader, self.display = loader, display

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def exec_module(self, module: types.ModuleType) -> None:
        self.loader.exec_module(module)

        def show(*_: Any, **__: Any) -> None:
            self.display.show_figures()

        module.show = show  # type: ignore[attr-defined]


class _Shown:
    """Text of a kind: `Markdown("...")` and its like show their text."""

    def __init__(self, data: Any = "", *_: Any, **__: Any) -> None:
        self.data = data

    def __repr__(self) -> str:
        text = self.data if isinstance(self.data, str) else text_of(self.data)
        return _without_tags(text) if type(self).__name__ == "HTML" else text


class _Image:
    """`IPython.display.Image`: PNG or JPEG bytes, or a file of them."""

    def __init__(self, data: Any = None, *, filename: str | None = None, **_: Any) -> None:
        if filename is None and isinstance(data, str):
            filename, data = data, None
        if filename is not None:
            with open(filename, "rb") as file:
                data = file.read()
        self.data = data

    def _repr_png_(self) -> Any:
        return self.data if self.data[:4] == b"\x89PNG" else None

    def _repr_jpeg_(self) -> Any:
        return self.data if self.data[:2] == b"\xff\xd8" else None
