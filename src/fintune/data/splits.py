"""How rows are split so that near-duplicates stay on one side, unless they would take a class with them."""

import hashlib
import math
from collections import Counter

import numpy as np

from fintune.data.near_duplicates import NearPairs, near_pairs
from fintune.data.same_text import normalise, words_of
from fintune.recipe.task import Task

CUTS = (0.7, 0.8, 0.9)  # overlaps at which a cluster that takes too much is cut, one after the other


def mark_clusters(rows: list[dict], pairs: NearPairs, shares: list[float]) -> None:
    """Give each row its `chain`, equal for near-duplicates, and its `cluster`, the part of it that stays together."""
    chains = pairs.clusters()
    for row, chain, cluster in zip(rows, chains.tolist(), cut(rows, chains, shares).tolist(), strict=True):
        row["chain"], row["cluster"] = chain, cluster


def cut(rows: list[dict], clusters: np.ndarray, shares: list[float]) -> np.ndarray:
    """(rows,) group of each: its cluster, or a part of it where whole clusters would leave a class out of a split.

    Headlines of one template chain into one cluster. A cluster of more than twice a split's share of a class fits
    into no split, so it is trained on. Where the class's other rows are too few for the splits, its large clusters
    are cut: into those of a higher overlap, in the end into texts that are equal once normalised.

    Args:
        clusters: (rows,) of `NearPairs.clusters`.
        shares: of the rows, for each split that is to be taken from them.
    """
    groups, labels = clusters.astype(np.int64), np.array([row["label"] for row in rows])
    most, needed = 2 * min(shares, default=1), sum(shares)
    texts = [row["text"] for row in rows]
    for overlap in (*CUTS, None):
        size, large = np.bincount(groups)[groups], np.zeros(len(rows), dtype=bool)
        for label, count in Counter(labels.tolist()).items():
            own = labels == label
            fits = own & (size <= most * count)
            if fits.sum() < needed * count:
                large |= np.isin(groups, groups[own & ~fits])
        for group in np.unique(groups[large]):
            at = np.flatnonzero(groups == group)
            inside = [texts[row] for row in at]
            if overlap:
                parts = near_pairs(inside, overlap).clusters()
            else:
                parts = np.unique([normalise(text) for text in inside], return_inverse=True)[1]
            groups[at] = groups.max() + 1 + parts
    return groups


def split_rows(task: Task, rows: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Split what the files do not: stratified by class, whole clusters of near-duplicates, ordered by hash.

    A cluster's place depends on its own text and the seed alone, so adding rows moves only clusters at a border.
    Columns count for nothing here: a headline about two companies is one piece of news, whose rows stay together.

    Args:
        rows: split (or `all`) -> rows with `text` and `label`; each row gains what `mark_clusters` gives it.
    """
    everything = [row for split in rows.values() for row in split]
    pairs = near_pairs([row["text"] for row in everything])
    shares = {split: task.split[split] for split in ("validation", "test") if split not in rows}
    mark_clusters(everything, pairs, list(shares.values()))

    rows = dict(rows)
    whole = "all" if "all" in rows else "train"
    start = sum(len(rows[split]) for split in list(rows)[: list(rows).index(whole)])
    pool = rows.pop(whole)
    inside = pairs.within(start, start + len(pool)).clusters()  # test rows link no training rows
    members: dict[int, list[dict]] = {}
    for row, group in zip(pool, cut(pool, inside, list(shares.values())), strict=True):
        members.setdefault(int(group), []).append(row)

    def place(group: list[dict]) -> tuple[str, str]:
        first = min((words_of(row["text"]), normalise(row["text"])) for row in group)
        return hashlib.sha256(f"{task.split['seed']} {first[0]}".encode()).hexdigest(), first[1]

    wanted = {
        (label, split): share * count
        for label, count in Counter(row["label"] for row in pool).items()
        for split, share in shares.items()
    }
    parts = {split: [] for split in ("train", *shares)}
    for group in sorted(members.values(), key=place):
        label = Counter(row["label"] for row in group).most_common(1)[0][0]
        split = next((split for split in shares if wanted[label, split] >= len(group) / 2), "train")
        if split != "train":
            for row in group:
                wanted[row["label"], split] -= 1
        parts[split] += group
    order = {id(row): index for index, row in enumerate(pool)}
    for split, part in parts.items():
        rows[split] = sorted(part, key=lambda row: order[id(row)])
    return rows


def share_rows(rows: list[dict], share: float) -> list[dict]:
    """That share of each class's rows, at least one, chosen by hash: a smaller share lies within a larger one."""
    if share == 1:
        return rows
    place = {id(row): hashlib.sha256(row["text"].encode()).hexdigest() for row in rows}
    left = {label: math.ceil(share * count) for label, count in Counter(row["label"] for row in rows).items()}
    kept = set()
    for row in sorted(rows, key=lambda row: place[id(row)]):
        if left[row["label"]]:
            left[row["label"]] -= 1
            kept.add(id(row))
    return [row for row in rows if id(row) in kept]
