"""Headlines made up in four uneven classes, as people bring them: `python benchmarks/few_rows.py 300 > news.csv`.

Words tell the classes apart, so TF-IDF gets nearly all of them right; see docs/method.md, "Few rows".
"""

import csv
import random
import sys

COMPANIES = ["Alder", "Birch", "Cedar", "Elm", "Fir", "Hazel", "Larch", "Maple", "Oak", "Pine", "Rowan", "Willow"]
COMPANIES += ["Aspen", "Beech", "Holly", "Juniper"]
KINDS = ["plc", "Group", "Bank", "Energy", "Foods", "Steel", "Motors", "Pharma", ""]
ENDS = [
    "on Monday",
    "for the third year",
    "in a filing",
    "after the close",
    "says a source",
    "in May",
    "this quarter",
    "",
]
CLASSES = {  # label -> its share of the rows, what a company does, to what
    "payout": (
        0.5,
        ["raises", "cuts", "suspends", "confirms", "doubles"],
        [
            "its dividend to {n} cents a share",
            "the interim dividend",
            "its share buyback of ${n}m",
            "the payout ratio to {n} percent",
            "its special dividend",
        ],
    ),
    "deal": (
        0.27,
        ["agrees to buy", "sells", "bids ${n}m for", "merges with", "walks away from"],
        [
            "a rival in Norway",
            "its packaging unit",
            "a stake of {n} percent in a supplier",
            "the port operator",
            "a software maker",
        ],
    ),
    "people": (
        0.15,
        ["names", "loses", "appoints", "dismisses", "searches for"],
        [
            "a new chief executive",
            "its finance director",
            "a chairman from outside",
            "the head of trading",
            "{n} board members",
        ],
    ),
    "court": (
        0.08,
        ["is sued over", "settles", "is fined ${n}m for", "appeals", "is cleared of"],
        ["price fixing", "a patent claim", "late disclosure", "misleading investors", "an antitrust case"],
    ),
}


def made_up(rows: int, seed: int = 0) -> list[tuple[str, str]]:
    """(headline, label), half of them of the commonest label and 8 % of the rarest."""
    draw, found = random.Random(seed), []
    for label, (share, does, what) in CLASSES.items():
        for _ in range(round(share * rows)):
            words = [draw.choice(part) for part in (COMPANIES, KINDS, does, what, ENDS)]
            headline = " ".join(words).format(n=draw.randint(2, 99))
            found.append((" ".join(headline.split()), label))
    draw.shuffle(found)
    return found


if __name__ == "__main__":
    csv.writer(sys.stdout).writerows([("title", "tone"), *made_up(int(sys.argv[1]))])
