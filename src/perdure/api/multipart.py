"""Bodies of `multipart/form-data`: a file and a few fields, in any order, the file straight into the blob store.

Rules. Nothing is held in memory but the piece at hand and the fields, which are small. What is refused, and a client
that hangs up, leaves nothing behind. Names are taken in every spelling that clients were seen to send.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from typing import Any, Final, Generic, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from perdure.api.call import BodyStream, Call
from perdure.blobs import WrittenBlob, drop, new_blob_name
from perdure.errors import BodyTooLarge, InvalidRequest, RequestTimeout
from perdure.wire.files import plain_name
from perdure.wire.kinds import Body
from perdure.wire.refusals import decode_body, missing_parameter

F = TypeVar("F", bound=Body)

MOST_HEADER_BYTES = 64 * 1024
MOST_HEADERS = 16
MOST_FIELDS = 16
MOST_FIELD_BYTES = 8 * 1024
MOST_AROUND_BYTES = 1024 * 1024
"""What a body may declare beyond its file."""
CUT_OFF = "The multipart body of your request ends before its closing boundary."
PART_ENDS: Final = "part ends"
ALL_ENDS: Final = "all ends"

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what is wrong with a body is told to its client

_PARAMETER = re.compile(r';\s*([!#$%&*+.^_`|~\w-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)', re.DOTALL)
_INDEXED = re.compile(r"(\w+)\[(\w+)\]")


class Form(msgspec.Struct, Generic[F], frozen=True):
    """What came: the fields, and the file where it is now, under a harmless name."""

    fields: F
    blob: WrittenBlob
    filename: str


class Sought(msgspec.Struct, Generic[F], frozen=True):
    """What a body shall have: a file under the name `file`, at most `limit` bytes, and the fields of a struct.

    `setting` is what an operator changes to raise the limit; `check` may refuse a field as soon as it is there.
    """

    file: str
    fields: type[F]
    limit: int
    setting: str | None = None
    check: Callable[[str, str], None] = lambda _name, _value: None


async def read_form(call: Call[BodyStream], sought: Sought[F]) -> Form[F]:
    """Read a body. Raises InvalidRequest, BodyTooLarge, RequestTimeout and ClientGone; then no blob is left."""
    _refuse_declared(call, sought)
    reader = _Reader(call.body.pieces, _boundary(call.headers.get("content-type", ""), sought.file))
    intake = _Intake(call, sought)
    try:
        await intake.take(reader)
        return intake.form()
    except BaseException:
        if intake.blob is not None:
            await drop(call.context.blobs, [intake.blob.name])
        raise


def _refuse_declared(call: Call[BodyStream], sought: Sought[F]) -> None:
    declared = call.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > sought.limit + MOST_AROUND_BYTES:
        raise _too_large(sought)


def _too_large(sought: Sought[F]) -> BodyTooLarge:
    limit = f" The limit is the server's setting {sought.setting}." if sought.setting else ""
    return BodyTooLarge(f"'{sought.file}' is over {sought.limit} bytes.{limit}", code="request_too_large")


def _boundary(content_type: str, file: str) -> bytes:
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        shown = content_type[:200] or "none"
        raise InvalidRequest(
            f"The body must be multipart/form-data with a boundary and a part '{file}', but its content type is "
            f"'{shown}'. (HINT: `curl -F {file}=@PATH`; JSON can not carry a file.)",
            code="invalid_content_type",
        )
    return boundary


class _Intake(Generic[F]):
    """Takes the parts of one body."""

    def __init__(self, call: Call[BodyStream], sought: Sought[F]) -> None:
        self._call = call
        self._sought = sought
        self.fields: dict[str, Any] = {}
        self.blob: WrittenBlob | None = None
        self.filename = ""

    async def take(self, reader: _Reader) -> None:
        """Take all parts. After the file the rest must come soon: its blob has no row yet."""
        seconds = self._call.context.settings.body_timeout_seconds
        try:
            async with asyncio.timeout(None) as rest:
                async for part in reader.parts():
                    if part.name == self._sought.file:
                        await self._take_file(part)
                        rest.reschedule(asyncio.get_running_loop().time() + seconds)
                    else:
                        self._put(part.name, await _text_of(part))
        except TimeoutError:
            raise RequestTimeout(f"The end of your request did not arrive within {seconds:g} seconds.") from None

    async def _take_file(self, part: Part) -> None:
        if self.blob is not None:
            raise InvalidRequest(f"'{part.name}' was sent twice: send one file a request.", param=part.name)
        self.filename = plain_name(part.filename)
        blobs = self._call.context.blobs
        self.blob = await blobs.write(new_blob_name(self._call.context.ids), self._limited(part.data))

    async def _limited(self, data: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
        size = 0
        async for piece in data:
            size += len(piece)
            if size > self._sought.limit:
                raise _too_large(self._sought)
            yield piece

    def _put(self, name: str, value: str) -> None:
        """Keep a field; `a[b]` is `b` within `a`, and a number stands in text."""
        matched = _INDEXED.fullmatch(name)
        outer, inner = matched.groups() if matched else (name, None)
        within = {} if inner is None else self.fields.setdefault(outer, {})
        if outer not in self._sought.fields.__struct_fields__ or not isinstance(within, dict):
            raise InvalidRequest(f"Unknown parameter: '{name[:200]}'.", param=name[:200], code="unknown_parameter")
        self._sought.check(name, value)
        if inner is None:
            self.fields[outer] = value
        elif len(within) < MOST_FIELDS:
            within[inner] = int(value) if re.fullmatch("-?[0-9]{1,15}", value) else value

    def form(self) -> Form[F]:
        """Return what came. Raises InvalidRequest for what is wrong in the fields, then for a missing file."""
        fields = decode_body(msgspec.json.Decoder(self._sought.fields), msgspec.json.encode(self.fields))
        if self.blob is None:
            raise missing_parameter(self._sought.file)
        return Form(fields, self.blob, self.filename)


# -- parts


class Part(msgspec.Struct, frozen=True):
    """One part of a body: its head, and its data as they arrive. A field has no file name."""

    name: str
    filename: str
    data: AsyncIterator[bytes]


async def _text_of(part: Part) -> str:
    pieces, size = [], 0
    async for piece in part.data:
        pieces.append(piece)
        size += len(piece)
        if size > MOST_FIELD_BYTES:
            name = part.name[:200]
            raise InvalidRequest(f"'{name}' is over {MOST_FIELD_BYTES} bytes.", param=name)
    return b"".join(pieces).decode(errors="replace")


class _Reader:
    """Turns pieces of a body into parts. The parser calls us back; what it says waits in line until it is asked for."""

    def __init__(self, pieces: AsyncIterator[bytes], boundary: bytes) -> None:
        self._pieces = pieces
        self._line: deque[bytes | str | dict[str, bytes]] = deque()
        self._headers: dict[str, bytes] = {}
        self._field, self._value = b"", b""
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._add_to_field,
                    "on_header_value": self._add_to_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_data,
                    "on_part_end": lambda: self._line.append(PART_ENDS),
                    "on_end": lambda: self._line.append(ALL_ENDS),
                },
                max_header_count=MOST_HEADERS,
                max_header_size=MOST_HEADER_BYTES,
            )
        except FormParserError as error:
            raise _malformed(error) from None

    async def parts(self) -> AsyncGenerator[Part]:
        """Give the parts, one after the other; a part's data are to be read before the next. Raises InvalidRequest."""
        while (said := await self._next()) != ALL_ENDS:
            assert isinstance(said, dict)  # noqa: S101  # a part begins with its headers
            disposition = said.get("content-disposition", b"")
            part = Part(*_names_in(disposition), self._data())
            yield part
            async for _ in part.data:
                pass
        async for _ in self._pieces:
            pass  # what stands behind the last boundary

    async def _data(self) -> AsyncGenerator[bytes]:
        while (said := await self._next()) != PART_ENDS:
            assert isinstance(said, bytes)  # noqa: S101  # nothing else comes before a part's end
            yield said

    async def _next(self) -> bytes | str | dict[str, bytes]:
        while not self._line:
            try:
                self._parser.write(await anext(self._pieces))
            except StopAsyncIteration:
                raise InvalidRequest(CUT_OFF) from None
            except FormParserError as error:
                raise _malformed(error) from None
        return self._line.popleft()

    def _begin(self) -> None:
        self._headers = {}

    def _add_to_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._field.decode("latin-1").lower()] = self._value
        self._field, self._value = b"", b""

    def _end_headers(self) -> None:
        self._line.append(self._headers)

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._line.append(data[start:end])


def _malformed(error: FormParserError) -> InvalidRequest:
    return InvalidRequest(f"The multipart body of your request can not be read: {error}.")


# -- names


def _names_in(disposition: bytes) -> tuple[str, str]:
    """Return the part's name and its file name out of `form-data; name="file"; filename="a.txt"`."""
    found = {name.lower(): value.strip() for name, value in _PARAMETER.findall(disposition.decode("latin-1"))}
    extended = found.get("filename*")
    filename = _from_extended(_unquoted(extended)) if extended is not None else None
    if filename is None:
        filename = _from_encoded_words(_in_any_encoding(_unquoted(found.get("filename", ""))))
    return _in_any_encoding(_unquoted(found.get("name", ""))), filename


def _unquoted(value: str) -> str:
    """Return what stands between quotes. Browsers and httpx write `%22` for a quote, others a backslash before it."""
    if len(value) > 1 and value[0] == value[-1] == '"':
        value = re.sub(r'\\(["\\])', r"\1", value[1:-1])
    return value.replace("%22", '"')


def _in_any_encoding(value: str) -> str:
    """Read bytes (here in latin-1) as what they most likely are: UTF-8, Korean Windows' (curl there), or latin-1.

    EUC-KR takes no ASCII within its pairs, so western names are not mistaken for it.
    """
    raw = value.encode("latin-1")
    for encoding in ("utf-8", "euc_kr"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return value


def _from_extended(value: str) -> str | None:
    """Read `UTF-8''%ED%95%9C.txt` (RFC 5987, which urllib3 before 2 sent)."""
    encoding, _, rest = value.partition("'")
    try:
        return unquote_to_bytes(rest.partition("'")[2]).decode(encoding or "utf-8")
    except (LookupError, UnicodeDecodeError):
        return None


def _from_encoded_words(value: str) -> str:
    """Read `=?UTF-8?B?7ZWc?=` (RFC 2047, which mail libraries send)."""
    if not (value.startswith("=?") and value.endswith("?=")):
        return value
    try:
        return str(make_header(decode_header(value)))
    except (HeaderParseError, LookupError, UnicodeDecodeError, ValueError):
        return value
