"""Candidates into results."""

from __future__ import annotations

import pytest

from perdure.search.found import Candidate
from perdure.search.rank import Ranked, Ranking, rank, rank_together, ranking_of, weights_of

FOUND = [
    Candidate(1, "a", cosine=0.9, words=0.0),
    Candidate(2, "b", cosine=0.6, words=0.8),
    Candidate(3, "c", cosine=-0.2, words=1.0),
    Candidate(4, "d", cosine=0.1, words=0.1),
]


def test_the_score_is_a_weighted_mean_and_results_stand_in_its_order() -> None:
    ranked = rank(FOUND, Ranking(0.5, 0.5), 10)
    assert [one.key for one in ranked] == [2, 3, 1, 4]
    assert [one.score for one in ranked] == pytest.approx([0.7, 0.5, 0.45, 0.1])


def test_without_a_ranker_meaning_alone_counts() -> None:
    assert [one.key for one in rank(FOUND, ranking_of("none"), 10)] == [1, 2, 4, 3]
    assert rank(FOUND, ranking_of("none"), 1)[0].score == pytest.approx(0.9)


@pytest.mark.parametrize("ranker", [None, "auto", "default-2024-11-15", "default_2024_08_21"])
def test_all_named_rankers_are_one(ranker: str | None) -> None:
    assert ranking_of(ranker) == Ranking()


def test_weights_are_scaled_and_go_before_the_ranker() -> None:
    assert ranking_of("none", 0.2, (1.0, 3.0)) == Ranking(0.25, 0.75, 0.2)
    assert ranking_of("auto", None, (0.0, 0.0)) == Ranking()
    assert weights_of({"embedding_weight": 1, "text_weight": 2.5}) == (1.0, 2.5)
    assert weights_of(None) is weights_of({}) is weights_of({"embedding_weight": "1", "text_weight": 1}) is None
    assert weights_of({"embedding_weight": -1, "text_weight": 1}) is None


def test_the_threshold_and_the_number_cut() -> None:
    assert [one.key for one in rank(FOUND, Ranking(0.5, 0.5, 0.5), 10)] == [2, 3]
    assert [one.key for one in rank(FOUND, Ranking(0.5, 0.5), 2)] == [2, 3]
    assert rank([Candidate(1, "a", 1.0000001, 1.0)], Ranking(threshold=1.0), 5)[0].score == 1.0


def test_equal_scores_keep_the_order_of_the_chunks() -> None:
    same = [Candidate(key, "f", 0.5, 0.5) for key in (9, 3, 7)]
    assert [one.key for one in rank(same, Ranking(), 3)] == [3, 7, 9]


def test_a_chunk_that_answers_two_questions_comes_once_with_its_best_score() -> None:
    first = [Ranked(1, "a", 0.9), Ranked(2, "b", 0.4)]
    second = [Ranked(2, "b", 0.8), Ranked(3, "c", 0.1)]
    assert rank_together([first, second], 2) == [Ranked(1, "a", 0.9), Ranked(2, "b", 0.8)]
    assert rank_together([], 5) == []
