"""Where a text that is too long is cut, and the windows that it is read in: only its beginning is ever tokenised."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from fintune.data.inputs import Input, as_input, columns_of, text_of

CHARACTERS = 8  # of a beginning for each token that is needed; a token of English has 4 or 5
UNSURE = 16  # tokens at the end of a beginning that what follows may change
Item = TypeVar("Item")


class Encoder(Protocol):
    """What `windows` needs of an encoder; see `fintune.scoring.scorer.Encoder`."""

    def is_cut(self, given: Input) -> bool: ...

    def bounds(self, given: Input) -> list[int]: ...


def beginning(text: str, count: int, read: Callable[[str], list[Item]]) -> tuple[str, list[Item]]:
    """A beginning of a text that has the same first `count` tokens as all of it, and these; all where it has fewer.

    A beginning is read, and one twice as long, until both agree on these tokens and the shorter has more of them, so
    that neither a word that goes on nor a merge behind them can change them.

    Args:
        read: text -> its tokens, as their ids or the characters at which they begin.
    """
    size = CHARACTERS * count
    found = read(text[:size])
    while size < len(text):
        longer = read(text[: 2 * size])
        if len(found) >= count + UNSURE and found[:count] == longer[:count]:
            break
        size, found = 2 * size, longer
    return text[:size], found[:count]


def most(limit: int, guess: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `limit` that fits, where all below it do and none above; 0 where none does."""
    low, high, guess = 0, limit + 1, min(guess, limit)
    while high - low > 1:
        near = (at for at in (guess, guess + 1, guess - 1, guess + 2, guess - 2) if low < at < high)
        at = next(near, (low + high) // 2)
        low, high = (at, high) if fits(at) else (low, at)
    return low


def windows(encoder: Encoder, given: Input) -> list[Input]:
    """A text in overlapping parts that fit, each with the columns; where it fits whole, as it is.

    Each begins at three quarters of the tokens of the one before; the last ends with the text.
    """
    if not encoder.is_cut(given):
        return [given]
    text, columns, parts = text_of(given).strip(), columns_of(given), []
    while text:
        *starts, end = encoder.bounds(as_input(text, columns))
        end = end or 1  # of a single character that has more tokens than there is room for
        parts.append(as_input(text[:end], columns))
        if end == len(text):
            break
        text = text[max(1, starts[len(starts) * 3 // 4] if starts else end) :].lstrip()
    return parts
