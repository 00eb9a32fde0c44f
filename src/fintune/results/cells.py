"""Cells of a comparison: runs on the same rows, with the seeds of one recipe pooled and every pair tested."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from fintune.recipe.identity import differences
from fintune.results.runs import LeftOut, Run, machine_of, number_at, printable, read_runs
from fintune.results.statistics import Pair, compare_pairs, percentiles, resampled_accuracies


@dataclass
class Cell:
    """One line of a table: a run, or several that differ in the seed alone.

    Attributes:
        label: name, with the keys of the identity that tell it from another cell of that name.
        runs: by seed.
    """

    label: str
    runs: list[Run]

    @property
    def run(self) -> Run:
        """The cell's representative where only one run can be shown: of median accuracy, the lower of two."""
        by_accuracy = sorted(self.runs, key=lambda run: (run.metrics["accuracy"], run.seed))
        return by_accuracy[(len(by_accuracy) - 1) // 2]

    @property
    def correct(self) -> np.ndarray:
        """(seeds, n) bool."""
        return np.array([run.correct for run in self.runs])

    def mean(self, *keys: str) -> float | None:
        """Mean over the seeds of a number in metrics.json, `None` where a run does not have it."""
        values = [number_at(run.result, *keys) for run in self.runs]
        return None if None in values else float(np.mean(values))

    def metric(self, key: str) -> float | None:
        return self.mean(self.runs[0].result["split"], key)

    @property
    def deviation(self) -> float | None:
        """Standard deviation (n - 1) of the accuracy over seeds; None for one."""
        accuracies = [run.metrics["accuracy"] for run in self.runs]
        return float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the accuracy: over rows, as the run reports it; over rows and seeds where several."""
        if len(self.runs) == 1:
            return tuple(self.runs[0].metrics["accuracy_interval"])
        return percentiles(*resampled_accuracies(self.correct))

    @property
    def paper(self) -> float | None:
        """The paper's accuracy for this model; None where it has no row, or the rows are not the published ones."""
        return number_at(self.runs[0].result, "paper", "accuracy") if self.runs[0].source == "published" else None


@dataclass
class Group:
    """Cells on the same rows, best first, with every pair of them."""

    cells: list[Cell]
    pairs: list[Pair] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        return [run for cell in self.cells for run in cell.runs]

    @property
    def first(self) -> Run:
        return self.cells[0].runs[0]

    @property
    def task(self) -> str:
        return printable(self.first.result["task"])

    @property
    def split(self) -> str:
        return self.first.result["split"]

    @property
    def labels(self) -> list[str]:
        return self.first.result["data"]["labels"]

    @property
    def rows(self) -> int:
        return len(self.first.rows)

    @property
    def sources(self) -> list[str]:
        return sorted({run.result["data"]["source"] for run in self.runs})

    @property
    def machines(self) -> list[str]:
        """Each machine that a run was scored on, in words."""
        return list(dict.fromkeys(machine_of(run.result) for run in self.runs))

    def pair(self, first: int, second: int) -> Pair:
        """The pair of two cells by their index, in the order that it was tested."""
        return next(pair for pair in self.pairs if {pair.first, pair.second} == {first, second})


def compare_runs(folder: Path) -> tuple[list[Group], list[LeftOut]]:
    """Read every run under a folder and compare those on the same rows; the others are named with the reason."""
    runs, left_out = read_runs(folder)
    groups = {}
    for run in runs:
        groups.setdefault(run.data_key, []).append(run)
    compared = []
    for key in sorted(groups, key=lambda key: (key[1] == "sample", *key)):  # invented rows last
        runs, others = _same_rows(groups[key])
        cells, repeats = pool_seeds(runs)
        cells.sort(key=lambda cell: (-cell.metric("accuracy"), cell.label))
        compared.append(Group(cells, compare_pairs([cell.correct for cell in cells], [c.run.correct for c in cells])))
        left_out += others + repeats
    return compared, sorted(left_out, key=lambda left: left.path)


def _same_rows(runs: list[Run]) -> tuple[list[Run], list[LeftOut]]:
    """The runs on the rows that most of them saw (of the first by path, on a tie), and the others by name."""
    keys = [run.row_key for run in runs]
    common = max(keys, key=keys.count)
    reference = next(run for run in runs if run.row_key == common)
    left_out = [
        LeftOut(run.path, f"{_other_rows(run, reference)}, though both name data {run.result['data']['sha256'][:12]}")
        for run in runs
        if run.row_key != common
    ]
    return [run for run in runs if run.row_key == common], left_out


def _other_rows(run: Run, reference: Run) -> str:
    if len(run.rows) != len(reference.rows):
        return f"{len(run.rows)} rows, {reference.path} has {len(reference.rows)}"
    pairs = zip(run.rows, run.truth, reference.rows, reference.truth, strict=True)
    first = next(i for i, (row, label, other, its_label) in enumerate(pairs) if (row, label) != (other, its_label))
    return f"other rows than {reference.path}, the first is row {first + 1}"


def pool_seeds(runs: list[Run]) -> tuple[list[Cell], list[LeftOut]]:
    """One cell for the runs that differ in nothing but the seed; a repeated seed adds no evidence.

    The rule: equal name up to `-seed<number>`, equal identity but for its seed.
    """
    cells: dict[str, dict[int | None, Run]] = {}
    left_out = []
    for run in runs:
        seeds = cells.setdefault(run.cell_key, {})
        if run.seed in seeds:
            reason = f"recipe and seed {run.seed} are those of {seeds[run.seed].path}; a repeat is not another seed"
            left_out.append(LeftOut(run.path, reason))
        else:
            seeds[run.seed] = run
    pooled = [[seeds[seed] for seed in sorted(seeds, key=str)] for seeds in cells.values()]
    return [Cell(label, runs) for label, runs in zip(_labels(pooled), pooled, strict=True)], left_out


def _labels(pooled: list[list[Run]]) -> list[str]:
    """The cells' names; those that share one are told apart by the keys their identities differ in, else by path."""
    labels = []
    for runs in pooled:
        same = [other[0] for other in pooled if other[0].name == runs[0].name]
        mine = runs[0].identity
        keys = sorted({key for other in same for key in differences(mine, other.identity, besides=("seed",))})
        details = ", ".join(f"{key} {mine.get(key, 'unset')}" for key in keys)
        if not details or len(details) > 60:
            details = runs[0].path
        labels.append(runs[0].name + (f" ({printable(details)})" if len(same) > 1 else ""))
    repeated = {label for label in labels if labels.count(label) > 1}
    return [
        f"{runs[0].name} ({runs[0].path})" if label in repeated else label
        for label, runs in zip(labels, pooled, strict=True)
    ]
