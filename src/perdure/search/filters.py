"""Filters over the attributes of files: read once, then asked of each file.

Rules. A comparison with a file that lacks the attribute, or has it with another kind of value, holds for `ne` and `nin`
and for no other: those two are exactly what `eq` and `in` are not. Nothing else is ever an error but a filter that is
malformed, which is refused before the search.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from perdure.errors import ApiError, InvalidRequest
from perdure.wire.refusals import string_too_long, unsupported_value

Value = str | float | bool

MOST_DEPTH = 10
MOST_COMPARISONS = 256
MOST_VALUES = 256
KEY_CHARACTERS = 64
VALUE_CHARACTERS = 512

_ORDERED: dict[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt,
    "gte": operator.ge,
    "lt": operator.lt,
    "lte": operator.le,
}
_ONE = ("eq", "ne", *_ORDERED)
_MANY = ("in", "nin")
_COMPOUND = ("and", "or")
TYPES = [*_ONE, *_MANY, *_COMPOUND]


class Comparison(msgspec.Struct, frozen=True):
    """One attribute against a value, or against several for `in` and `nin`."""

    type: str
    key: str
    values: tuple[Value, ...]

    def matches(self, attributes: Mapping[str, Value]) -> bool:
        """Whether a file with these attributes passes."""
        own = attributes.get(self.key)
        if self.type in _ORDERED:
            return _alike(own, self.values[0]) and _ORDERED[self.type](own, self.values[0])
        found = any(_alike(own, value) and own == value for value in self.values)
        return found if self.type in {"eq", "in"} else not found


class Compound(msgspec.Struct, frozen=True):
    """Several filters: all must match, or one. Where there are none, `and` lets everything pass, `or` nothing."""

    type: str
    filters: tuple[Filter, ...]

    def matches(self, attributes: Mapping[str, Value]) -> bool:
        """Whether a file with these attributes passes."""
        each = (one.matches(attributes) for one in self.filters)
        return all(each) if self.type == "and" else any(each)


Filter = Comparison | Compound


def read_filter(value: Any, path: str = "filters") -> Filter:
    """Return the filter that a request's JSON holds at `path`. Raises InvalidRequest in the hosted server's manner."""
    return _Reading().read(value, path, 1)


class _Reading:
    """One filter being read: what it may still hold."""

    def __init__(self) -> None:
        self._left = MOST_COMPARISONS

    def read(self, value: Any, path: str, depth: int) -> Filter:
        if not isinstance(value, dict):
            raise _wrong_type(path, "an object", value)
        if depth > MOST_DEPTH:
            raise _invalid(f"Invalid '{path}': filters are nested too deeply. {MOST_DEPTH} levels are the most.", path)
        kind = _required(value, "type", path)
        if not isinstance(kind, str):
            raise _wrong_type(f"{path}.type", "a string", kind)
        if kind not in TYPES:
            raise unsupported_value(f"{path}.type", kind, TYPES)
        return self._compound(kind, value, path, depth) if kind in _COMPOUND else self._comparison(kind, value, path)

    def _compound(self, kind: str, value: dict[str, Any], path: str, depth: int) -> Compound:
        _only(value, {"type", "filters"}, path)
        filters = _required(value, "filters", path)
        if not isinstance(filters, list):
            raise _wrong_type(f"{path}.filters", "an array of objects", filters)
        inner = [self.read(one, f"{path}.filters[{index}]", depth + 1) for index, one in enumerate(filters)]
        return Compound(kind, tuple(inner))

    def _comparison(self, kind: str, value: dict[str, Any], path: str) -> Comparison:
        self._left -= 1
        if self._left < 0:
            raise _invalid(f"Invalid '{path}': too many comparisons. {MOST_COMPARISONS} are the most.", path)
        _only(value, {"type", "key", "value"}, path)
        key = _required(value, "key", path)
        if not isinstance(key, str):
            raise _wrong_type(f"{path}.key", "a string", key)
        if len(key) > KEY_CHARACTERS:
            raise string_too_long(f"{path}.key", key, KEY_CHARACTERS)
        given = _required(value, "value", path)
        if kind in _MANY:
            return Comparison(kind, key, _values(given, f"{path}.value"))
        return Comparison(kind, key, (_value(given, f"{path}.value", "one of a string or decimal or boolean"),))


def _values(given: Any, path: str) -> tuple[Value, ...]:
    if not isinstance(given, list):
        raise _wrong_type(path, "an array", given)
    if len(given) > MOST_VALUES:
        raise InvalidRequest(
            f"Invalid '{path}': array too long. Expected an array with maximum length {MOST_VALUES}, "
            f"but got an array with length {len(given)} instead.",
            param=path,
            code="array_above_max_length",
        )
    return tuple(
        _value(one, f"{path}[{index}]", "one of a string or decimal or boolean") for index, one in enumerate(given)
    )


def _value(given: Any, path: str, expected: str) -> Value:
    if not isinstance(given, str | int | float):
        raise _wrong_type(path, expected, given)
    if isinstance(given, str) and len(given) > VALUE_CHARACTERS:
        raise string_too_long(path, given, VALUE_CHARACTERS)
    if isinstance(given, float) and not math.isfinite(given):
        raise _invalid(f"Invalid '{path}': expected a finite number.", path)
    return given


def _alike(own: Any, value: Value) -> bool:
    """Whether two values are of one kind. True is no 1 here, although Python says so."""
    if isinstance(own, bool) or isinstance(value, bool):
        return isinstance(own, bool) and isinstance(value, bool)
    return isinstance(own, str) if isinstance(value, str) else isinstance(own, int | float)


def _required(value: dict[str, Any], name: str, path: str) -> Any:
    if name not in value:
        where = f"{path}.{name}"
        raise InvalidRequest(f"Missing required parameter: '{where}'.", param=where, code="missing_required_parameter")
    return value[name]


def _only(value: dict[str, Any], known: set[str], path: str) -> None:
    for name in value:
        if name not in known:
            where = f"{path}.{name}"
            raise InvalidRequest(f"Unknown parameter: '{where}'.", param=where, code="unknown_parameter")


def _wrong_type(path: str, expected: str, value: Any) -> ApiError:
    kinds = {bool: "a boolean", int: "an integer", float: "a decimal", str: "a string", list: "an array"}
    got = "null" if value is None else kinds.get(type(value), "an object")
    return InvalidRequest(
        f"Invalid type for '{path}': expected {expected}, but got {got} instead.", param=path, code="invalid_type"
    )


def _invalid(message: str, path: str) -> ApiError:
    return InvalidRequest(message, param=path, code="invalid_value")
