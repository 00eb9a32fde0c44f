"""Make plain weights of a trained run: an adapter merged into its base, checked, with a model card.

    python export.py runs/sentiment/qwen3-8b exported/sentiment [--push me/sentiment]

What it writes loads in transformers and in servers such as vLLM without this project. `--push` sends it to the Hub, to
a private repository; the token is HF_TOKEN's.
"""

import argparse
import json
import shutil
from itertools import count, islice, product
from pathlib import Path

import numpy as np
import torch
import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from fintune import runs
from fintune.classifier import PlainText
from fintune.deploy.classifier import Classifier
from fintune.errors import UserError, run
from fintune.files import write_text
from fintune.model.prompt import Prompt
from fintune.model.tiny import TINY

ROWS = 256  # that both must label the same
LICENCES = {"CC BY-NC-SA 3.0": "cc-by-nc-sa-3.0", "MIT": "mit", "Apache 2.0": "apache-2.0", "CC BY 4.0": "cc-by-4.0"}
MAY_DIFFER = {torch.float32: 0.0}  # share of them; else 0.01: a near tie may fall the other way in 16 bits


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="folder of a run of train_sft.py or train_cls.py")
    parser.add_argument("target", type=Path, help="a folder that is not there yet")
    parser.add_argument("--push", metavar="ID", help="repository on the Hub, such as me/sentiment")
    args = parser.parse_args(argv)
    if args.target.exists():
        raise UserError(f"{args.target}: is there already; name a new folder")
    result = runs.read_result(args.run_dir)
    classifier = Classifier.from_pretrained(args.run_dir, merge=False)
    texts = texts_to_check(args.run_dir)
    staging = args.target.with_name(args.target.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)  # of an export that was killed

    try:
        _, expected = classifier(texts)
        save(classifier, args.run_dir, staging)
        check = compare(classifier, staging, texts, expected)
        print(f"{check['same']} of {check['rows']} labels equal, probabilities to {check['largest_difference']:.1e}")
        write_card(staging, args.run_dir, classifier, result, check, args.push or args.target.name)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    staging.rename(args.target)
    print(f"written: {args.target}")
    if args.push:
        push(args.target, args.push)


def texts_to_check(run_dir: Path) -> list[str]:
    """256 texts: those of the run's test split, and where it has fewer, two or more of them behind each other."""
    lines = (run_dir / "predictions.jsonl").read_text(encoding="utf-8").split("\n")
    texts = [json.loads(line)["text"] for line in lines if line]
    joined = (" ".join(some) for length in count(1) for some in product(texts, repeat=length))
    return list(islice(joined, ROWS))


def save(classifier: Classifier, run_dir: Path, folder: Path) -> None:
    model, encoder = classifier.model, classifier.encoder
    if isinstance(model, PeftModel):
        if getattr(model.get_base_model(), "is_quantized", False):  # merging into 4 bits would round once more
            model = PeftModel.from_pretrained(model.unload().dequantize(), run_dir)
        model = model.merge_and_unload()
    if isinstance(encoder, Prompt):
        model.generation_config = GenerationConfig(  # Qwen3 ships do_sample: true
            do_sample=False,
            max_new_tokens=max(map(len, encoder.label_ids)),
            eos_token_id=encoder.tokenizer.eos_token_id,
            pad_token_id=encoder.tokenizer.pad_token_id,
        )
    model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)


def compare(classifier: Classifier, folder: Path, texts: list[str], expected: np.ndarray) -> dict:
    """Label the texts with what was written, read again as anyone would.

    Raises:
        UserError: too many labels differ.
    """
    auto = AutoModelForCausalLM if isinstance(classifier.encoder, Prompt) else AutoModelForSequenceClassification
    dtype, device = classifier.model.dtype, classifier.model.device
    classifier.model = classifier._model_probabilities = None  # frees it: two of them might not fit
    model = auto.from_pretrained(folder, dtype=dtype, use_safetensors=True, trust_remote_code=False).to(device)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encoder, most = classifier.encoder, classifier.max_length
    causal = isinstance(encoder, Prompt)
    encoder = Prompt(encoder.task, tokenizer, most) if causal else PlainText(tokenizer, model.config, most)
    _, found = Classifier(classifier.names, classifier.calibration, most, model, encoder)(texts)
    same = int((found.argmax(axis=1) == expected.argmax(axis=1)).sum())
    if len(texts) - same > MAY_DIFFER.get(dtype, 0.01) * len(texts):
        raise UserError(
            f"{folder}: {len(texts) - same} of {len(texts)} labels differ from the run's, so it is no {folder.stem}; "
            "look at what is in it, then train the run again"
        )
    return {"rows": len(texts), "same": same, "largest_difference": float(np.abs(found - expected).max())}


def write_card(folder: Path, run_dir: Path, classifier: Classifier, result: dict, check: dict, name: str) -> None:
    causal, test = isinstance(classifier.encoder, Prompt), result["test"]
    recipe = yaml.safe_load((run_dir / "recipe.yaml").read_text(encoding="utf-8"))
    invented = result["data"]["source"] == "sample"
    licence = "Apache 2.0 (invented rows)" if invented else result["data"]["license"]
    figures = {"accuracy": test["accuracy"], "f1": test["macro_f1"], "matthews_correlation": test["mcc"]}
    base = result["model"]["base"]
    path = Path(base).is_absolute() or base.startswith((".", "~"))  # maybe of another machine
    local = base == TINY or path or Path(base).is_dir()  # a path would tell of this machine, and help nobody else
    card_data = ModelCardData(
        model_name=result["name"],
        base_model=None if local else base,
        license="apache-2.0" if invented else LICENCES.get(licence, "other"),
        library_name="transformers",
        pipeline_tag="text-generation" if causal else "text-classification",
        tags=["finance", "text-classification"],
        eval_results=[
            EvalResult("text-classification", "file", result["task"], metric, value, dataset_split="test")
            for metric, value in figures.items()
        ],
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(Path(__file__).parent / "templates/model-card.md.jinja"),
        kind="causal" if causal else "encoder",
        name=name,
        base=Path(base).name if local else base,
        local=local,
        example="Alder raised its dividend again",
        turn=repr(classifier.encoder.turn("HEADLINE")) if causal else None,
        use_rslora=recipe.get("use_rslora"),
        temperature=classifier.calibration["temperature"],
        **{"result": result, "test": test, "licence": licence, "check": check},
    )
    write_text(folder / "README.md", str(card))


def push(folder: Path, repository: str) -> None:
    """To a private repository, which its owner may open.

    Raises:
        UserError: the repository is public already, or the Hub does not take it.
    """
    hub = HfApi()
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        private = hub.repo_info(repository).private
        if private:
            hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload from fintune's export.py")
    except Exception as error:  # whatever the Hub or the network says: the folder stands
        raise UserError(
            f"--push {repository}: {type(error).__name__}: {' '.join(str(error).split())}; {folder} is whole: set "
            f"HF_TOKEN, or connect, and send it with `hf upload --private {repository} {folder}`"
        ) from error
    if not private:
        raise UserError(f"--push {repository}: is public; make it private, or name another one; {folder} is whole")
    print(f"sent to {repository}, private")


if __name__ == "__main__":
    run(main)
