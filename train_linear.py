"""The simplest baselines: the commonest label, or scikit-learn's logistic regression on TF-IDF or a frozen encoder.

    python train_linear.py data/topic.yaml configs/baselines/tfidf.yaml

The sibling of train_sft.py: same rows, splits, metrics and files. Seconds on any CPU, with an encoder minutes.
"""

import fintune.interrupt  # noqa: F401  before what takes seconds to load

# isort: split
import time
from pathlib import Path

from fintune.data.load import inputs_of, load_data
from fintune.errors import run
from fintune.model.linear import LinearArguments, build_classifier, build_features, fit, linear_summary, transformed
from fintune.model.wheel import find_model
from fintune.recipe.recipe import parse_recipe
from fintune.results.folder import make_result, save_run
from fintune.results.summary import print_result
from fintune.scoring.calibration import fit_temperature
from fintune.scoring.linear_scorer import LinearScorer
from fintune.scoring.scorer import evaluate
from fintune.training import session, tracking


def main(argv: list[str]) -> None:
    recipe = parse_recipe(argv, LinearArguments, script="train_linear.py")
    task, run_args, name = recipe.task, recipe.run_args, recipe.run_args.model_name_or_path

    # Rows
    base, recipe.weights = find_model(name, run_args.model_revision, run_args.wheel) if name else (None, None)
    data = load_data(task, allow_sample=name is None or Path(name).is_dir())
    train, validation = data.splits["train"], data.splits["validation"]
    inputs = inputs_of(train)
    session.start(recipe, data, f"one row:\n{inputs[0]} -> {task.names[train[0]['label']]}")

    # The method: features once, one fit for each C, the best on validation is kept
    started, log, best = time.perf_counter(), [], -1.0
    features = build_features(run_args, base, inputs)
    known, held_out = transformed(features, inputs), transformed(features, inputs_of(validation))
    for C in run_args.C if run_args.linear_model != "majority" else [None]:
        candidate = fit(build_classifier(run_args, C, task.class_weights), known, train)
        accuracy = float((candidate.predict(held_out) == validation["label"]).mean())
        log.append({"C": C, "eval_accuracy": accuracy})
        print(f"validation: accuracy {accuracy:.4f} with C {C}")
        if accuracy > best:
            classifier, best = candidate, accuracy
    training = {"train_runtime": time.perf_counter() - started, "log": log, "best_eval_accuracy": best}
    summary = linear_summary(run_args, features, classifier, base, recipe.weights)

    # The score: probabilities of the labels on the test split, beside the paper's figure
    calibration = fit_temperature(classifier.predict_proba(held_out), validation["label"])
    scorer = LinearScorer(features, classifier)
    metrics, predictions = evaluate(scorer, task, data, calibration["temperature"])
    result = make_result(recipe, data, metrics, model=summary, training=training, calibration=calibration)
    save_run(recipe, result, predictions, scorer)
    print_result(result, recipe.folder)
    tracking.log_result(recipe, result, predictions)


if __name__ == "__main__":
    run(main)
