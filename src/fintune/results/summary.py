"""The end of a run: its figures beside what is simplest, where it is weak, where it lies, what to type next."""

from pathlib import Path

from rich.table import Table

from fintune.machine import console, linear_command, typed

WEAK_F1 = 0.7  # a class below it is named
FEWEST_FOR_ECE = 15  # rows: one for each of its bins; of fewer the interval alone is shown


def print_result(result: dict, folder: Path) -> None:
    """Print a run's figures and what they tell.

    Args:
        folder: of the run.
    """
    test = result[result["split"]]
    where = f"{result['split']}, {test['rows']:,} rows ({result['data']['source']})"
    table = Table(title=f"{result['task']}: {result['name']} on {where}", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    low, high = test["accuracy_interval"]
    table.add_row("accuracy", f"{test['accuracy']:.4f}", f"95 % interval {low:.4f} to {high:.4f}")
    if test["rows_clean"] < test["rows"]:
        repeats = test["rows"] - test["rows_clean"]
        table.add_row("  clean", f"{test['accuracy_clean']:.4f}", f"without {repeats:,} rows that training also holds")
    for name, other in test["simple"].items():
        table.add_row(f"  {name}", f"{other['accuracy']:.4f}", verdict(test["accuracy"], other))
    if result["paper"] and result["paper"]["accuracy"]:
        table.add_row("  the paper's", f"{result['paper']['accuracy']:.4f}", result["paper"]["row"])
    table.add_row("macro F1", f"{test['macro_f1']:.4f}", "")
    table.add_row("ECE", *calibration_error(result))
    table.add_row("log-loss, nats", f"{test['log_loss']:.4f}", "")
    table.add_row("rows per second", f"{test['rows_per_second']:,.0f}", "")
    console().print(table)
    for line in [*of_cascade(result), *weak_classes(test["per_class"]), *advice(result)]:
        print(line)
    print(f"run: {folder}")
    if result["training"] is not None:
        print(f"next: {typed('fintune')} predict {folder} FILE.csv -o labelled.csv")


def calibration_error(result: dict) -> tuple[str, str]:
    """The test's ECE, and its interval with what was done to the probabilities."""
    test, calibration = result[result["split"]], result.get("calibration")
    low, high = test["ece_interval"]
    said = f"95 % interval {low:.4f} to {high:.4f}"
    if calibration and not calibration.get("not_fitted"):
        said += f"; {test['ece_uncalibrated']:.4f} before calibration"
    else:
        said += ", not calibrated"
    return (f"{test['ece']:.4f}" if test["rows"] >= FEWEST_FOR_ECE else "-"), said


def verdict(accuracy: float, other: dict) -> str:
    """Whether a run differs from a simpler model, by McNemar's exact test on the same rows."""
    if other["p"] >= 0.05:
        return f"no real difference (p {other['p']:.2f})"
    p = "< 0.0001" if other["p"] < 1e-4 else f"{other['p']:.4f}"
    return f"this run is {'better' if accuracy > other['accuracy'] else 'worse'} (p {p})"


def of_cascade(result: dict) -> list[str]:
    """Who labelled how much in a cascade, how much of that is wrong, and what is guaranteed; none for other runs."""
    found, promised = result[result["split"]].get("cascade"), result.get("guarantee")
    if not found:
        return []
    shares = ", ".join(f"{name} {share:.1%}" for name, share in found["answered_by"].items())
    lines = [f"labelled by {shares}; abstained {found['abstained']:.1%}"]
    if found["error"] is not None:
        low, high = found["error_interval"]
        lines += [f"wrong of what is labelled: {found['error']:.4f} (95 % interval {low:.4f} to {high:.4f})"]
    if promised:
        lines[-1] += (
            f"; at most {promised['max_error']:g} with a probability of {promised['confidence']:g}, as tested on "
            f"{promised['tested_on']:,} validation rows"
        )
    return lines


def weak_classes(per_class: dict) -> list[str]:
    """A line for each of the three weakest classes whose F1 is low, and how many more there are."""
    weak = sorted((c for c in per_class.items() if c[1]["rows"] and c[1]["f1"] < WEAK_F1), key=lambda c: c[1]["f1"])
    lines = [
        f"weak: {name}, precision {found['precision']:.2f}, recall {found['recall']:.2f} of {found['rows']} rows"
        for name, found in weak[:3]
    ]
    more = len(weak) - len(lines)
    return lines + [f"and {more} more below an F1 of {WEAK_F1}: `per_class` in metrics.json"] * bool(more)


def advice(result: dict) -> list[str]:
    """What a reader should know of this result beyond its figures."""
    test = result[result["split"]]
    lines = []
    if result["data"]["source"] == "sample":
        lines += ["The sample's rows are invented: this shows that the method runs, not how well it labels finance."]
    if reason := (result.get("calibration") or {}).get("not_fitted"):
        lines += [f"temperature: 1.0, not fitted, confidences are the model's own: {reason}"]
    if result["training"] is not None:
        lines += no_better(result)
    if explanation := explain_greedy(test.get("greedy_label_rate")):
        lines += [explanation]
    return lines


def no_better(result: dict) -> list[str]:
    """Where a trained run is not above the commonest label or TF-IDF on the same rows: that, and what to try."""
    test, base, steps = result[result["split"]], result["model"]["base"], result["training"].get("steps")
    majority, words = test["simple"]["majority class"], test["simple"].get("TF-IDF")
    more = f"more steps (--min_steps {2 * steps}), more labels" if steps else "more labels"
    lines = []
    if base != "majority" and (test["accuracy"] <= majority["accuracy"] or majority["p"] >= 0.05):
        rate = "a higher --learning_rate, " if steps else ""
        lines += [
            f"No better than always answering {majority['label']!r}: the model has not learnt the task. Try {rate}"
            f"`class_weights: balanced` in the task's YAML, {more}."
        ]
    if base not in ("majority", "tfidf") and words and test["accuracy"] < words["accuracy"]:
        lines += [
            f"No better than TF-IDF on the same rows: {test['accuracy']:.4f} against {words['accuracy']:.4f}, "
            f"{verdict(test['accuracy'], words)}. Take TF-IDF until this model wins, or the frozen MiniLM "
            "(minilm-l6-frozen.yaml in place of tfidf.yaml):",
            f"  {linear_command(result['task'])}",
            f"Or try {more}; `make baselines TASKS={result['task']}` trains all that this machine can.",
        ]
    return lines


def explain_greedy(report: dict | None) -> str | None:
    """The likely cause when a model does not answer with a label; None when it mostly does, or cannot generate."""
    if report is None or report["share"] >= 0.9:
        return None
    miss = report["first_miss"]
    if "<think>" in miss:
        cause = "a reasoning chain: name a `chat_template_path` that closes the think block"
    elif report.get("first_miss_lacks_end"):
        cause = "a label with more after it: not trained on this task, or trained too little to end"
    elif not miss.replace("<|im_end|>", "").replace("<|endoftext|>", "").strip():
        cause = "an empty answer: the end token was trained without the label, or the prompt ends in another token"
    else:
        cause = "other words than the labels: not trained on this task, or trained too little"
    share = f"{report['share']:.0%} of {report['rows']}"
    return f"greedy answers: {share} are a label and its end; the first miss is {miss!r}, {cause}"
