"""Words into terms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.search.terms import hashes_of, pack_terms, term_hash, terms_of, unpack_terms


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("환불", "환불은 구매 후 14일 안에 됩니다."),
        ("배송비", "5만 원부터는 배송비가 무료입니다"),
        ("東京", "昨日東京都に行きました。"),
        ("退款", "您可以在十四天内申请退款。"),
        ("返品", "商品の返品はできません"),
        ("カタカナ", "これはｶﾀｶﾅです"),
        ("cafe\u0301", "Un CAFÉ, s'il vous plaît"),
        ("queries", "one query"),
        ("HTTP", "getHTTPResponse()"),
        ("response", "getHTTPResponse()"),
        ("gethttpresponse", "getHTTPResponse()"),
        ("snake_case", "the snake_case name"),
        ("case", "the snake_case name"),
        ("3", "version v3"),
        ("STRASSE", "Straße"),
        ("full", "\uff26\uff35\uff2c\uff2c width"),
    ],
)
def test_a_word_is_found_in_a_sentence(word: str, sentence: str) -> None:
    assert set(terms_of(word)) & set(terms_of(sentence))
    if len(terms_of(word)) > 1:
        assert set(terms_of(word)) <= set(terms_of(sentence))


def test_cjk_is_cut_into_pairs() -> None:
    assert terms_of("환불은") == ["환불", "불은"]
    assert terms_of("물") == ["물"]
    assert terms_of("API를 쓴다") == ["api", "를", "쓴다"]


def test_what_is_no_word_is_no_term() -> None:
    assert terms_of("") == []
    assert terms_of("… !? --- ___ 🙂") == []


def test_hashes_never_change() -> None:
    # Stores hold them: another hash would make every store of today unsearchable.
    assert term_hash("refund") == 0x5B2C1458
    assert term_hash("환불") == 0x4BB118B8
    assert hashes_of(["b", "a", "b"]) == [term_hash("b"), term_hash("a")]


@given(st.text(max_size=400))
def test_packing_keeps_all_terms_and_counts(text: str) -> None:
    packed = pack_terms(text)
    counts = unpack_terms(packed)
    assert len(packed) == 5 * len(counts)
    assert list(counts) == sorted(set(map(term_hash, terms_of(text))))
    assert sum(counts.values()) == len(terms_of(text))


def test_a_word_that_fills_a_chunk_counts_255_times() -> None:
    assert unpack_terms(pack_terms("word " * 1000)) == {term_hash("word"): 255}


def test_a_word_without_end_is_cut() -> None:
    assert all(len(term) <= 64 for term in terms_of("x" * 100_000 + " " + "aB" * 50_000))
