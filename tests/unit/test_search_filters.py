"""Filters over attributes: what they let through, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import ApiError, InvalidRequest
from perdure.search.filters import MOST_COMPARISONS, MOST_DEPTH, TYPES, read_filter

FILE: dict[str, str | float | bool] = {"year": 2024, "price": 9.5, "lang": "ko", "draft": False}

INNER = "filters.filters[1].filters[0].value"


def one(kind: str, key: str, value: Any) -> dict[str, Any]:
    return {"type": kind, "key": key, "value": value}


@pytest.mark.parametrize(
    ("given_filter", "passes"),
    [
        (one("eq", "year", 2024), True),
        (one("eq", "year", 2024.0), True),
        (one("eq", "year", "2024"), False),
        (one("ne", "year", "2024"), True),
        (one("ne", "year", 2024), False),
        (one("eq", "draft", False), True),
        (one("eq", "draft", 0), False),
        (one("eq", "missing", 1), False),
        (one("ne", "missing", 1), True),
        (one("gt", "price", 9), True),
        (one("gt", "price", 9.5), False),
        (one("gte", "price", 9.5), True),
        (one("lt", "price", 10), True),
        (one("lte", "price", 9.4), False),
        (one("gt", "lang", "ja"), True),
        (one("gt", "lang", 1), False),
        (one("lt", "missing", 1), False),
        (one("gt", "draft", -1), False),
        (one("in", "lang", ["en", "ko"]), True),
        (one("in", "year", ["2024", 2023]), False),
        (one("in", "lang", []), False),
        (one("nin", "lang", ["en", "ko"]), False),
        (one("nin", "lang", ["en"]), True),
        (one("nin", "missing", ["en"]), True),
        ({"type": "and", "filters": [one("eq", "lang", "ko"), one("gt", "year", 2020)]}, True),
        ({"type": "and", "filters": [one("eq", "lang", "ko"), one("gt", "year", 2024)]}, False),
        ({"type": "or", "filters": [one("eq", "lang", "en"), one("gt", "year", 2020)]}, True),
        ({"type": "or", "filters": [one("eq", "lang", "en"), {"type": "and", "filters": []}]}, True),
        ({"type": "or", "filters": []}, False),
    ],
)
def test_what_passes(given_filter: dict[str, Any], passes: bool) -> None:
    assert read_filter(given_filter).matches(FILE) is passes


@pytest.mark.parametrize(
    ("given_filter", "message", "param"),
    [
        ([], "Invalid type for 'filters': expected an object, but got an array instead.", "filters"),
        ({}, "Missing required parameter: 'filters.type'.", "filters.type"),
        (
            {"type": 3},
            "Invalid type for 'filters.type': expected a string, but got an integer instead.",
            "filters.type",
        ),
        (
            {"type": "like", "key": "a", "value": 1},
            f"Invalid value: 'like'. Supported values are: {', '.join(map(repr, TYPES[:-1]))}, and 'or'.",
            "filters.type",
        ),
        ({"type": "eq", "value": 1}, "Missing required parameter: 'filters.key'.", "filters.key"),
        ({"type": "eq", "key": "a"}, "Missing required parameter: 'filters.value'.", "filters.value"),
        ({"type": "and"}, "Missing required parameter: 'filters.filters'.", "filters.filters"),
        (
            one("eq", "a", None),
            "Invalid type for 'filters.value': expected one of a string or decimal or boolean, but got null instead.",
            "filters.value",
        ),
        (one("in", "a", 1), "Invalid type for 'filters.value': expected an array, but got an integer instead.", None),
        ({**one("eq", "a", 1), "x": 1}, "Unknown parameter: 'filters.x'.", "filters.x"),
        (
            {"type": "or", "filters": [one("eq", "a", 1), {"type": "and", "filters": [one("eq", "a", {})]}]},
            f"Invalid type for '{INNER}': expected one of a string or decimal or boolean, but got an object instead.",
            INNER,
        ),
    ],
)
def test_what_is_malformed_is_refused_in_words(given_filter: Any, message: str, param: str | None) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_filter(given_filter)
    assert caught.value.message == message
    assert param is None or caught.value.param == param


def test_depth_and_size_are_bounded() -> None:
    deep: dict[str, Any] = one("eq", "a", 1)
    for _ in range(MOST_DEPTH - 1):
        deep = {"type": "and", "filters": [deep]}
    assert read_filter(deep).matches({"a": 1})
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        read_filter({"type": "and", "filters": [deep]})
    many = {"type": "or", "filters": [one("eq", "a", 1)] * (MOST_COMPARISONS + 1)}
    with pytest.raises(InvalidRequest, match="too many comparisons"):
        read_filter(many)
    with pytest.raises(InvalidRequest, match="array too long"):
        read_filter(one("in", "a", [1] * 300))
    for too_long in (one("eq", "k" * 65, 1), one("eq", "a", "v" * 513)):
        with pytest.raises(InvalidRequest, match="string too long"):
            read_filter(too_long)


def test_negations_are_exactly_that() -> None:
    for value in (1, 2024, "ko", True, 9.5):
        for key in ("year", "lang", "draft", "missing"):
            same, other = read_filter(one("eq", key, value)), read_filter(one("ne", key, value))
            assert same.matches(FILE) is not other.matches(FILE)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "key", "value", "filters"]), inner, max_size=4)
        | st.fixed_dictionaries({"type": st.sampled_from(TYPES), "key": st.just("year"), "value": inner})
        | st.fixed_dictionaries({"type": st.sampled_from(["and", "or"]), "filters": st.lists(inner, max_size=3)})
    ),
    max_leaves=12,
)


@given(_json)
def test_any_json_is_a_filter_or_a_refusal(value: Any) -> None:
    try:
        found = read_filter(value)
    except ApiError as error:
        found = None
        refused_at = error.param
    assert found.matches(FILE) in {True, False} if found else refused_at
