"""Which texts say nearly the same, exactly for as many as that is quick for, and by an index beyond."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from fintune.data.same_text import pieces

THRESHOLD = 0.6  # Jaccard overlap of word pairs from which on two texts are near-duplicates
EXACT = 2**32  # word pairs to look at for the exact answer; beyond it the index answers
BLOCK = 2**23  # of them at a time: 200 MB
# Of the index: two texts are compared where BAND smallest hashes of theirs are equal in one of BANDS draws, at an
# overlap of 0.6 with a probability of 1 - (1 - 0.6^3)^30 = 99.9 %
BANDS, BAND = 30, 3
NEIGHBOURS = 8  # texts of a draw with the same hashes that each is compared with


@dataclass
class NearPairs:
    """Near-duplicates among texts.

    Attributes:
        form: (texts,) in 0..forms - 1, equal for texts of the same words.
        ends: (2, pairs) forms that are near-duplicates, each pair once.
        exact: whether these are all there are; the index misses some, and in large clusters most, but few links.
    """

    form: np.ndarray
    ends: np.ndarray
    exact: bool

    @property
    def forms(self) -> int:
        return int(self.form.max(initial=-1)) + 1

    def clusters(self) -> np.ndarray:
        """(texts,) cluster id of each; near-duplicates, and near-duplicates of those, share a cluster."""
        links = coo_array((np.ones(self.ends.shape[1], dtype=bool), tuple(self.ends)), shape=(self.forms, self.forms))
        return connected_components(links, directed=False)[1][self.form]

    def within(self, start: int, stop: int) -> "NearPairs":
        """Those among the texts of a range, which no text outside it links."""
        inside = np.isin(np.arange(self.forms), self.form[start:stop])
        return NearPairs(self.form[start:stop], self.ends[:, inside[self.ends].all(axis=0)], self.exact)

    def near(self, chosen: np.ndarray) -> np.ndarray:
        """(texts,) bool, those that are or have a near-duplicate among the chosen, (texts,) bool."""
        inside = np.isin(np.arange(self.forms), self.form[chosen])
        one, other = self.ends
        near = inside.copy()
        near[one[inside[other]]] = near[other[inside[one]]] = True
        return near[self.form]

    def of_texts(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of texts that are near-duplicates, each pair in both directions."""
        texts, same = np.arange(len(self.form)), np.arange(self.forms)
        one, other = np.concatenate([self.ends, self.ends[::-1], [same, same]], axis=1)
        near = csr_array((np.ones(len(one), dtype=bool), (one, other)), shape=(self.forms, self.forms))
        member = csr_array((np.ones(len(texts), dtype=bool), (texts, self.form)), shape=(len(texts), self.forms))
        rows, others = (member @ near @ member.T).tocoo().coords
        return rows[rows != others], others[rows != others]


def near_pairs(texts: list[str], threshold: float = THRESHOLD, mask_digits: bool = True) -> NearPairs:
    """Texts whose pairs of neighbouring words overlap by `threshold` or more (Jaccard).

    Exact within `EXACT`: texts that overlap so much share one of their rarest word pairs (prefix filtering, Chaudhuri
    et al. 2006), and only those that do are compared. Beyond it MinHash with locality-sensitive hashing (Leskovec et
    al., Mining of Massive Datasets, section 3.4) says which to compare: some are missed, none is invented.

    Args:
        mask_digits: all numbers are alike, since the same sentence about another quarter is no new evidence.
    """
    forms: dict[str, int] = {}
    form = np.array([forms.setdefault(pieces(text, mask_digits), len(forms)) for text in texts], dtype=np.int64)
    features = _word_pairs(list(forms))
    size = np.diff(features.indptr)
    rare = _rarest(features, size - np.ceil(threshold * size - 1e-9).astype(int) + 1)
    work = rare @ np.bincount(rare.indices, minlength=rare.shape[1])  # texts met through each rare word pair
    exact = bool(work @ size.astype(float) <= EXACT)
    found, fresh = np.empty(0, dtype=np.int64), []
    for one, other in _meeting(rare, work) if exact else _of_equal_hashes(features):
        likely = np.minimum(size[one], size[other]) >= threshold * np.maximum(size[one], size[other])
        one, other = one[likely], other[likely]
        shared = _shared(features, one, other)
        near = shared >= threshold * (size[one] + size[other] - shared)
        fresh.append(one[near].astype(np.int64) * len(forms) + other[near])
        if sum(map(len, fresh)) > len(found) + BLOCK:  # the index finds many pairs more than once
            found, fresh = np.unique(np.concatenate([found, *fresh])), []
    found = np.unique(np.concatenate([found, *fresh]))
    return NearPairs(form, np.stack(np.divmod(found, len(forms))), exact)


def _word_pairs(forms: list[str]) -> csr_array:
    """(forms, word pairs) bool, the rarest pair first; the beginning and the end of a form count as a word."""
    ids = {"": 0}
    flat = np.fromiter((ids.setdefault(word, len(ids)) for form in forms for word in ("", *form.split())), np.int64)
    flat = np.append(flat, 0)
    row = np.cumsum(flat == 0)[:-1] - 1
    pair = np.unique(flat[:-1] * len(ids) + flat[1:], return_inverse=True)[1]
    features = coo_array((np.ones(len(pair), dtype=bool), (row, pair))).tocsr()
    features.sum_duplicates()
    rank = np.empty(features.shape[1], dtype=features.indices.dtype)
    rank[np.argsort(np.bincount(features.indices), kind="stable")] = np.arange(features.shape[1])
    features.indices = rank[features.indices]
    features.has_sorted_indices = False
    features.sort_indices()
    return features


def _rarest(features: csr_array, length: np.ndarray) -> csr_array:
    """The first `length`, (forms,), word pairs of each form."""
    size = np.diff(features.indptr)
    kept = np.arange(features.nnz) - np.repeat(features.indptr[:-1], size) < np.repeat(length, size)
    ends = np.append(0, np.cumsum(length))
    return csr_array((features.data[kept], features.indices[kept], ends), shape=features.shape)


def _meeting(rare: csr_array, work: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of forms that share a rare word pair, the lower number first."""
    columns, block = rare.T.tocsr(), np.cumsum(work) // BLOCK
    for start, stop in zip(*_runs(block), strict=True):
        one, other = (rare[start:stop] @ columns).tocoo().coords
        one = one + start
        yield one[one < other], other[one < other]


def _runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(starts, stops) of equal values beside each other."""
    borders = np.flatnonzero(np.diff(values)) + 1
    return np.append(0, borders), np.append(borders, len(values))


def _of_equal_hashes(features: csr_array) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of forms whose smallest hashes are equal in one of the draws, the lower number first."""
    rng = np.random.default_rng(0)
    for _ in range(BANDS):
        key = np.zeros(features.shape[0], dtype=np.uint64)
        for _ in range(BAND):
            hashes = rng.integers(2**32, size=features.shape[1], dtype=np.uint32)
            smallest = np.minimum.reduceat(hashes[features.indices], features.indptr[:-1])
            key = key * np.uint64(6364136223846793005) + smallest  # Knuth's MMIX multiplier, modulo 2^64
        order = np.argsort(key, kind="stable")
        for apart in range(1, NEIGHBOURS + 1):
            equal = key[order[apart:]] == key[order[:-apart]]
            yield order[:-apart][equal], order[apart:][equal]  # stable: equal keys keep their numbers' order


def _shared(features: csr_array, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(pairs,) word pairs that two forms have in common."""
    shared, size = np.zeros(len(one), dtype=np.int64), np.diff(features.indptr)
    for start, stop in zip(*_runs(np.cumsum(size[one]) // BLOCK), strict=True):
        both = features[one[start:stop]].multiply(features[other[start:stop]])
        shared[start:stop] = both.sum(axis=1, dtype=np.int64)
    return shared
