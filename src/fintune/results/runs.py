"""Finished runs side by side: which of them saw the same rows, what several seeds say, which differences are real.

Reads runs/**/metrics.json and the predictions.jsonl beside each, and neither torch nor a model.
"""

import hashlib
import json
import math
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import yaml
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

SCHEMA = 1  # that of fintune.runs, which takes ten seconds to import; a test holds the two equal
ALPHA = 0.05
RESAMPLES = 10_000
RUN_FILES = {"metrics.json", "recipe.yaml", "predictions.jsonl", ".lock"}  # one of them tells a run's folder
PUBLIC = ("mirror", "hub")  # two ways to the same published files
# Keys of a recipe that two seeds of one cell may differ in: beside the seed what names places, resumes or shows.
# `files` and `sample` are paths, the data's hash covers what is in them.
NOT_THE_CELL = ("seed", "output_dir", "resume_from_checkpoint", "report_to", "disable_tqdm", "files", "sample")


@dataclass(frozen=True)
class LeftOut:
    """A folder that is not compared, and why, in one line."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"left out: {self.path}: {self.reason}"


@dataclass
class Run:
    """A finished run.

    Attributes:
        path: folder, relative to the one that was searched.
        result: its metrics.json.
        rows: (file, line, text) of each row, in order.
        truth, answers: (n,) label ids.
        probabilities: (n, labels), in label id order.
        recipe: its recipe.yaml; None for a model that was scored without training.
        templates: hash of its template.jinja and chat_template.jinja.
    """

    path: str
    result: dict
    rows: list[tuple[str, int, str]]
    truth: np.ndarray
    answers: np.ndarray
    probabilities: np.ndarray
    recipe: dict | None
    templates: str

    @property
    def metrics(self) -> dict:
        return self.result[self.result["split"]]

    @property
    def name(self) -> str:
        """The run's name without the seed: `tiny-seed1` is a run of `tiny`."""
        return printable(re.sub(r"-seed-?\d+$", "", self.result["name"]))

    @property
    def seed(self) -> int | None:
        return self.recipe.get("seed", 42) if self.recipe else None  # 42 is the default of transformers

    @property
    def source(self) -> str:
        """`published`, `file` or `sample`."""
        source = self.result["data"]["source"]
        return "published" if source in PUBLIC else source

    @property
    def data_key(self) -> tuple:
        """Runs are compared only where these agree: task, kind of source, hash of the data, split, study."""
        return self.result["task"], self.source, self.result["data"]["sha256"], self.result["split"], self.study

    @property
    def study(self) -> str:
        """`ablations` for the runs of ablations.py, which would swamp a table of models."""
        return "ablations" if "ablations" in Path(self.path).parts else ""

    @cached_property
    def row_key(self) -> str:
        """Hash of the rows with their labels, in order."""
        return hashlib.sha256(repr((self.rows, self.truth.tolist())).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def cell_key(self) -> str:
        """Equal for two runs that differ in nothing but the seed (and `NOT_THE_CELL`)."""
        if self.recipe is None:
            return self.path
        recipe = {key: _plain(value) for key, value in self.recipe.items() if key not in NOT_THE_CELL}
        return json.dumps([self.name, self.templates, recipe], sort_keys=True, default=str)

    @property
    def correct(self) -> np.ndarray:
        return self.answers == self.truth

    @property
    def confidence(self) -> np.ndarray:
        """(n,) probability of the label that was answered."""
        return self.probabilities[np.arange(len(self.answers)), self.answers]


@dataclass
class Cell:
    """One line of a table: a run, or several that differ in the seed alone.

    Attributes:
        label: name, with the keys of the recipe that tell it from another cell of that name.
        runs: by seed.
    """

    label: str
    runs: list[Run]

    @property
    def run(self) -> Run:
        """The run that stands for the cell where only one can: that of median accuracy, the lower of two."""
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


@dataclass(frozen=True)
class Pair:
    """Two cells on the same rows; `difference` and its interval are accuracy of the first minus the second, in 0..1.

    Attributes:
        only_first, only_second: rows that one alone labels right, between the runs that stand for the cells.
        p: exact McNemar; p_holm: after Holm's correction over the group's pairs.
    """

    first: int
    second: int
    difference: float
    interval: tuple[float, float]
    only_first: int
    only_second: int
    p: float
    p_holm: float
    rows: int

    @property
    def real(self) -> bool:
        """Both tests must say so: the corrected McNemar, and an interval without zero."""
        low, high = self.interval
        return self.p_holm < ALPHA and not low <= 0 <= high

    @property
    def verdict(self) -> str:
        return f"real at n = {self.rows:,}" if self.real else "inside noise"


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
    """Read every run under a folder and compare those that saw the same rows; what cannot be compared is named."""
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


def read_runs(folder: Path) -> tuple[list[Run], list[LeftOut]]:
    """Every finished run under a folder, and every unfinished, broken or foreign one by name."""
    runs, left_out = [], []
    seen = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(root)) in seen:
            folders.clear()
            continue
        seen.add(place)
        here, where = Path(root), printable(os.path.relpath(root, folder))
        if "staging" in folders and "metrics.json" in files:
            left_out.append(
                LeftOut(f"{where}/staging", "a newer result, cut off while it was saved; the older counts")
            )
        checkpoints = any(
            re.fullmatch(r"checkpoint-\d+", name) and not (here / name / "metrics.json").exists() for name in folders
        )
        if checkpoints or RUN_FILES & set(files):  # of a run's own folders none holds another run
            folders[:] = [n for n in folders if n not in ("staging", "base") and not n.startswith("checkpoint-")]
        folders.sort()
        if "metrics.json" in files:
            try:
                runs.append(read_run(here, where))
            except _Unreadable as error:
                left_out.append(LeftOut(where, printable(str(error))))
        elif checkpoints or {"recipe.yaml", "predictions.jsonl"} & set(files):
            left_out.append(LeftOut(where, "no metrics.json: still training, or stopped before it was scored"))
    return runs, left_out


class _Unreadable(Exception):
    """Why a run cannot be compared."""


def read_run(folder: Path, where: str) -> Run:
    """A run's metrics, predictions and recipe, checked against each other.

    Raises:
        _Unreadable: metrics.json or predictions.jsonl is missing, half-written, of another schema, or they disagree.
    """
    result = _read_json(folder / "metrics.json")
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        found = result.get("schema") if isinstance(result, dict) else None
        raise _Unreadable(f"metrics.json has schema {found!r}, this version reads {SCHEMA}; train the run again")
    try:
        split = result["split"]
        metrics, labels = result[split], result["data"]["labels"]
        texts = (split, result["task"], result["name"], result["data"]["source"], result["data"]["sha256"], *labels)
        numbers = (metrics["accuracy"], metrics["macro_f1"], metrics["rows"], *metrics["accuracy_interval"])
        sound = all(isinstance(text, str) for text in texts) and all(map(math.isfinite, numbers)) and len(labels) > 1
    except (KeyError, TypeError) as error:
        raise _Unreadable(
            f"metrics.json is incomplete ({type(error).__name__}: {error}); train the run again"
        ) from error
    if not sound or len(metrics["accuracy_interval"]) != 2:
        raise _Unreadable("metrics.json holds what is no name or no finite number; train the run again")

    rows, truth, answers, probabilities = _read_predictions(folder / "predictions.jsonl", labels)
    if len(rows) != metrics["rows"]:
        raise _Unreadable(
            f"predictions.jsonl has {len(rows)} rows, metrics.json says {metrics['rows']}; score it again"
        )
    accuracy = float((truth == answers).mean())
    if abs(accuracy - metrics["accuracy"]) > 1e-6:
        raise _Unreadable(
            f"predictions.jsonl gives accuracy {accuracy:.4f}, metrics.json {metrics['accuracy']:.4f}; score it again"
        )
    recipe, templates = None, hashlib.sha256()
    if (folder / "recipe.yaml").is_file():
        try:
            recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise _Unreadable(f"recipe.yaml is no YAML ({str(error).splitlines()[0]}); train the run again") from error
        if not isinstance(recipe, dict):
            raise _Unreadable("recipe.yaml is no mapping; train the run again")
    for name in ("template.jinja", "chat_template.jinja"):
        templates.update((folder / name).read_bytes() if (folder / name).is_file() else b"none")
    return Run(where, result, rows, truth, answers, probabilities, recipe, templates.hexdigest())


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _Unreadable(f"{path.name} is no whole JSON ({error}); train the run again") from error


def _read_predictions(path: Path, labels: list[str]) -> tuple[list, np.ndarray, np.ndarray, np.ndarray]:
    ids = {label: index for index, label in enumerate(labels)}
    rows, truth, answers, probabilities = [], [], [], []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines(), which also splits at U+2028
    except FileNotFoundError as error:
        raise _Unreadable("no predictions.jsonl beside metrics.json; score it again") from error
    except UnicodeDecodeError as error:
        raise _Unreadable(f"predictions.jsonl is not UTF-8 ({error.reason}); score it again") from error
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            row = json.loads(line)
            rows.append((str(row["file"]), int(row["line"]), str(row["text"])))
            truth.append(ids[row["label"]])
            answers.append(ids[row["prediction"]])
            probabilities.append([float(row["probabilities"][label]) for label in labels])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            why = f"{type(error).__name__}: {error}"
            raise _Unreadable(f"predictions.jsonl:{number} cannot be read ({why}); score it again") from error
    if not rows:
        raise _Unreadable("predictions.jsonl is empty; score it again")
    array = np.array(probabilities)
    off = ~(np.isfinite(array).all(axis=1) & (array >= 0).all(axis=1) & (abs(array.sum(axis=1) - 1) < 1e-3))
    if off.any():
        raise _Unreadable(
            f"predictions.jsonl: {off.sum()} rows, the first is row {off.argmax() + 1}, whose probabilities are no "
            "distribution; score it again"
        )
    return rows, np.array(truth), np.array(answers), array


def _same_rows(runs: list[Run]) -> tuple[list[Run], list[LeftOut]]:
    """The runs on the rows that most of them saw (of the first by path, on a tie), and the others by name."""
    keys = [run.row_key for run in runs]
    common = max(keys, key=keys.count)
    model = next(run for run in runs if run.row_key == common)
    left_out = [
        LeftOut(run.path, f"{_other_rows(run, model)}, though both say data {run.result['data']['sha256'][:12]}")
        for run in runs
        if run.row_key != common
    ]
    return [run for run in runs if run.row_key == common], left_out


def _other_rows(run: Run, model: Run) -> str:
    if len(run.rows) != len(model.rows):
        return f"{len(run.rows)} rows, {model.path} has {len(model.rows)}"
    first = next(i for i in range(len(run.rows)) if (run.rows[i], run.truth[i]) != (model.rows[i], model.truth[i]))
    return f"other rows than {model.path}, the first is row {first + 1}"


def pool_seeds(runs: list[Run]) -> tuple[list[Cell], list[LeftOut]]:
    """One cell for the runs that differ in nothing but the seed; a seed that comes twice is no new evidence.

    The rule: equal name up to `-seed<number>`, equal recipe.yaml but for `NOT_THE_CELL`, equal templates.
    """
    cells: dict[str, dict[int | None, Run]] = {}
    left_out = []
    for run in runs:
        seeds = cells.setdefault(run.cell_key, {})
        if run.seed in seeds:
            reason = f"recipe and seed {run.seed} are those of {seeds[run.seed].path}; a repeat is no second seed"
            left_out.append(LeftOut(run.path, reason))
        else:
            seeds[run.seed] = run
    pooled = [[seeds[seed] for seed in sorted(seeds, key=str)] for seeds in cells.values()]
    return [Cell(label, runs) for label, runs in zip(_labels(pooled), pooled, strict=True)], left_out


def _labels(pooled: list[list[Run]]) -> list[str]:
    """The cells' names; those that share one are told apart by the keys their recipes differ in, else by path."""
    labels = []
    for runs in pooled:
        same = [other[0] for other in pooled if other[0].name == runs[0].name]
        recipes = [run.recipe or {} for run in same]
        differing = sorted(
            key
            for key in set().union(*recipes) - set(NOT_THE_CELL)
            if len({json.dumps(_plain(recipe.get(key)), sort_keys=True, default=str) for recipe in recipes}) > 1
        )
        mine = [f"{key} {_plain((runs[0].recipe or {}).get(key, 'unset'))}" for key in differing]
        if len(same) > 1 and (not mine or len(", ".join(mine)) > 60):
            mine = [runs[0].path]
        labels.append(runs[0].name + (f" ({printable(', '.join(mine))})" if len(same) > 1 else ""))
    repeated = {label for label in labels if labels.count(label) > 1}
    return [
        f"{runs[0].name} ({runs[0].path})" if label in repeated else label
        for label, runs in zip(labels, pooled, strict=True)
    ]


def _plain(value: object) -> object:
    """`3e-4` is a string to YAML and a number as a flag: the same recipe either way."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def resampled_accuracies(*cells: np.ndarray) -> list[np.ndarray]:
    """Accuracy of each cell in bootstrap resamples of the rows, the same rows for all, and of each cell's seeds.

    Rows on which all runs do alike are drawn together, by one multinomial: the same distribution as drawing row by
    row, without n numbers a resample. With few seeds k their part of the spread is understated by (k - 1) / k.

    Args:
        cells: (seeds, n) bool each, whether a row is labelled right.

    Returns:
        (RESAMPLES,) accuracies for each cell; seeded, so the same runs give the same.
    """
    rng = np.random.default_rng(0)
    n = cells[0].shape[1]
    patterns, counts = np.unique(np.vstack(cells), axis=1, return_counts=True)
    drawn = rng.multinomial(n, counts / n, size=RESAMPLES)
    hits = np.split(drawn @ patterns.T.astype(float) / n, np.cumsum([len(cell) for cell in cells])[:-1], axis=1)
    seeds = [rng.multinomial(len(cell), np.full(len(cell), 1 / len(cell)), size=RESAMPLES) for cell in cells]
    return [(hit * seed).sum(axis=1) / seed.shape[1] for hit, seed in zip(hits, seeds, strict=True)]


def percentiles(values: np.ndarray) -> tuple[float, float]:
    """Ends of the central 95 %."""
    low, high = np.percentile(values, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return float(low), float(high)


def compare_pairs(correct: list[np.ndarray], standing: list[np.ndarray]) -> list[Pair]:
    """Every pair of a group's cells: bootstrap of the difference over all seeds, exact McNemar, Holm's correction.

    Args:
        correct: (seeds, n) bool for each cell.
        standing: (n,) bool for each cell, of the run that stands for it: McNemar's test knows one answer a row.
    """
    found = []
    for first, second in combinations(range(len(correct)), 2):
        a, b = standing[first], standing[second]
        table = [[int((a & b).sum()), int((a & ~b).sum())], [int((~a & b).sum()), int((~a & ~b).sum())]]
        means = resampled_accuracies(correct[first], correct[second])
        found.append(
            (first, second, percentiles(means[0] - means[1]), table, float(mcnemar(table, exact=True).pvalue))
        )
    corrected = multipletests([p for *_, p in found], alpha=ALPHA, method="holm")[1] if found else []
    return [
        Pair(
            first=first,
            second=second,
            difference=float(correct[first].mean() - correct[second].mean()),
            interval=interval,
            only_first=table[0][1],
            only_second=table[1][0],
            p=p,
            p_holm=float(p_holm),
            rows=correct[first].shape[1],
        )
        for (first, second, interval, table, p), p_holm in zip(found, corrected, strict=True)
    ]


def machine_of(result: dict) -> str:
    """Processor, cores and GPU of a result, in words."""
    machine = result.get("machine") or {}
    cores = machine.get("cores")
    parts = (
        machine.get("processor") or "unknown processor",
        "1 core" if cores == 1 else f"{cores or '?'} cores",
        machine.get("gpu") or "no GPU",
    )
    return printable(", ".join(map(str, parts)))


def number_at(values: object, *keys: str) -> float | None:
    """A finite number in nested mappings; None where it is not there."""
    for key in keys:
        values = values.get(key) if isinstance(values, dict) else None
    usable = isinstance(values, int | float) and not isinstance(values, bool) and math.isfinite(values)
    return values if usable else None


def printable(text: str) -> str:
    """One line without control characters: names come from files and end up in a terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
