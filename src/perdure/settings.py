"""All settings, read once into one frozen object.

Each field is a flag of `perdure serve` (`--upstream-url`), an environment variable (`PERDURE_UPSTREAM_URL`, also from
`.env`) and a key of `perdure.toml` (`upstream_url`), in that order of precedence. Field descriptions are the text of
the help and of the table in docs/operating.md.
"""

from __future__ import annotations

import ipaddress
import json
import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from perdure.errors import OperatorError

CONFIG_FILE = "perdure.toml"
MAPPINGS = {"upstreams", "model_map", "context_tokens"}
"""Settings that are written as JSON in flags and variables."""


class UpstreamSettings(BaseModel):
    """One named upstream: anything that serves an OpenAI-compatible `/chat/completions`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    key: str | None = None

    @field_validator("url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"'{value}' is not an http(s) URL; it should look like https://api.openai.com/v1")
        return value.rstrip("/")


class Settings(BaseSettings):
    """Every setting of the server."""

    model_config = SettingsConfigDict(
        env_prefix="PERDURE_",
        env_file=".env",
        toml_file=CONFIG_FILE,
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
    )

    data: Path = Field(Path("perdure-data"), description="Folder that holds everything: database, weights, files.")
    host: str = Field(
        "127.0.0.1", description="Address to bind. Other than loopback needs a key (`perdure keys create`)."
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to bind; 0 takes a free one.")
    database_url: str | None = Field(
        None, description="`postgresql://...` to keep everything in Postgres. Unset: SQLite in the data folder."
    )
    blobs_url: str | None = Field(
        None,
        description="Bucket for the bytes of files: `s3://bucket/prefix?region=...&endpoint=...`, `gs://bucket/prefix` "
        "or `az://container/prefix?account_name=...`; keys come from the provider's own variables. Unset: `files/` in "
        "the data folder.",
    )
    upstream_url: str | None = Field(
        None, description="Base URL of an OpenAI-compatible server, ending in `/v1`: the upstream named `default`."
    )
    upstream_key: str | None = Field(None, description="Key for `upstream_url`, sent as a Bearer token.")
    upstreams: dict[str, UpstreamSettings] = Field(
        default_factory=dict,
        description='More upstreams by name: `{"NAME": {"url": "...", "key": "..."}}`. Ask for `NAME/model`.',
    )
    upstream_connect_seconds: float = Field(10.0, gt=0, description="Time to connect to an upstream.")
    upstream_silence_seconds: float = Field(
        120.0, gt=0, description="Longest silence of an upstream before a run fails."
    )
    upstream_connections: int = Field(256, ge=1, description="Connections to each upstream at once.")
    upstream_retries: int = Field(
        2, ge=0, description="Retries of a model call on 429, 5xx or a refused connection, before the first token."
    )
    passthrough: str = Field(
        "*",
        description="Paths that Perdure does not serve itself and passes through to the upstream: patterns such as "
        "`chat/completions,embeddings,images/*`; `none` passes nothing.",
    )
    context_tokens: dict[str, PositiveInt] = Field(
        default_factory=dict,
        description="Context of upstream models, prompt and answer together, in tokens: a number for all, or by name "
        'and pattern: `{"gpt-4*": 128000, "*": 32768}`. First match wins. Unset: threads are not cut to a context.',
    )
    toolless_models: str = Field(
        "",
        description="Upstream models that can not call tools: names and patterns with commas between. File search is "
        "made for them with the user's words. One whose refusal of tools is understood need not be named.",
    )
    default_model: str | None = Field(None, description="Model for every name that is not known here.")
    model_map: dict[str, str] = Field(
        default_factory=dict,
        description='Names and patterns (`*`, `?`) to what is there: `{"gpt-4*": "qwen3:32b"}`. First match wins.',
    )
    builtin_model: str = Field(
        "smollm2-135m-instruct",
        description="The built-in model: a name in the data folder's `models/`, a GGUF's path, `scripted`, or `none`.",
    )
    builtin_threads: int | None = Field(
        None, ge=1, description="Threads of the built-in model. Unset: cores minus one. All cores are slower."
    )
    builtin_parallel: int = Field(3, ge=1, le=64, description="Answers that the built-in model writes at once.")
    builtin_context_tokens: int = Field(
        4096, ge=512, description="Context of the built-in model, for each answer. Tokens; the model's own if smaller."
    )
    builtin_answer_tokens: int = Field(
        512, ge=16, description="Longest answer of the built-in model where a run sets no limit. Tokens."
    )
    embedding_model: str = Field(
        "builtin",
        description="What makes the vectors of new vector stores: `builtin`, `hashing` (words only, no model), or a "
        "model of an upstream: `NAME/model`, or just `model` for the first one. Old stores keep theirs.",
    )
    embedding_dimensions: int | None = Field(
        None, ge=1, le=16_384, description="Shorter vectors from an upstream's embedding model, where it can make them."
    )
    script: Path | None = Field(
        None, description="JSON script of the `scripted` model; unset, it repeats the question."
    )
    concurrency: int = Field(64, ge=1, description="Runs worked on at once. More wait in the queue, oldest first.")
    run_expiry_seconds: int = Field(600, ge=1, description="Time from a run's creation to its expiry.")
    ingestion_concurrency: int = Field(
        2, ge=1, description="Files of vector stores that are read at once. More wait in the line; few go before many."
    )
    search_cache_bytes: int = Field(
        1024 * 1024 * 1024,
        ge=0,
        description="Memory for the indexes of vector stores; what was not searched for longest is loaded anew.",
    )
    vector_stores_per_assistant: int | None = Field(
        None, ge=1, description="Vector stores that an assistant or a thread may name. Unset: any number; hosted: 1."
    )
    lease_seconds: float = Field(
        30.0, ge=1, description="A worker's hold on a run, renewed three times as often. Lapsed, the run is recovered."
    )
    shutdown_grace_seconds: float = Field(
        10.0, ge=0, description="Time for running turns at shutdown; what is not done goes back to the queue."
    )
    event_log_seconds: int = Field(86400, ge=0, description="How long the event log of an ended run is kept.")
    poll_after_ms: int = Field(
        100,
        ge=1,
        description="`openai-poll-after-ms` on runs: how long the official polling helpers wait between polls.",
    )
    poll_hold_seconds: float = Field(
        1.0,
        ge=0,
        description="How long a poll by an official polling helper is held for the run's end. 0 answers at once.",
    )
    keepalive_seconds: float = Field(15.0, gt=0, description="Silence on a stream before a comment is sent.")
    body_limit_bytes: int = Field(32 * 1024 * 1024, ge=1024, description="Largest JSON body; above it: 413.")
    body_timeout_seconds: float = Field(60.0, gt=0, description="Longest wait for the next piece of a body; then 408.")
    file_limit_bytes: int = Field(
        2 * 1024 * 1024 * 1024,
        ge=1024,
        description="Largest file in one piece; above it: 413. The hosted API took 512 MB.",
    )
    upload_limit_bytes: int = Field(
        8 * 1024 * 1024 * 1024,
        ge=1024,
        description="Largest file sent in parts (`/uploads`). The hosted API took 8 GB.",
    )
    refuse_downloads: bool = Field(
        False,
        description="Refuse to give out the content of files of the purposes `assistants` and `user_data`, as the "
        "hosted API did.",
    )
    orphan_seconds: int = Field(
        3600,
        ge=0,
        description="Age at which bytes that belong to no file are deleted (a crash leaves such). 0 never deletes any.",
    )
    cors_origins: str = Field(
        "",
        description="Origins whose browser pages may call the server, with commas between, or `*`. Empty: none.",
    )
    require_beta_header: bool = Field(False, description="Refuse calls without `OpenAI-Beta`, as the hosted API did.")
    code_sandbox: Literal["auto", "bubblewrap", "landlock", "wasm", "docker", "none", "unsafe-no-sandbox"] = Field(
        "auto",
        description="Where the code interpreter runs code: `bubblewrap`, `landlock`, `wasm`, `docker`; `auto` takes "
        "the first of the first three that works here. `none`: nowhere. `unsafe-no-sandbox`: as the server's own user.",
    )
    code_environment: Path | None = Field(
        None,
        description="The sandbox's own Python with numpy and its like (`perdure sandbox build`). "
        "Unset: `sandbox-env` in the data folder.",
    )
    code_docker_image: str = Field(
        "python:3.13-slim",
        description="Image of the `docker` sandbox: any with a `python3`, and what else code may use.",
    )
    code_memory_mib: int = Field(1024, ge=128, description="Memory of a code session, all its processes together. MiB.")
    code_cpu_seconds: float = Field(120.0, gt=0, description="Processor time of one call of the code interpreter.")
    code_wall_seconds: float = Field(60.0, gt=0, description="Longest time of one call of the code interpreter.")
    code_processes: int = Field(64, ge=8, description="Processes and threads of a code session.")
    code_disk_mib: int = Field(256, ge=1, description="Room in `/mnt/data` of a code session. MiB; it is memory, too.")
    code_file_mib: int = Field(128, ge=1, description="Longest file that code can write. MiB.")
    code_output_kib: int = Field(64, ge=1, description="Longest text that one call shows the model. KiB.")
    code_sessions: int = Field(
        16, ge=1, description="Code sessions at once; for one more, the one that was idle longest is ended."
    )
    code_session_seconds: float = Field(3600.0, gt=0, description="How long a code session lives after its last use.")
    code_session_wait_seconds: float = Field(
        60.0, ge=0, description="Longest wait for a code session while all of them are busy."
    )
    code_warm_sessions: int = Field(1, ge=0, description="Code sessions that are kept ready, with numpy loaded.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="What goes to the log on stderr."
    )

    @field_validator("upstream_url")
    @classmethod
    def _upstream_is_http(cls, value: str | None) -> str | None:
        return None if value is None else UpstreamSettings(url=value).url

    @field_validator("database_url")
    @classmethod
    def _database_is_known(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).scheme not in {"postgresql", "postgres"}:
            raise ValueError(f"'{value}' is not a postgresql:// URL; leave it unset for SQLite in the data folder")
        return value

    @field_validator("blobs_url")
    @classmethod
    def _blobs_are_in_a_bucket(cls, value: str | None) -> str | None:
        parts = urlsplit(value or "")
        if value is not None and (parts.scheme not in {"s3", "gs", "az"} or not parts.netloc):
            raise ValueError(
                f"'{value}' should look like s3://bucket/prefix, gs://bucket/prefix or az://container/prefix"
            )
        return value

    @field_validator("context_tokens", mode="before")
    @classmethod
    def _one_for_all(cls, value: Any) -> Any:
        return {"*": value} if isinstance(value, int | str) and not isinstance(value, bool) else value

    @field_validator("upstreams")
    @classmethod
    def _names_are_plain(cls, value: dict[str, UpstreamSettings]) -> dict[str, UpstreamSettings]:
        for name in value:
            if not name or "/" in name or name == "builtin":
                raise ValueError(f"'{name}' can not name an upstream: no '/', not empty, not 'builtin'")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: flags, then environment, then .env, then perdure.toml."""
        del file_secret_settings
        toml = TomlConfigSettingsSource(settings_cls)
        unknown = sorted(set(toml.toml_data) - set(cls.model_fields))
        if unknown:
            raise OperatorError(f"{CONFIG_FILE}: unknown key '{unknown[0]}'; `perdure serve --help` lists them all")
        return init_settings, env_settings, dotenv_settings, toml

    @property
    def named_upstreams(self) -> dict[str, UpstreamSettings]:
        """All upstreams by name; `upstream_url` stands first, as `default`."""
        first = {"default": UpstreamSettings(url=self.upstream_url, key=self.upstream_key)} if self.upstream_url else {}
        return {**first, **{name: one for name, one in self.upstreams.items() if name not in first}}

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def read_settings(**flags: Any) -> Settings:
    """Read all sources; flags that are None count as not given. Raises OperatorError with one line."""
    given = {name: value for name, value in flags.items() if value is not None}
    for name in MAPPINGS & set(given):
        if isinstance(given[name], str):
            given[name] = _mapping(name, given[name])
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"]) or "settings"
        message = first["msg"].removeprefix("Value error, ")
        raise OperatorError(f"setting {name} (PERDURE_{name.upper()}): {message}") from None
    except ValueError as error:  # a broken perdure.toml, or JSON in a variable that does not parse
        raise OperatorError(f"settings can not be read: {error}") from None


def _mapping(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise OperatorError(f"--{name.replace('_', '-')} wants JSON text: {error}") from None


def unknown_variables() -> list[str]:
    """Return PERDURE_ variables of the environment that name no setting: usually a slip of the pen."""
    known = {f"PERDURE_{name.upper()}" for name in Settings.model_fields}
    return sorted(name for name in os.environ if name.upper().startswith("PERDURE_") and name.upper() not in known)


def settings_table() -> str:
    """Return all settings as a Markdown table: the one of docs/operating.md."""
    lines = ["| variable | flag of `serve` | key of `perdure.toml` | default | what it does |", "|---|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        shown = "" if default in (None, {}) else f"`{str(default).lower() if isinstance(default, bool) else default}`"
        flag = f"--{name.replace('_', '-')}"
        lines.append(f"| `PERDURE_{name.upper()}` | `{flag}` | `{name}` | {shown} | {field.description} |")
    return "\n".join(lines) + "\n"
