"""The table at the end of a run, and what a model's own answers tell."""

from rich.console import Console
from rich.table import Table


def print_result(result: dict) -> None:
    """Print a run's figures, the paper's where there is one, and a note where the rows are invented."""
    split, test = result["split"], result[result["split"]]
    low, high = test["accuracy_interval"]
    table = Table(
        title=f"{result['task']}: {result['name']} on {split}, {test['rows']} rows ({result['data']['source']})"
    )
    table.add_column("figure")
    table.add_column("this run", justify="right")
    rows = {
        "accuracy": test["accuracy"],
        f"  on {test['rows_clean']} rows not in training": test["accuracy_clean"],
        "macro F1": test["macro_f1"],
        "MCC": test["mcc"],
        "log-loss": test["log_loss"],
        "ECE, calibrated": test["ece"],
        "ECE before": test["ece_uncalibrated"],
    }
    for name, value in rows.items():
        table.add_row(name, f"{value:.4f}")
        if name == "accuracy":
            table.add_row("  95 % interval", f"{low:.4f} to {high:.4f}")
    table.add_row("rows per second", f"{test['rows_per_second']:.1f}")
    if result["paper"] and result["paper"]["accuracy"]:
        table.add_row(f"paper's accuracy ({result['paper']['row']})", f"{result['paper']['accuracy']:.4f}")
    Console().print(table)
    if result["data"]["source"] == "sample":
        print("The sample's rows are invented: this shows that the method runs, not how well it labels finance.")
    if explanation := explain_greedy(test.get("greedy_label_rate")):
        print(explanation)


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
