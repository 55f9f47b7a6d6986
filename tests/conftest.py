"""For all tests: on CI nothing may be skipped. A skip elsewhere has its reason; there it would hide a missing part."""

from __future__ import annotations

import os

import pytest

LONG_FIRST = ("durability", "simulation", "history", "clients", "contract", "api", "unit")
"""Folders in the order in which they are run: what takes long must not be what several processes end with."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the folders with long tests first; the order inside a folder stays."""
    place = {folder: number for number, folder in enumerate(LONG_FIRST)}
    items.sort(key=lambda item: place.get(item.path.parent.name, len(place)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say it in words."""
    if os.environ.get("CI") and terminalreporter.stats.get("skipped"):
        terminalreporter.write_line("CI: tests were skipped, which is not allowed here", red=True)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run if a test was skipped on CI."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
