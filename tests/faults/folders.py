"""Two runs that train into one folder at the same time."""

from pathlib import Path

from faults.shared import Fault, finish, outcome, reference, train


def two_at_once(fault: Fault) -> None:
    """The second is refused by name, and the first ends as if it had been alone."""
    expected = reference()
    for number in range(5):
        folder = Path(f"contended-{number}")
        both = [train(folder) for _ in range(2)]
        (first, _), (second, output) = sorted(map(finish, both))
        named = f"{folder}: another run is training into it" in output
        held = [first, second] == [0, 2] and named and outcome(folder) == expected
        fault.record(second != 0, held, output[-200:])
