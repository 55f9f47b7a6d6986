"""A server with the scripted model, shared by a module, and a client for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import Client, running_server


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of a server whose scripted model repeats the question."""
    with running_server(tmp_path_factory.mktemp("server") / "data") as base_url:
        yield base_url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    """A fresh official client."""
    with Client(url) as one:
        yield one


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder for a server of the test's own."""
    return tmp_path / "data"
