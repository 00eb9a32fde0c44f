"""Deliberate mutants: each breaks one thing that silently ruins results, and some test must turn red.

make mutants        # some minutes on two cores; the tree itself is not touched
"""

import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

ROOT = Path(__file__).resolve().parents[1]

# what breaks, file, text, text of the mutant, tests that must notice
MUTANTS = [
    (
        "alpha / r for alpha / sqrt(r)",
        "src/fintune/model/adapter.py",
        "    config = get_peft_config(model_args)\n",
        "    model_args.use_rslora = False\n    config = get_peft_config(model_args)\n",
        "tests/test_end_to_end.py",
    ),
    (
        "the routers' loss lost with a shared line",
        "src/fintune/training/own_forward.py",
        "    if collator and router:\n        why",
        "    if False:\n        why",
        "tests/test_bases.py",
    ),
    (
        "end token dropped from the labels",
        "src/fintune/model/prompt.py",
        '"labels": [IGNORE] * len(text_ids) + label_ids}',
        '"labels": [IGNORE] * len(text_ids) + [*label_ids[:-1], IGNORE]}',
        "tests/test_prompt.py",
    ),
    (
        "logits off by one",
        "src/fintune/training/shared_prefix.py",
        "where = (targets != IGNORE).nonzero().squeeze(1)",
        "where = (targets != IGNORE).nonzero().squeeze(1) - 1",
        "tests/test_trainer.py",
    ),
    (
        "rows left in the order of their lengths",
        "src/fintune/model/encoder.py",
        "yield [start + row for row in rows], ",
        "yield sorted(start + row for row in rows), ",
        "tests/test_baselines.py",
    ),
    (
        "no normalisation in Baichuan2's head",
        "src/fintune/model/baichuan.py",
        "yield key, _unit_rows(tensor)",
        "yield key, tensor",
        "tests/test_llama_baichuan.py",
    ),
    (
        "noise left on after an interrupted run",
        "src/fintune/training/checkpoints.py",
        "deactivate_neftune(trainer.model, handle, trainer.accelerator)",
        "pass",
        "tests/test_trainer.py",
    ),
    (
        "noise and dropout left on while scoring",
        "src/fintune/model/forward.py",
        "    model.eval()\n",
        "    pass\n",
        "tests/test_scoring.py",
    ),
    (
        "noise scaled by the length of all packed rows",
        "src/fintune/training/shared_prefix.py",
        "self.args.neftune_noise_alpha * math.sqrt(longer)",
        "self.args.neftune_noise_alpha",
        "tests/test_trainer.py",
    ),
    (
        "the prompt trained on, not the label alone",
        "src/fintune/model/prompt.py",
        '"labels": [IGNORE] * len(text_ids) + label_ids}',
        '"labels": text_ids + label_ids}',
        "tests/test_prompt.py",
    ),
    (
        "control tokens of a headline let through",
        "src/fintune/model/prompt.py",
        "sanitize_control_tokens=True",
        "sanitize_control_tokens=False",
        "tests/test_prompt.py",
    ),
    (
        "a text truncated after the label's room",
        "src/fintune/model/prompt.py",
        "self._room = max_length - self._longest_label",
        "self._room = max_length",
        "tests/test_prompt.py",
    ),
    (
        "a chat template that leaves the text out",
        "src/fintune/model/prompt.py",
        "if empty == probe:",
        "if False:",
        "tests/test_prompt.py",
    ),
    (
        "near-duplicates spread over the splits",
        "src/fintune/data/splits.py",
        "members.setdefault(int(group), []).append(row)",
        "members.setdefault(len(members), []).append(row)",
        "tests/test_data.py",
    ),
    (
        "leaked rows counted as clean",
        "src/fintune/data/load.py",
        'clean=[row_key(row) not in seen for row in rows["test"]]',
        'clean=[(row["text"],) not in seen for row in rows["test"]]',
        "tests/test_data.py tests/test_audit.py",
    ),
    (
        "a checkpoint's hashes not looked at",
        "src/fintune/files.py",
        "elif sha256(folder / name) != expected:",
        "elif False:",
        "tests/test_end_to_end.py",
    ),
    (
        "temperature multiplied instead of divided by",
        "src/fintune/scoring/calibration.py",
        "logs = _logs(probabilities) / temperature",
        "logs = _logs(probabilities) * temperature",
        "tests/test_metrics.py",
    ),
    (
        "a sure model's temperature fitted on probabilities above 1e-12 alone",
        "src/fintune/scoring/calibration.py",
        "np.clip(probabilities, 1e-300, None)",
        "np.clip(probabilities, 1e-12, None)",
        "tests/test_metrics.py",
    ),
    (
        "what follows a link without a space taken for a part of it",
        "src/fintune/data/same_text.py",
        "[!-~\\u00a1-\\u024f]+",
        "\\S+",
        "tests/test_near_duplicates.py",
    ),
    (
        "a workbook's hidden sheet read before the one that is seen",
        "src/fintune/data/excel_file.py",
        'sheet.sheet_state != "visible"',
        'sheet.sheet_state == "visible"',
        "tests/test_brought.py",
    ),
    (
        "repeated texts answered by another's scores",
        "src/fintune/deploy/answers.py",
        "digest_size=16).digest() for given in inputs]",
        "digest_size=1).digest() for given in inputs]",
        "tests/test_predict.py",
    ),
    (
        "answers of a batch handed to the wrong request",
        "src/fintune/deploy/batcher.py",
        "scores[[rows[key_of(text)] for text in part]]",
        "scores[: len(part)]",
        "tests/test_serve.py",
    ),
    (
        "the texts of a batch said to be cut in another order",
        "src/fintune/model/encoder.py",
        "[cut[row] for row in rows]",
        "cut[: len(rows)]",
        "tests/test_long_texts.py",
    ),
    (
        "scores that a disk damaged believed",
        "src/fintune/deploy/answers.py",
        "if found and self._is_sound(*found):",
        "if found:",
        "tests/test_labelling.py",
    ),
    (
        "a cascade's stage answering what it is not sure of",
        "src/fintune/scoring/guarantee.py",
        "sure = ask(stage, left) >= threshold",
        "sure = ask(stage, left) >= 0",
        "tests/test_guarantee.py",
    ),
    (
        "class weights left out of the loss",
        "src/fintune/training/shared_prefix.py",
        "label_smoothing=smoothing) * weights).sum()",
        "label_smoothing=smoothing)).sum()",
        "tests/test_class_weights.py",
    ),
]


def main() -> None:
    with ThreadPoolExecutor(2) as pool:
        sound = ("none", "README.md", "# fintune", "# fintune")
        tests = sorted({mutant[-1] for mutant in MUTANTS})
        broken = [name for name, red in pool.map(try_one, [(*sound, one) for one in tests]) if red]
        if broken:  # a test that fails anyway proves nothing of a mutant
            sys.exit("a test fails without any mutant")
        alive = [name for name, caught in tqdm(pool.map(try_one, MUTANTS), total=len(MUTANTS)) if not caught]
    print(f"{len(MUTANTS) - len(alive)} of {len(MUTANTS)} mutants turn a test red")
    for name in alive:
        print(f"alive: {name}")
    sys.exit(1 if alive else 0)


def try_one(mutant: tuple) -> tuple[str, bool]:
    """Whether a test fails on a copy of the tree with the mutant in it."""
    name, file, text, changed, tests = mutant
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", "runs", "wandb", "*cache*"))
        path = copy / file
        content = path.read_text(encoding="utf-8")
        assert content.count(text) == 1 or text == changed, (
            f"{file}: {content.count(text)} times {text!r}; fix the mutant {name!r}"
        )
        path.write_text(content.replace(text, changed), encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
        environment = {
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(copy / "src"),
            "OMP_NUM_THREADS": "1",
            "HOME": folder,
        }
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=1200)
        # a test that failed; an error (no test, a broken import or fixture) is no proof
        failed = done.returncode == 1 and "\nFAILED " in done.stdout
        if not failed and done.returncode:
            print(f"{name}: pytest ended with {done.returncode}: {done.stdout[-500:]}")
        return name, failed


if __name__ == "__main__":
    main()
