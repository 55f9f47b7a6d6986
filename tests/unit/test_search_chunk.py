"""Passages into chunks, by the tokenizer that ships."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.models.cuts import TokenCuts
from perdure.search.chunk import Chunk, chunk_passages
from perdure.search.passages import Passage

CUTS = TokenCuts()
RANDOM = random.Random(5)  # noqa: S311  # the same texts each time
HEX = "".join(f"{RANDOM.getrandbits(64):x}" for _ in range(2000))
EMOJI = "".join(chr(RANDOM.randrange(0x1F300, 0x1F5FF)) for _ in range(5000))
ACCENTS = "".join(f"{chr(RANDOM.randrange(97, 123))}\u0301" for _ in range(9000))
LINES = "\n".join(f"{RANDOM.getrandbits(32):x}" for _ in range(6000))
PROSE = " ".join(f"Sentence number {n} says that refunds take {n} days." for n in range(2000))
KOREAN = " ".join(f"환불은 구매 후 {n}일 안에 신청하시면 됩니다." for n in range(1500))


def chunks(text: str, most: int = 200, overlap: int = 100) -> list[Chunk]:
    return chunk_passages([Passage(text)], most, overlap, CUTS)


class Letters:
    """A tokenizer for which a code point is a token: what is cut where can be foretold."""

    def count(self, texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    def truncate(self, text: str, max_tokens: int) -> str:
        return text[:max_tokens]


@pytest.mark.parametrize("text", [PROSE, KOREAN, HEX, EMOJI, ACCENTS, LINES])
@pytest.mark.parametrize(("most", "overlap"), [(100, 0), (200, 100), (800, 400)])
def test_no_chunk_is_over_its_size_and_nothing_is_lost(text: str, most: int, overlap: int) -> None:
    found = chunks(text, most, overlap)
    assert all(0 < chunk.tokens <= most for chunk in found)
    assert [chunk.tokens for chunk in found] == CUTS.count([chunk.text for chunk in found])
    at = 0
    for chunk in found:
        where = text.find(chunk.text, max(0, at - len(chunk.text)))
        assert where >= 0, "a chunk is a part of the text"
        assert not text[at:where].strip(), "nothing lies between two chunks"
        at = max(at, where + len(chunk.text))
    assert not text[at:].strip(), "nothing lies behind the last"


def test_neighbours_share_the_overlap() -> None:
    found = chunks(PROSE, 200, 80)
    for one, next_one in pairwise(found[:-1]):
        shared = next(one.text[at:] for at in range(len(one.text)) if next_one.text.startswith(one.text[at:]))
        assert 60 <= CUTS.count([shared])[0] <= 82


def test_without_overlap_nothing_is_said_twice() -> None:
    assert " ".join(chunk.text for chunk in chunks(PROSE, 200, 0)) == PROSE


def test_a_chunk_ends_where_a_sentence_ends() -> None:
    found = chunks(PROSE)
    assert all(chunk.text.endswith(".") for chunk in found)


def test_a_chunk_ends_where_a_paragraph_ends_if_one_does() -> None:
    text = "one two. three.\n\nfour. five " + "six " * 10
    assert chunk_passages([Passage(text)], 20, 0, Letters())[0].text == "one two. three."


def test_pages_are_never_mixed() -> None:
    pages = [Passage(f"Page {n}. " + "word " * (n * 60), n) for n in range(1, 6)]
    found = chunk_passages(pages, 100, 50, CUTS)
    assert {chunk.page for chunk in found} == {1, 2, 3, 4, 5}
    firsts = [next(chunk.text for chunk in found if chunk.page == n) for n in range(1, 6)]
    assert [text[:7] for text in firsts] == [f"Page {n}." for n in range(1, 6)]


def test_passages_without_pages_go_on_from_one_to_the_next() -> None:
    assert chunk_passages([Passage("one wo"), Passage("rd\n"), Passage("more")], 100, 0, CUTS) == [
        Chunk("one word\nmore", None, 4)
    ]


def test_letters_keep_their_accents_and_emoji_their_parts() -> None:
    for whole in ("e\u0301", "👩\u200d🚀", "👍🏽"):
        found = chunk_passages([Passage(whole * 50)], 7, 0, Letters())
        assert all(not len(chunk.text) % len(whole) for chunk in found)


def test_what_repeats_itself_ends_too() -> None:
    for text in ("x" * 300_000, " " * 300_000 + "x", "\u0301" * 20_000, "\u200d" * 20_000):
        assert all(0 < chunk.tokens <= 800 for chunk in chunks(text, 800, 400))


def test_nothing_gives_no_chunks() -> None:
    assert chunks("") == chunks(" \n\t ") == chunk_passages([], 100, 50, CUTS) == []
    assert chunks("\ud800 lone \x00 signs")[0].text == "? lone  signs"


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=2000), st.integers(1, 50), st.integers(0, 25))
def test_any_text_ends(text: str, most: int, overlap: int) -> None:
    overlap = min(overlap, most // 2)
    found = chunk_passages([Passage(text)], most, overlap, Letters())
    assert all(0 < chunk.tokens <= most for chunk in found)
    letters = [letter for letter in text if not letter.isspace() and letter != "\x00"]
    assert set("".join(letters)) - set("\ufffd") <= set("".join(chunk.text for chunk in found))
