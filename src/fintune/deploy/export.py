"""Plain weights of a trained run: an adapter merged into its base, checked against the run, with a model card."""

import json
import shutil
from itertools import count, islice, product
from pathlib import Path

import numpy as np

from fintune.data.inputs import Input, as_input
from fintune.deploy.classifier import Classifier
from fintune.errors import UserError
from fintune.files import check_writable, modes_of_umask
from fintune.recipe.layers import read_layer
from fintune.results.card import write_card
from fintune.results.verify import read_result

# the Hub's client and the model libraries take seconds to import: only the functions that need them do

ROWS = 256  # that the run and what is exported must label the same
MAY_DIFFER = 0.01  # share of labels in 16 bits, where a near tie may fall the other way; in float32 none may


def export(run_dir: Path, target: Path, push: str | None, base: Path | None = None) -> None:
    """Write a run as weights that transformers, servers such as vLLM, or scikit-learn load without this project.

    Args:
        run_dir: a run of any training script; of a frozen encoder's the encoder itself is not written.
        target: a new folder.
        push: repository on the Hub that it is sent to, such as me/sentiment.
        base: see `Classifier.from_pretrained`.

    Raises:
        UserError: `target` or its `.partial` exists, `run_dir` is not a finished run, what was written answers
            otherwise than the run, or the Hub does not take it.
    """
    check_new(target)
    check_writable(target.parent)
    result = read_result(run_dir)
    staging = target.with_name(target.name + ".partial")
    try:
        staging.mkdir(parents=True)
    except FileExistsError as error:
        remedy = "remove it if it is of an export that was killed, or name another folder"
        raise UserError(f"{staging}: already exists; {remedy}") from error

    try:
        classifier = Classifier.from_pretrained(run_dir, merge=False, base=base)
        texts = inputs_to_check(run_dir)
        _, expected = classifier(texts)
        classifier.scorer.save_merged(staging, run_dir)
        check = compare(classifier, staging, texts, expected)
        print(f"{check['same']} of {check['rows']} labels equal, probabilities to {check['largest_difference']:.1e}")
        stated, encoder = read_layer(run_dir / "recipe.yaml"), classifier.scorer.encoder
        write_card(staging, result, stated, encoder, push or target.name, bool(push), check)
        modes_of_umask(staging)
        check_new(target)  # again: it took minutes
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    staging.rename(target)
    print(f"written: {target}")
    if push:
        push_to_hub(target, push)


def check_new(target: Path) -> None:
    if target.exists():
        raise UserError(f"{target}: already exists; name a new folder")


def inputs_to_check(run_dir: Path) -> list[Input]:
    """256 texts of the run's test split, and where it has fewer, several joined, with the columns of the first.

    Raises:
        UserError: there is none, or a line is not what an evaluation writes, as in a run of an earlier version, which
            has no hash of the file.
    """
    path = run_dir / "predictions.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        found = bool(rows) and all(isinstance(row["text"], str) for row in rows)
    except (ValueError, KeyError, TypeError, RecursionError):
        found = False
    if not found:
        raise UserError(f"{path}: holds no rows with texts; score the run again with evaluate.py")
    some = (several for length in count(1) for several in product(rows, repeat=length))
    joined = (as_input(" ".join(row["text"] for row in each), each[0].get("columns", {})) for each in some)
    return list(islice(joined, ROWS))


def compare(classifier: Classifier, folder: Path, texts: list[Input], expected: np.ndarray) -> dict:
    """Label the texts with what was written, read again as anyone would; the classifier then holds that model.

    Args:
        expected: (texts, labels) probabilities of the run.

    Raises:
        UserError: too many labels differ.
    """
    share = 0.0 if classifier.scorer.exact else MAY_DIFFER
    classifier.scorer = classifier.scorer.reloaded(folder)
    _, found = classifier(texts)
    same = int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
    if len(texts) - same > share * len(texts):
        raise UserError(
            f"{folder}: {len(texts) - same} of {len(texts)} labels differ from the run's, so nothing is exported; "
            "train the run again"
        )
    return {"rows": len(texts), "same": same, "largest_difference": float(np.abs(found - expected).max())}


def push_to_hub(folder: Path, repository: str) -> None:
    """Send the folder to a private repository, which its owner may open; the token is HF_TOKEN's.

    Raises:
        UserError: the repository is public already, or the Hub does not take it.
    """
    from huggingface_hub import HfApi

    hub = HfApi()
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        private = hub.repo_info(repository).private
        if private:
            hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload from fintune export")
    except Exception as error:  # whatever the Hub or the network says: the folder is kept
        raise UserError(
            f"--push {repository}: {type(error).__name__}: {' '.join(str(error).split())}; {folder} is complete: set "
            f"HF_TOKEN, or connect, and send it with `hf upload --private {repository} {folder}`"
        ) from error
    if not private:
        raise UserError(f"--push {repository}: is public; make it private, or name another one; {folder} is complete")
    print(f"sent to {repository}, private")
