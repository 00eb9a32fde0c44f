"""When two texts are the same, and how rows are split so that near-duplicates stay on one side."""

import hashlib
import math
import re
from collections import Counter

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.feature_extraction.text import CountVectorizer

from fintune.recipe.task import Task

URL = re.compile(r"https?://\S+|www\.\S+")
NOT_WORD = re.compile(r"[\W_]+")
DIGITS = re.compile(r"\d+")
BLOCK = 2000  # texts that are compared with all others at a time
THRESHOLD = 0.6  # Jaccard overlap of word pairs from which on two texts are near-duplicates


def normalise(text: str) -> str:
    """Lower case, without URLs and punctuation: two texts that differ only there are the same news."""
    return " ".join(NOT_WORD.sub(" ", URL.sub(" ", text.lower())).split())


def near_pairs(
    texts: list[str], threshold: float = THRESHOLD, mask_digits: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Index pairs of texts whose word pairs overlap by `threshold` or more (Jaccard), each text with itself too.

    Exact, by a sparse product in blocks, about a second for 20,000 texts.

    Args:
        mask_digits: all numbers are alike, since the same sentence about another quarter is no new evidence.
    """
    plain = [DIGITS.sub("0", normalise(text)) if mask_digits else normalise(text) for text in texts]
    marked = [f"^ {text} $" for text in plain]
    words = CountVectorizer(binary=True, ngram_range=(2, 2), token_pattern=r"\S+", lowercase=False, dtype=np.int32)
    features = words.fit_transform(marked)
    size = np.asarray(features.sum(axis=1)).ravel()
    columns, found = features.T.tocsr(), []
    for start in range(0, len(texts), BLOCK):
        shared = (features[start : start + BLOCK] @ columns).tocoo()
        rows = shared.row + start
        near = shared.data >= threshold * (size[rows] + size[shared.col] - shared.data)
        found.append((rows[near], shared.col[near]))
    rows, others = (np.concatenate(part) for part in zip(*found, strict=True))
    return rows, others


def clusters(pairs: tuple[np.ndarray, np.ndarray], size: int) -> np.ndarray:
    """(size,) cluster id of each text; near-duplicates, and near-duplicates of those, share a cluster."""
    graph = coo_array((np.ones(len(pairs[0]), dtype=bool), pairs), shape=(size, size))
    return connected_components(graph, directed=False)[1]


def split_rows(task: Task, rows: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Split what the files do not: stratified by class, whole clusters of near-duplicates, ordered by hash.

    A cluster's place depends on its own text and the seed alone, so adding rows moves only clusters at a border.

    Args:
        rows: split (or `all`) -> rows with `text` and `label`; each row gains `cluster`, equal for near-duplicates.
    """
    everything = [row for split in rows.values() for row in split]
    pairs = near_pairs([row["text"] for row in everything])
    for row, cluster in zip(everything, clusters(pairs, len(everything)).tolist(), strict=True):
        row["cluster"] = cluster

    rows = dict(rows)
    shares = {split: task.split[split] for split in ("validation", "test") if split not in rows}
    whole = "all" if "all" in rows else "train"
    start = sum(len(rows[split]) for split in list(rows)[: list(rows).index(whole)])
    pool = rows.pop(whole)
    within = [(ends >= start) & (ends < start + len(pool)) for ends in pairs]
    inside = tuple(ends[within[0] & within[1]] - start for ends in pairs)  # test rows link no training rows
    members: dict[int, list[dict]] = {}
    for row, cluster in zip(pool, clusters(inside, len(pool)), strict=True):
        members.setdefault(int(cluster), []).append(row)

    def place(cluster: list[dict]) -> str:
        first = min(normalise(row["text"]) for row in cluster)
        return hashlib.sha256(f"{task.split['seed']} {first}".encode()).hexdigest()

    wanted = {
        (label, split): share * count
        for label, count in Counter(row["label"] for row in pool).items()
        for split, share in shares.items()
    }
    parts = {split: [] for split in ("train", *shares)}
    for cluster in sorted(members.values(), key=place):
        label = Counter(row["label"] for row in cluster).most_common(1)[0][0]
        split = next((split for split in shares if wanted[label, split] >= len(cluster) / 2), "train")
        if split != "train":
            for row in cluster:
                wanted[row["label"], split] -= 1
        parts[split] += cluster
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
