"""A finished run as a function from texts to labels, whatever kind of model it holds."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fintune import classifier, runs
from fintune.calibration import scaled, threshold_for
from fintune.classifier import ClassifierArguments, PlainText
from fintune.errors import UserError
from fintune.prompt import Prompt
from fintune.recipe import RunArguments, parse_recipe
from fintune.scoring import Scorer
from fintune.tables import fault_of

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, PreTrainedModel, TrainingArguments
from trl import ModelConfig, SFTConfig

HERE = ("--report_to", "none", "--bf16", "false")  # bf16 is of training; the weights keep their dtype


@dataclass
class Classifier:
    """Labels texts with a finished run: `Classifier.from_pretrained("runs/topic/tiny")(["Oil climbs 3 %"])`.

    Attributes:
        names: the label names, in the order of the probabilities.
        calibration: of the run's metrics.json; see fintune/calibration.py.
        max_length: tokens of a prompt or text; longer texts lose their end.
        model, encoder: what scores, and what turns texts into its token ids.
    """

    names: list[str]
    calibration: dict
    max_length: int
    model: PreTrainedModel | PeftModel
    encoder: Prompt | PlainText

    def __post_init__(self):
        if isinstance(self.encoder, Prompt):
            self._model_probabilities = Scorer(self.model, self.encoder).probabilities
        else:
            self._model_probabilities = partial(classifier.probabilities, self.model, self.encoder)

    @classmethod
    def from_pretrained(cls, run_dir: str | Path, merge: bool = True) -> "Classifier":
        """Load a run of train_sft.py or train_cls.py: its base, its adapter, its templates and its temperature.

        Args:
            merge: add the adapter to the weights where they are float32: exact to 1e-6, and a score half as long.

        Raises:
            UserError: the folder is no finished run, is one of train_linear.py, which keeps no weights, holds other
                files than were saved, or its adapter belongs to another base.
        """
        folder = Path(run_dir)
        result = runs.read_result(folder)
        runs.check_weights(folder)
        runs.check_files(folder, result)
        recipe_path = [str(folder / "recipe.yaml"), *HERE]
        if (folder / "adapter_config.json").is_file():
            recipe = parse_recipe(recipe_path, RunArguments, SFTConfig, ModelConfig)
            run_args, training_args, model_args = recipe.args
            base = runs.base_of(folder, model_args)
            runs.check_base(folder, result, base, model_args)
            tokenizer = runs.load_tokenizer(str(folder), model_args.model_revision, training_args.chat_template_path)
            prompt = Prompt(recipe.task, tokenizer, training_args.max_length)
            model = runs.load_model(model_args, base, training_args.device, run_args.key_value_heads, folder)
            if merge and model.dtype == torch.float32 and not model_args.load_in_4bit:
                model = model.merge_and_unload()
        else:
            recipe = parse_recipe(recipe_path, ClassifierArguments, TrainingArguments)
            model_args, training_args = recipe.args
            tokenizer = runs.load_tokenizer(str(folder), None, None)
            with runs.missing_model(str(folder)):
                model, loading = AutoModelForSequenceClassification.from_pretrained(
                    folder,
                    use_safetensors=True,
                    trust_remote_code=False,
                    attn_implementation="sdpa",
                    output_loading_info=True,
                )
            if missing := sorted(loading["missing_keys"]):
                raise UserError(
                    f"{folder}: its weights lack {missing[0]}; copy the run's folder again, or train again"
                )
            model.to(training_args.device)
            prompt = PlainText(tokenizer, model.config, model_args.max_length)
        return cls(recipe.task.names, runs.calibration_of(result), prompt.max_length, model, prompt)

    def __call__(self, texts: list[str]) -> tuple[list[str], np.ndarray]:
        """
        Args:
            texts: non-empty strings; control tokens inside them stay plain characters.

        Returns:
            The label of each text, and its calibrated probabilities, (texts, labels) float64 in the order of `names`.

        Raises:
            UserError: a text is not a string, or empty.
        """
        for row, text in enumerate(texts):
            if fault := fault_of(text):
                raise UserError(f"text {row}: {fault}; every text must be a non-empty string")
        probabilities = scaled(self._model_probabilities(list(texts)), self.calibration["temperature"])
        return [self.names[label] for label in probabilities.argmax(axis=1)], probabilities

    @property
    def cut_texts(self) -> int:
        """How many texts were cut to `max_length` so far."""
        return self.encoder.cut_texts

    def threshold(self, target_accuracy: float) -> float:
        """The confidence from which on the run's validation rows were right in that share; see `threshold_for`."""
        return threshold_for(self.calibration, target_accuracy)
