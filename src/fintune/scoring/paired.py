"""Two models' answers on the same rows."""

import numpy as np
from statsmodels.stats.contingency_tables import mcnemar


def exact_mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """(rows that the first alone labels right, rows that the second alone does, p of McNemar's exact test).

    Args:
        first, second: (n,) bool, whether a row is labelled right.
    """
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    table = [[int((first & second).sum()), only_first], [only_second, int((~first & ~second).sum())]]
    return only_first, only_second, float(mcnemar(table, exact=True).pvalue)
