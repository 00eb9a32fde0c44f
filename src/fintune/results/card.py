"""The model card of a run: README.md in its folder, and in what is exported from it."""

from pathlib import Path

from fintune.data.inputs import as_input
from fintune.files import write_text
from fintune.recipe.layers import TINY
from fintune.results.verify import CASCADE

# the Hub's client takes a second to import: only the function that needs it does

TEMPLATE = Path(__file__).with_name("model-card.md.jinja")
EXAMPLE = "Alder raised its dividend again"
INVENTED = "Apache 2.0 (invented rows)"  # the licence of the samples
LICENCES = {  # as the Hub spells them
    "CC BY-NC-SA 3.0": "cc-by-nc-sa-3.0",
    "MIT": "mit",
    "Apache 2.0": "apache-2.0",
    INVENTED: "apache-2.0",
    "CC BY 4.0": "cc-by-4.0",
}


def write_card(
    folder: Path, result: dict, recipe: dict, encoder, name: str, on_hub: bool = False, check: dict | None = None
) -> None:
    """README.md of a folder that holds a run's model, as the Hub reads it.

    Args:
        result: metrics.json of the run.
        recipe: the keys that the run's recipe states.
        encoder: the scorer's, see `fintune.scoring.scorer.Encoder`; a language model's is a `Prompt`.
        name: what the card's example loads.
        on_hub: whether that is a repository.
        check: what the export found when it set its weights beside the run's; None in the run's own folder.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    test = result["test"]
    linear = recipe.get("linear_model")  # majority, tfidf or embedding
    kind = linear or {"train_sft.py": "causal", "train_cls.py": "encoder", CASCADE: "cascade"}[result["script"]]
    causal, adapter = kind == "causal", (folder / "adapter_config.json").is_file()
    licence = result["data"]["license"]
    figures = {"accuracy": test["accuracy"], "f1": test["macro_f1"], "matthews_correlation": test["mcc"]}
    base = result["model"]["base"]
    path = Path(base).is_absolute() or base.startswith((".", "~"))  # maybe of another machine
    # a path would tell of this machine, and help nobody else
    local = base in (TINY, linear, "cascade") or path or Path(base).is_dir()
    columns = result["data"].get("columns", [])
    marked = as_input("HEADLINE", {name: f"<{name}>" for name in columns})
    card_data = ModelCardData(
        model_name=result["name"],
        base_model=None if local else base,
        license=LICENCES.get(licence, "other"),
        library_name="sklearn" if linear else None if kind == "cascade" else "peft" if adapter else "transformers",
        pipeline_tag="text-generation" if causal else "text-classification",
        tags=["finance", "text-classification"],
        eval_results=[
            EvalResult("text-classification", "file", result["task"], metric, value, dataset_split="test")
            for metric, value in figures.items()
        ],
    )
    card = ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATE),
        kind=kind,
        adapter=adapter,
        name=name,
        on_hub=on_hub,
        base=Path(base).name if local else base,
        local=local,
        example=EXAMPLE,
        asked=repr({"text": EXAMPLE, **{name: name.upper() for name in columns}} if columns else EXAMPLE),
        columns=columns,
        example_columns={name: name.upper() for name in columns},
        pair="; ".join(f"{name}: {name.upper()}" for name in columns),  # as `EncoderInput` writes them
        turn=repr(encoder.turn(marked)) if causal else None,
        answer_tokens=max(map(len, encoder.label_ids)) if causal else None,
        quoted_revision=repr(recipe.get("model_revision")),
        max_length=encoder.max_length,
        use_rslora=recipe.get("use_rslora"),
        packages=("scikit-learn", "skops") if linear else ("torch", "transformers", "trl", "peft"),
        **{"result": result, "test": test, "licence": licence, "check": check},
    )
    write_text(folder / "README.md", str(card))
