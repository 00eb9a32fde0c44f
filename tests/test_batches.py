"""Texts are tokenised one part ahead and scored in batches of like length."""

import threading

import pytest

from fintune.model.batches import by_length, encoded_ahead


def padded(batches, lengths):
    return sum(len(rows) * max(lengths[row] for row in rows) for rows in batches)


def test_every_row_is_in_one_batch_and_batches_are_full_or_even():
    lengths = [20 + 7 * row % 60 for row in range(500)]
    batches = list(by_length(lengths, 1024))
    assert sorted(row for rows in batches for row in rows) == list(range(500))
    assert all(len(rows) * max(lengths[row] for row in rows) <= 1024 for rows in batches)
    firsts = [lengths[rows[0]] for rows in batches]
    assert firsts == sorted(firsts, reverse=True)


def test_rows_of_many_lengths_are_not_padded_to_the_longest():
    lengths = list(range(10, 110)) * 3
    batches = list(by_length(lengths, 32768))  # all of them would fit into one
    assert padded(batches, lengths) < 1.2 * sum(lengths)  # 1.8 in one batch
    assert len(batches) < 10  # and they stay large


@pytest.mark.parametrize("lengths", [[], [0, 0], [5000], [5000, 3]])
def test_rows_longer_than_a_batch_and_empty_ones_have_their_place(lengths):
    assert sorted(row for rows in by_length(lengths, 100) for row in rows) == list(range(len(lengths)))


def test_the_next_part_is_encoded_while_one_is_scored(monkeypatch):
    monkeypatch.setattr("fintune.model.batches.AT_ONCE", 2)
    second = threading.Event()

    def encode(texts):
        if texts[0] == "c":
            second.set()
        return [text.upper() for text in texts]

    parts = encoded_ahead(list("abcde"), encode)
    assert next(parts) == (0, ["A", "B"])
    assert second.wait(10)  # though nobody has asked for it yet
    assert list(parts) == [(2, ["C", "D"]), (4, ["E"])]
    assert list(encoded_ahead([], encode)) == []


def test_an_error_in_encoding_reaches_the_caller(monkeypatch):
    monkeypatch.setattr("fintune.model.batches.AT_ONCE", 1)
    with pytest.raises(ZeroDivisionError):
        list(encoded_ahead([1, 0], lambda numbers: 1 // numbers[0]))
