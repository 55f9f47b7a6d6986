"""Settings: their sources and precedence, mistakes said in one line, and the table of the docs."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.errors import OperatorError
from perdure.settings import Settings, read_settings, settings_table, unknown_variables

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(f"PERDURE_{name.upper()}", raising=False)
    return tmp_path


def test_a_flag_wins_over_a_variable_over_dotenv_over_the_file(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / "perdure.toml").write_text('port = 1\nhost = "127.0.0.4"\nconcurrency = 4\nlease_seconds = 4.0\n')
    (empty_folder / ".env").write_text("PERDURE_PORT=2\nPERDURE_HOST=127.0.0.3\nPERDURE_CONCURRENCY=3\nOTHER=x\n")
    monkeypatch.setenv("PERDURE_PORT", "3")
    monkeypatch.setenv("PERDURE_HOST", "127.0.0.2")
    settings = read_settings(port=4, host=None)
    assert (settings.port, settings.host, settings.concurrency, settings.lease_seconds) == (4, "127.0.0.2", 3, 4.0)


def test_upstreams_come_as_json_or_as_a_table(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_UPSTREAM_URL", "http://127.0.0.1:1/v1/")
    (empty_folder / "perdure.toml").write_text('[upstreams.local]\nurl = "http://127.0.0.1:2/v1"\nkey = "k"\n')
    assert {name: one.url for name, one in read_settings().named_upstreams.items()} == {
        "default": "http://127.0.0.1:1/v1",
        "local": "http://127.0.0.1:2/v1",
    }
    given = read_settings(upstreams='{"flag": {"url": "http://127.0.0.1:3/v1"}}', model_map='{"gpt-4*": "flag/x"}')
    assert set(given.upstreams) == {"flag", "local"}  # mappings of several sources add up
    assert given.model_map == {"gpt-4*": "flag/x"}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("port", "x", "setting port (PERDURE_PORT)"),
        ("port", "70000", "setting port (PERDURE_PORT)"),
        ("upstream_url", "api.openai.com/v1", "is not an http(s) URL"),
        ("database_url", "mysql://x", "is not a postgresql:// URL"),
        ("upstreams", "{", "upstreams"),
        ("upstreams", '{"a/b": {"url": "http://x/v1"}}', "can not name an upstream"),
        ("log_level", "loud", "setting log_level (PERDURE_LOG_LEVEL)"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_setting(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"PERDURE_{name.upper()}", value)
    with pytest.raises(OperatorError) as caught:
        read_settings()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["prot = 1\n", "port = = 1\n", "model_map = 3\n"])
def test_a_broken_file_is_refused(text: str, empty_folder: Path) -> None:
    (empty_folder / "perdure.toml").write_text(text)
    with pytest.raises(OperatorError):
        read_settings()


def test_a_variable_that_names_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_PROT", "1")
    assert "PERDURE_PROT" in unknown_variables()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("example.org", False)],
)
def test_loopback_is_known(host: str, loopback: bool) -> None:
    assert read_settings(host=host).on_loopback is loopback


def test_the_table_of_the_docs_has_every_setting() -> None:
    table = settings_table()
    assert table in (DOCS / "operating.md").read_text(encoding="utf-8"), "run `make docs`"
    assert all(f"`PERDURE_{name.upper()}`" in table for name in Settings.model_fields)
