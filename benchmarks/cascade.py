"""Cascades of finished runs at several bounds beside each run alone: accuracy, cost and how often the bound is missed.

    .venv/bin/python benchmarks/cascade.py topic/tfidf,topic/minilm-l6 sentiment/tfidf,sentiment/minilm-l6

Each word names the runs of one task, below runs/. Scores their validation rows; writes docs/cascade.md, its figures
and benchmarks/results/cascade.json. Without a word, page and figures are written anew from that file.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # not the root, whose evaluate.py hides a package
import matplotlib
import measure
import numpy as np

from fintune import machine
from fintune.data.load import load_data
from fintune.files import replace_block
from fintune.results.cascade import Member, check_stages, scored
from fintune.results.restore import check_data, read_recipe
from fintune.results.runs import machine_of, read_run
from fintune.results.tables import commit_of, markdown_table
from fintune.scoring.guarantee import NEVER, StageScores, choose, measured, route
from fintune.scoring.metrics import accuracy_interval
from fintune.scoring.paired import exact_mcnemar

matplotlib.use("agg")  # no screen needed
import matplotlib.pyplot as plt

BOUNDS, CONFIDENCE, SPLITS = (0.02, 0.05, 0.1), 0.9, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="runs of one task, such as topic/tfidf,topic/minilm-l6")
    args = parser.parse_args()
    if args.runs:
        found = [of_task([Path("runs", name) for name in names.split(",")]) for names in args.runs]
        measure.save({"machine": machine.description(), "confidence": CONFIDENCE, "tasks": found}, "cascade")
    report = json.loads((measure.RESULTS / "cascade.json").read_text(encoding="utf-8"))
    lines = [f"On {machine_of(report)}, commit {commit_of(report['machine'])}"]
    lines[0] += " ([JSON](../benchmarks/results/cascade.json))."
    for task in report["tasks"]:
        lines += ["", *table(task)]
        draw(task, measure.ROOT / f"docs/cascade-{task['task']}.png")
    replace_block(measure.ROOT / "docs/cascade.md", "cascade", "\n".join(lines))


def of_task(folders: list[Path]) -> dict:
    """Every run alone and a cascade at each bound, on the test rows."""
    results = check_stages(folders)
    task = read_recipe(folders[0], results[0]["script"]).task
    data = load_data(task, allow_sample=True)
    check_data(folders[0], results[0], data)
    members = scored(folders, results, data)
    validation, test = [member.scores for member in members], [test_scores(member) for member in members]
    names, slowest = [member.stage.name for member in members], test[-1]
    alone = [
        {
            "name": name,
            "error": 1 - float(one.correct.mean()),
            "interval": accuracy_interval(~one.correct),
            "seconds": one.seconds,
        }
        for name, one in zip(names, test, strict=True)
    ]
    cascades = []
    for bound in BOUNDS:
        row = {"max_error": bound, "missed": missed(validation, test, bound)}
        if policy := choose(validation, bound, CONFIDENCE):
            row |= on_test(test, policy.thresholds, names)
            row["speedup"] = slowest.seconds / row["seconds"]
        cascades.append(row)
    return {
        "task": task.task,
        "rows": {split: len(data.splits[split]) for split in ("validation", "test")},
        "data": f"{data.source} data {data.sha256[:12]}",
        "alone": alone,
        "cascades": cascades,
    }


def test_scores(member: Member) -> StageScores:
    """Of the test rows, as the run's own predictions have them."""
    run = read_run(member.folder, str(member.folder))
    return StageScores(run.confidence, run.correct, member.scores.seconds)


def on_test(test: list[StageScores], thresholds: tuple[float, ...], names: list[str]) -> dict:
    """What thresholds bring on the test rows; `p` compares with the slowest run, abstained rows by its own answers."""
    answers = np.empty_like(test[0].correct)

    def ask(stage: int, rows: np.ndarray) -> np.ndarray:
        answers[rows] = test[stage].correct[rows]
        return test[stage].confidence[rows]

    at = route(thresholds, len(answers), ask)
    labelled = at < len(test)
    policy = measured(test, thresholds, 1.0)
    return {
        "thresholds": {n: t for n, t in zip(names, thresholds, strict=True) if t < NEVER},
        "answered_by": {name: float((at == number).mean()) for number, name in enumerate(names)},
        "abstained": float((~labelled).mean()),
        "error": float((~answers[labelled]).mean()),
        "interval": accuracy_interval(~answers[labelled]),
        "error_of_all": float((~answers).mean()),
        "p": exact_mcnemar(answers, test[-1].correct)[2],
        "seconds": policy.cost,
    }


def missed(validation: list[StageScores], test: list[StageScores], bound: float) -> dict:
    """How often the bound is exceeded where validation and test rows are mixed and split anew."""
    rows, most = len(validation[0].correct), len(validation[0].correct) + len(test[0].correct)
    pooled = [
        StageScores(np.r_[one.confidence, two.confidence], np.r_[one.correct, two.correct], one.seconds)
        for one, two in zip(validation, test, strict=True)
    ]
    generator, found = np.random.default_rng(42), []
    for split in range(SPLITS):
        order = generator.permutation(most)
        policy = choose([stage.at(order[:rows]) for stage in pooled], bound, CONFIDENCE, seed=split)
        if policy:
            truth = measured([stage.at(order[rows:]) for stage in pooled], policy.thresholds, bound)
            found.append(truth.errors > bound * truth.answered)
    return {"splits": SPLITS, "found": len(found), "missed": int(sum(found))}


def machine_name(described: dict) -> str:
    return f"{described['cores']} cores of {described['processor']}" + (
        f", {described['gpu']}" * bool(described["gpu"])
    )


def table(task: dict) -> list[str]:
    names = [one["name"] for one in task["alone"]]
    headers = ["", *(f"{name} answers" for name in names), "abstained", "wrong of what is labelled (95 %)"]
    headers += ["rows/s", "hours a million", "times as fast", "missed"]
    rows = []
    for one in task["alone"]:
        rows.append([f"{one['name']} alone", *("100 %" if name == one["name"] else "" for name in names), "0 %"])
        rows[-1] += [*measures(one), f"{task['alone'][-1]['seconds'] / one['seconds']:.1f}", ""]
    for row in task["cascades"]:
        how_often = f"{row['missed']['missed']} of {row['missed']['splits']}"
        if "error" not in row:
            rows.append(
                [f"at most {row['max_error']:.0%}", *("" for _ in names), "", "cannot be shown", "", "", "", how_often]
            )
            continue
        rows.append([f"at most {row['max_error']:.0%}", *(f"{row['answered_by'][name]:.1%}" for name in names)])
        rows[-1] += [f"{row['abstained']:.1%}", *measures(row), f"{row['speedup']:.1f}", how_often]
    title = f"{task['task']}: {task['rows']['validation']:,} validation and {task['rows']['test']:,} test rows"
    said = [f"### {title}, {task['data']}", "", *markdown_table(headers, rows), ""]
    for row in task["cascades"]:
        if "error" in row:
            verdict = "no real difference" if row["p"] >= 0.05 else "a real difference"
            said.append(
                f"- at most {row['max_error']:.0%}: of all rows, abstained ones answered all the same, "
                f"{row['error_of_all']:.4f} are wrong; {names[-1]} alone has {task['alone'][-1]['error']:.4f} "
                f"(McNemar p {row['p']:.4f}: {verdict})."
            )
    return [*said, "", f"![Cost against error](cascade-{task['task']}.png)"]


def measures(one: dict) -> list[str]:
    low, high = one["interval"]
    hours = one["seconds"] * 1e6 / 3600
    cost = f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
    return [f"{one['error']:.4f} ({low:.4f} to {high:.4f})", f"{1 / one['seconds']:,.1f}", cost]


def draw(task: dict, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for points, colour, mark, label, side, align in (
        (task["alone"], "#0072b2", "o", "one run", 6, "left"),
        ([row for row in task["cascades"] if "error" in row], "#d55e00", "s", "cascade", -6, "right"),
    ):
        x, y = [one["seconds"] * 1e6 / 3600 for one in points], [100 * one["error"] for one in points]
        spread = [[100 * (one["error"] - one["interval"][0]) for one in points]]
        spread += [[100 * (one["interval"][1] - one["error"]) for one in points]]
        axes.errorbar(x, y, yerr=spread, fmt=mark, color=colour, capsize=3, label=label)
        for one, at, height in zip(points, x, y, strict=True):
            name = one.get("name") or f"≤ {one['max_error']:.0%}, {one['abstained']:.0%} abstained"
            place = {"xytext": (side, 4), "textcoords": "offset points", "ha": align}
            axes.annotate(name, (at, height), **place, fontsize=8)
    axes.set(xscale="log", xlabel="hours a million rows", ylabel="wrong of what is labelled, %", title=task["task"])
    axes.set_ylim(bottom=0)
    axes.margins(x=0.25)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
