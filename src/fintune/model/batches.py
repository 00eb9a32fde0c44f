"""Texts to score in batches: tokenised one part ahead, and put together by length."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fintune.data.inputs import Input

AT_ONCE = 1024  # texts that are tokenised and sorted together: memory does not grow with their number
Encoded = TypeVar("Encoded")


def encoded_ahead(
    inputs: Sequence[Input], encode: Callable[[Sequence[Input]], Encoded]
) -> Iterator[tuple[int, Encoded]]:
    """(place of the first text, what `encode` makes of a part of them), part after part.

    While one part is scored, a thread encodes the next: the model waits for the first alone.
    """
    starts = range(0, len(inputs), AT_ONCE)
    with ThreadPoolExecutor(1, "tokenising") as thread:
        parts = [thread.submit(encode, inputs[start : start + AT_ONCE]) for start in starts[:1]]
        for start in starts:
            following = start + AT_ONCE
            encoded = parts.pop().result()
            if following < len(inputs):
                parts.append(thread.submit(encode, inputs[following : following + AT_ONCE]))
            yield start, encoded


def by_length(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Rows of like length together, longest first, so that memory runs out at once or never.

    A batch ends where it is full; from an eighth of that on also where a row would be a tenth padding or more.

    Args:
        lengths: tokens of each row.
        tokens: of a batch, padding included; a longer row is a batch of its own.

    Yields:
        Places in `lengths`, each once.
    """
    rows = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while rows:
        longest = max(1, lengths[rows[0]])
        fit = max(1, tokens // longest)
        full = min(len(rows), fit)
        uneven = (at for at in range(max(1, fit // 8), full) if lengths[rows[at]] <= 0.9 * longest)
        end = next(uneven, full)
        yield rows[:end]
        rows = rows[end:]
