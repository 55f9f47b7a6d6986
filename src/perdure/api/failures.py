"""Failures as clients see them: the only place that makes OpenAI's error shape."""

from __future__ import annotations

import re
from typing import Any

import msgspec
from starlette.responses import Response

from perdure.errors import ApiError, MethodNotAllowed

_WITH_TWIN = re.compile(r"(/v1|/openai/v1|/openai)/(files|uploads)(/|$)")


def error_body(failure: ApiError) -> dict[str, Any]:
    """Return the `error` object; all four keys are always there."""
    return {"message": failure.message, "type": failure.type, "param": failure.param, "code": failure.code}


def failure_response(failure: ApiError, path: str = "") -> Response:
    """Return the answer to a refused call. On files and uploads it has a twin, `detail` [recorded]."""
    headers = {"retry-after": "1"} if failure.status == 503 else {}  # noqa: PLR2004
    if isinstance(failure, MethodNotAllowed):
        headers["allow"] = ", ".join(failure.allowed)
    body: dict[str, Any] = {"error": error_body(failure)}
    if _WITH_TWIN.match(path):
        body["detail"] = {"message": failure.message, "code": failure.code}
    return Response(msgspec.json.encode(body), failure.status, headers, media_type="application/json")


class RangeNotSatisfiable(ApiError):
    """416: the range lies beyond the file's end."""

    status = 416


class ServerFault(ApiError):
    """A bug of ours. The text is recorded; the request id finds the traceback in the log."""

    status = 500
    type = "server_error"

    def __init__(self, request_id: str) -> None:
        super().__init__(
            "The server had an error processing your request. Sorry about that! You can retry your request, or "
            "contact us through our help center at help.openai.com if you keep seeing this error. "
            f"(Please include the request ID {request_id} in your email.)"
        )


def error_event(failure: ApiError) -> bytes:
    """Return the data of an `error` event.

    Measured: python's `create(stream=True)` wants the nested error to raise, node takes either, so both are there.
    """
    flat = error_body(failure)
    return msgspec.json.encode({"error": flat, **flat})
