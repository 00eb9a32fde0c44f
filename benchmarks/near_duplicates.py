"""Search near-duplicates among made-up texts, exactly and by the index: seconds, memory, and what the index misses.

.venv/bin/python benchmarks/near_duplicates.py 100000               # headlines of 11 words
.venv/bin/python benchmarks/near_duplicates.py 10000 --words 400
.venv/bin/python benchmarks/near_duplicates.py 1000000
.venv/bin/python benchmarks/near_duplicates.py --task data/topic.yaml      # the rows of a task

A tenth of the made-up texts repeat an earlier one with about a seventh of their words changed. Words are drawn by
Zipf's law from 50,000.
"""

import argparse
import resource
import time
from itertools import product
from pathlib import Path

import numpy as np

from fintune.data import near_duplicates
from fintune.data.load import load_data
from fintune.recipe.layers import read_task


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=int, nargs="?", default=100_000, help="how many are made up")
    parser.add_argument("--words", type=int, default=11)
    parser.add_argument("--task")
    args = parser.parse_args()
    if args.task:
        splits = load_data(read_task(Path(args.task))).splits
        texts = [text for rows in splits.values() for text in rows["text"]]
    else:
        texts = made_up(args.texts, args.words)
    print(f"{len(texts):,} texts, {sum(map(len, texts)) / 1e6:.1f} million characters")
    chosen = search(texts)
    other = search(texts, exact=not chosen.exact) if len(texts) <= 100_000 else None
    if other is not None:
        exact, index = (chosen, other) if chosen.exact else (other, chosen)
        alike = [len(set(found.clusters().tolist())) for found in (exact, index)]
        share = index.ends.shape[1] / max(1, exact.ends.shape[1])
        print(f"of the pairs the index finds {share:.2%}; clusters: {alike[0]:,}, by the index {alike[1]:,}")


def made_up(count: int, words: int) -> list[str]:
    rng = np.random.default_rng(0)
    names = np.array(["".join(letters) for letters in product("bcdfghjklmnpqrst", repeat=4)][:50_000])
    chances = 1 / np.arange(1, len(names) + 1)
    chances /= chances.sum()
    drawn = rng.choice(len(names), size=(count, words), p=chances)
    for row in rng.choice(np.arange(1, count), size=count // 10, replace=False):
        changed = rng.random(words) < 1 / 7
        drawn[row] = np.where(changed, rng.choice(len(names), size=words, p=chances), drawn[rng.integers(row)])
    return [" ".join(names[row]) for row in drawn]


def search(texts: list[str], exact: bool | None = None) -> near_duplicates.NearPairs:
    before = near_duplicates.EXACT
    if exact is not None:
        near_duplicates.EXACT = float("inf") if exact else -1
    started = time.perf_counter()
    found = near_duplicates.near_pairs(texts)
    clusters = len(set(found.clusters().tolist()))
    seconds, peak = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    near_duplicates.EXACT = before
    way = "exact" if found.exact else "index"
    chosen = "as chosen" if exact is None else "for comparison"
    print(
        f"{way}, {chosen}: {found.ends.shape[1]:,} pairs, {clusters:,} clusters, {seconds:.1f} s, {peak:.2f} GiB peak"
    )
    return found


if __name__ == "__main__":
    main()
