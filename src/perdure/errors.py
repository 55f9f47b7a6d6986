"""Every failure that somebody outside can see.

    Exception
     |-- ApiError               a client sees it: status, message, type, param, code
     |    |-- InvalidRequest    400  the request is wrong; the text says how
     |    |-- Unauthenticated   401  no key, or a key that we do not know
     |    |-- NotFound          404  no such object in the key's project
     |    |-- MethodNotAllowed  405  the path exists, the method does not
     |    |-- RequestTimeout    408  the body did not arrive in time
     |    |-- BodyTooLarge      413  over PERDURE_BODY_LIMIT_BYTES, or a limit of files
     |    `-- Unavailable       503  we are at fault and a retry may help (disk full, database away)
     |-- RunFailure             a run ends `failed` with `last_error`; raised by models and tools
     `-- OperatorError          the operator sees one line on stderr that says what to do

Anything else that is raised is a bug: 500 with a request id, `server_error` on a run, a traceback in the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

RunErrorCode = Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]


class ApiError(Exception):
    """A refusal that the client sees in OpenAI's error shape.

    `message` is matched by programs in the wild: keep recorded texts byte for byte.
    """

    status: ClassVar[int] = 400
    type: ClassVar[str] = "invalid_request_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class InvalidRequest(ApiError):
    """400: the request is wrong."""


class Unauthenticated(ApiError):
    """401: no key, or an unknown one."""

    status = 401


class NotFound(ApiError):
    """404: no such object in this project."""

    status = 404


class MethodNotAllowed(ApiError):
    """405: known path, unknown method. `allowed` are the methods that the path takes."""

    status = 405

    def __init__(self, method: str, path: str, allowed: Iterable[str]) -> None:
        self.allowed = sorted(allowed)
        super().__init__(
            f"Not allowed to {method} on {path} (HINT: Perhaps you meant to make a different kind of request? It takes "
            f"{', '.join(self.allowed)}.)",
            code="method_not_supported",
        )


class RequestTimeout(ApiError):
    """408: the body did not arrive in time. Official clients retry it."""

    status = 408


class BodyTooLarge(ApiError):
    """413: the body is over the configured limit."""

    status = 413


class Unavailable(ApiError):
    """503: our fault, and nothing was stored. Official clients retry it."""

    status = 503
    type = "server_error"


class RunFailure(Exception):
    """The run ends `failed`; `code` and `message` become its `last_error`.

    The message is for an operator: it names what failed (the upstream, say) and what to check.
    """

    def __init__(self, message: str, *, code: RunErrorCode = "server_error") -> None:
        super().__init__(message)
        self.message = message
        self.code: RunErrorCode = code


class OperatorError(Exception):
    """A mistake in settings or surroundings. Printed as one line; the process exits with status 2."""
