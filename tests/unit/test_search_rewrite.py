"""Rewriting without a model."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.search.rewrite import MOST_QUESTIONS, rewrite


@pytest.mark.parametrize(
    ("asked", "searched"),
    [
        ("refund policy", ["refund policy"]),
        ("Hi! Could you please tell me about the refund policy?", ["the refund policy"]),
        ("What is the capital of France?", ["capital of France"]),
        ("How do I reset my password, please?", ["reset my password"]),
        ("Do you know if shipping is free? And, when will it arrive?", ["shipping is free", "when will it arrive"]),
        ("안녕하세요, 혹시 환불 정책에 대해 알려주세요.", ["환불 정책"]),
        ("환불이 궁금합니다. 그리고 배송비가 뭐예요?", ["환불", "배송비"]),
        ("비밀번호는 어떻게 바꾸나요?", ["비밀번호는 어떻게 바꾸나요"]),
        ("v1.2.3 release notes", ["v1.2.3 release notes"]),
        ("Thanks!", ["Thanks!"]),
        ("???", ["???"]),
        (" ", [" "]),
        ("refunds? refunds? refunds!", ["refunds"]),
    ],
)
def test_what_is_searched(asked: str, searched: list[str]) -> None:
    assert rewrite(asked) == searched


def test_a_text_is_no_list_of_questions() -> None:
    assert len(rewrite(" ".join(f"This is sentence {n}." for n in range(50)))) == 1
    long = "Why? " * 1000
    assert rewrite(long) == [long]


@settings(deadline=None)
@given(st.text(min_size=1, max_size=300))
def test_there_is_always_something_to_search_for(text: str) -> None:
    found = rewrite(text)
    assert 1 <= len(found) <= MOST_QUESTIONS
    assert all(found)
