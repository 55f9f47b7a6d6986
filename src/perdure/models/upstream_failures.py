"""What a model's refusal means for a run: its error code, and the text an operator can act on.

Rules. A text names the upstream and its URL, says what it said and what to check. The key never stands in a text.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from perdure.errors import RunErrorCode, RunFailure

QUOTE_CHARACTERS = 600
"""How much of an upstream's own words goes into `last_error`."""

_ABOUT_PROMPT = re.compile(
    r"context[ _-]?(length|window|size|limit)|n_ctx|maximum context|too (long|many tokens)|prompt|content|messages?\b",
    re.IGNORECASE,
)
_KEY_LIKE = re.compile(r"\b((sk|pk|rk)-|Bearer )[\w*.-]{6,}")


class UpstreamAddress(msgspec.Struct, frozen=True):
    """Who is meant in a text: the upstream's name and base URL, without user or password."""

    name: str
    url: str

    @property
    def described(self) -> str:
        """How a sentence calls it."""
        return f"upstream '{self.name}' ({self.url})"

    @property
    def url_setting(self) -> str:
        """The setting that holds its URL."""
        return "PERDURE_UPSTREAM_URL" if self.name == "default" else f"PERDURE_UPSTREAMS, '{self.name}', url"

    @property
    def key_setting(self) -> str:
        """The setting that holds its key."""
        return "PERDURE_UPSTREAM_KEY" if self.name == "default" else f"PERDURE_UPSTREAMS, '{self.name}', key"


def run_error_code(status: int, code: str | None, message: str) -> RunErrorCode:
    """Return the `last_error.code` for an upstream's HTTP status, error code and words."""
    if status == 429:  # noqa: PLR2004 - the status says it better than a name
        return "rate_limit_exceeded"
    if status in {400, 413, 422} and (code == "context_length_exceeded" or _ABOUT_PROMPT.search(message)):
        return "invalid_prompt"
    return "server_error"


class UpstreamError(msgspec.Struct, frozen=True):
    """What an upstream said in an error body, in whatever shape."""

    message: str
    code: str | None = None
    param: str | None = None


def read_error(body: bytes) -> UpstreamError:
    """Find the words in an error body: OpenAI's shape, FastAPI's `detail`, or just text."""
    try:
        value: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return UpstreamError(body.decode("utf-8", "replace").strip())
    if isinstance(value, list) and value:  # Google's compatible endpoint wraps its error in a list
        value = value[0]
    return error_of(value)


def error_of(value: Any) -> UpstreamError:
    """Find the words in a decoded error: `error` (object or text), `detail` or `message`, whatever there is."""
    inner = (value.get("error") or value) if isinstance(value, dict) else value
    if isinstance(inner, str):
        return UpstreamError(inner)
    if not isinstance(inner, dict):
        return UpstreamError(msgspec.json.encode(inner).decode())
    message = inner.get("message") or inner.get("detail") or inner
    text = message if isinstance(message, str) else msgspec.json.encode(message).decode()
    code, param = inner.get("code"), inner.get("param")
    return UpstreamError(text, None if code is None else str(code), param if isinstance(param, str) else None)


def quoted(message: str, key: str | None = None) -> str:
    """Return an upstream's words in one line, cut, with everything that looks like a key taken out."""
    text = message.replace(key, "[key]") if key else message
    text = _KEY_LIKE.sub("[key]", " ".join(text.split()))
    return text if len(text) <= QUOTE_CHARACTERS else text[:QUOTE_CHARACTERS] + " ..."


def refused(
    address: UpstreamAddress,
    status: int,
    error: UpstreamError,
    model: str,
    key: str | None,
    path: str = "/chat/completions",
) -> RunFailure:
    """Return the failure for an HTTP status of 400 and above. `path` is what was asked."""
    said = quoted(error.message, key) or "nothing more"
    who = address.described
    return RunFailure(
        {
            400: f"The {who} refused the request for model '{model}' with status 400: {said}",
            401: f"The {who} did not accept the key (status 401): {said} Check {address.key_setting}.",
            403: f"The {who} denied access to model '{model}' (status 403): {said} Check {address.key_setting}.",
            404: f"The {who} does not know model '{model}' or the path {path} (status 404): {said} "
            f"Check the model's name, PERDURE_MODEL_MAP, and {address.url_setting} (it usually ends in /v1).",
            429: f"The {who} limits its rate for model '{model}' (status 429): {said} Wait, or raise the limit there; "
            "PERDURE_UPSTREAM_RETRIES says how often a call is tried again.",
        }.get(status, f"The {who} failed for model '{model}' with status {status}: {said} Look into its log."),
        code=run_error_code(status, error.code, error.message),
    )


def unlisted(address: UpstreamAddress, status: int, error: UpstreamError, key: str | None) -> RunFailure:
    """Return the failure for a refused `GET /models`."""
    setting = address.key_setting if status in {401, 403} else address.url_setting
    said = quoted(error.message, key) or "nothing more"
    return RunFailure(f"The {address.described} does not list its models (status {status}): {said} Check {setting}.")


def unreachable(address: UpstreamAddress, why: str, key: str | None) -> RunFailure:
    """Return the failure for a connection that can not be made."""
    return RunFailure(
        f"The upstream '{address.name}' can not be reached at {address.url}: {quoted(why, key) or 'no connection'}. "
        f"Check {address.url_setting} and that the server runs."
    )


def silent(address: UpstreamAddress, seconds: float) -> RunFailure:
    """Return the failure for an upstream that sends nothing."""
    return RunFailure(
        f"The {address.described} sent nothing for {seconds:g} seconds. Check that it is not overloaded; "
        "PERDURE_UPSTREAM_SILENCE_SECONDS sets how long to wait."
    )


def broke_off(address: UpstreamAddress, why: str = "", key: str | None = None) -> RunFailure:
    """Return the failure for an answer that ends before its end."""
    because = f" ({quoted(why, key)})" if why else ""
    return RunFailure(
        f"The {address.described} broke off its answer{because}. Look into its log, or that of a proxy between."
    )


def unreadable(
    address: UpstreamAddress, body: bytes, key: str | None, expected: str = "a chat completion"
) -> RunFailure:
    """Return the failure for an answer that is not what was asked for."""
    said = quoted(body[:200].decode("utf-8", "replace"), key)
    return RunFailure(
        f"The {address.described} sent something that is not {expected}: {said!r} "
        f"Check that {address.url_setting} is the base URL of an OpenAI-compatible server (it usually ends in /v1)."
    )


def reported(address: UpstreamAddress, error: UpstreamError, key: str | None) -> RunFailure:
    """Return the failure for an error inside a stream, where no HTTP status can say what kind it is."""
    limited = error.code == "429" or "rate_limit" in f"{error.code} {error.message}"
    prompt = error.code in {"context_length_exceeded", "400"}
    status = 429 if limited else 400 if prompt else 500
    return RunFailure(
        f"The {address.described} reported an error in its answer: {quoted(error.message, key) or 'nothing more'}",
        code=run_error_code(status, error.code, error.message),
    )
