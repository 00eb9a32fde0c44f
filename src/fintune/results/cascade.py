"""Several runs of one task as one: the cheap ones answer what they are sure of; what `fintune cascade` does."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fintune.data.load import TaskData, inputs_of, load_data
from fintune.errors import UserError
from fintune.recipe.recipe import CascadeArguments, OutputArguments, Recipe
from fintune.results.folder import make_result, save_run
from fintune.results.restore import check_data, load_scorer, read_recipe
from fintune.results.summary import print_result
from fintune.results.verify import CASCADE, fingerprint, verified_result
from fintune.scoring.calibration import calibration_of
from fintune.scoring.cascade import CascadeScorer, Stage
from fintune.scoring.guarantee import NEVER, Policy, StageScores, choose, nearest, route
from fintune.scoring.scorer import evaluate
from fintune.training.checkpoints import lock_folder
from fintune.training.session import say_replaced


@dataclass
class Member:
    """A run that may become a stage.

    Attributes:
        result: its metrics.json.
        probabilities: (rows, labels) of the validation rows, calibrated.
        scores: what these say.
    """

    folder: Path
    result: dict
    stage: Stage
    probabilities: np.ndarray
    scores: StageScores


def cascade(folders: list[Path], max_error: float, confidence: float, output: Path) -> None:
    """Choose thresholds on the validation rows, measure on the test rows, and save the cascade as a run.

    Args:
        folders: finished runs of one task on the same rows, in any order: the fastest is asked first.
        max_error: the most that may be wrong of what is labelled.
        confidence: probability, over validation rows like these, with which that holds.
        output: the new run's folder.

    Raises:
        UserError: a folder is no finished run or one of other rows or labels; or no thresholds hold the bound.
    """
    results = check_stages(folders)
    task = read_recipe(folders[0], results[0]["script"]).task
    data = load_data(task, allow_sample=results[0]["data"]["source"] == "sample")
    check_data(folders[0], results[0], data)
    say_replaced(output / "metrics.json")
    lock_folder(output, 0)

    started = time.perf_counter()
    members = scored(folders, results, data)
    policy = chosen(members, max_error, confidence)
    kept = []
    for member, threshold in zip(members, policy.thresholds, strict=True):
        member.stage.threshold = threshold
        if threshold < NEVER:
            kept.append(member)
        else:
            print(f"{member.folder}: left out, since the others do without it")
    scorer = CascadeScorer([member.stage for member in kept])
    metrics, predictions = evaluate(scorer, task, data, 1.0)

    overrides = {
        "script": CASCADE,
        "stages": [os.path.relpath(member.folder.resolve(), output.resolve()) for member in kept],
        "thresholds": [member.stage.threshold for member in kept],
        "max_error": max_error,
        "confidence": confidence,
    }
    run_args = CascadeArguments(**{key: value for key, value in overrides.items() if key != "script"})
    recipe = Recipe(task, output.name, CASCADE, overrides, {}, run_args, OutputArguments(output_dir=str(output)))
    result = make_result(
        recipe,
        data,
        metrics,
        model=summary(kept),
        training={"train_runtime": time.perf_counter() - started, "log": []},
        calibration=calibration_of(routed(kept), np.array(data.splits["validation"]["label"])),
        guarantee={
            "max_error": max_error,
            "confidence": confidence,
            "tested_on": policy.rows,
            "labelled": policy.labelled,
            "errors": policy.errors,
            "p_value": policy.p_value,
        },
    )
    save_run(recipe, result, predictions, scorer)
    print_result(result, output)


def check_stages(folders: list[Path]) -> list[dict]:
    """metrics.json of each stage.

    Raises:
        UserError: a folder is no finished run, comes twice, is a cascade itself, or differs in its task, its labels or
            its rows.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError(f"{' '.join(map(str, folders))}: a run is named twice; name each once")
    results = [verified_result(folder) for folder in folders]
    for folder, result in zip(folders, results, strict=True):
        if result["script"] == CASCADE:
            raise UserError(f"{folder}: is a cascade itself; name its stages")
        for what, one, other in (
            ("another task", result["task"], results[0]["task"]),
            ("other labels", result["data"]["labels"], results[0]["data"]["labels"]),
            ("other columns", result["data"].get("columns", []), results[0]["data"].get("columns", [])),
            ("other rows", result["data"]["sha256"], results[0]["data"]["sha256"]),
        ):
            if one != other:
                raise UserError(
                    f"{folder}: has {what} than {folders[0]}; stages are runs of one task on the same rows"
                )
    return results


def scored(folders: list[Path], results: list[dict], data: TaskData) -> list[Member]:
    """Every run with its scores of the validation rows and the time that they took, the fastest first."""
    rows = data.splits["validation"]
    inputs, truth = inputs_of(rows), np.array(rows["label"])
    members = []
    for folder, result in zip(folders, results, strict=True):
        scorer = load_scorer(folder, result)
        scorer.merge()
        stage = Stage(folder.name, scorer, result["calibration"]["temperature"], NEVER)
        stage.scores(inputs[:8])  # warm-up
        started = time.perf_counter()
        found, _ = stage.scores(inputs, f"validation rows, {stage.name}")
        seconds = (time.perf_counter() - started) / len(inputs)
        scores = StageScores(found.max(axis=1), found.argmax(axis=1) == truth, seconds)
        members.append(Member(folder, result, stage, found, scores))
    return sorted(members, key=lambda member: member.scores.seconds)


def chosen(members: list[Member], max_error: float, confidence: float) -> Policy:
    """The thresholds of `fintune.scoring.guarantee.choose`.

    Raises:
        UserError: there are none; the nearest bound that has some is named.
    """
    scores = [member.scores for member in members]
    if policy := choose(scores, max_error, confidence):
        return policy
    possible = nearest(scores, max_error, confidence)
    raise UserError(
        f"--max-error {max_error:g}: {len(scores[0].correct):,} validation rows cannot show it with a confidence of "
        f"{confidence:g}; "
        + (f"--max-error {possible:g} can be had" if possible else "add a better run, or more rows")
    )


def routed(members: list[Member]) -> np.ndarray:
    """(rows, labels) of the validation rows by the stage that answers, the last where none may."""
    found = np.empty_like(members[0].probabilities)

    def ask(stage: int, rows: np.ndarray) -> np.ndarray:
        found[rows] = members[stage].probabilities[rows]
        return members[stage].scores.confidence[rows]

    route([member.stage.threshold for member in members], len(found), ask)
    return found


def summary(members: list[Member]) -> dict:
    """`model` of metrics.json."""
    counted = ("parameters", "trained_parameters")
    return {
        "base": "cascade",
        "weights": None,
        "stages": [
            {
                "name": member.stage.name,
                "fingerprint": fingerprint(member.result),
                "threshold": member.stage.threshold,
                "rows_per_second": 1 / member.scores.seconds,
            }
            for member in members
        ],
        **{key: sum(member.result["model"].get(key) or 0 for member in members) for key in counted},
    }
