"""Encoders with a classification head: token ids of a text alone, label probabilities, and the model itself."""

import time
from dataclasses import dataclass, field

from fintune import runs
from fintune.calibration import calibrate
from fintune.data import TaskData
from fintune.errors import UserError
from fintune.task import Task

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.utils import cached_file


@dataclass
class ClassifierArguments:
    """What a classifier's recipe says beyond TrainingArguments; the names are those of its siblings."""

    model_name_or_path: str = field(metadata={"help": "Encoder on the Hub, or a local folder with safetensors."})
    model_revision: str | None = field(default=None, metadata={"help": "Commit of the Hub repository."})
    max_length: int = field(default=360, metadata={"help": "Tokens of a text with its special tokens; it is cut."})
    early_stopping_patience: int = field(
        default=3, metadata={"help": "Evaluations on validation without a better one after which training ends."}
    )
    paper_row: str | None = field(
        default=None, metadata={"help": "Row of the paper's Table 4 that this run is set beside, such as bert."}
    )
    min_gpu_gib: float = field(
        default=0.0, metadata={"help": "Free GPU memory the run needs; with less it is refused before any download."}
    )


class PlainText:
    """A text's own tokens between the encoder's special ones: no instruction, no label.

    Attributes:
        cut_texts: how many of the texts encoded so far were cut to `max_length`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, max_length: int):
        """
        Args:
            config: the model's, for its end token, its padding token and the positions it knows.
            max_length: tokens of a text with its special tokens; longer ones lose their end.

        Raises:
            UserError: tokenizer and model do not fit each other, or `max_length` is more than the model can read.
        """
        self.tokenizer, self.max_length = tokenizer, max_length
        self.cut_texts = 0
        # T5 and BART read their answer at the end token: one of it, at the end, or another token is read
        self._end = config.eos_token_id if config.is_encoder_decoder else None
        name, pad = tokenizer.name_or_path, tokenizer.pad_token_id
        if pad is None or pad != config.pad_token_id:
            raise UserError(
                f"{name}: the tokenizer pads with {pad}, the model takes {config.pad_token_id} for padding; "
                "mend `pad_token` in tokenizer_config.json or `pad_token_id` in config.json"
            )
        positions = min(tokenizer.model_max_length, getattr(config, "max_position_embeddings", max_length))
        if max_length > positions:
            raise UserError(f"{name}: max_length is {max_length}, the model reads {positions} tokens; lower it")

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text; control tokens inside it (`[SEP]`, `</s>`) stay plain characters.

        Raises:
            UserError: a text does not end in the end token that the model reads its answer at.
        """
        if not texts:
            return []
        rows = self.tokenizer(list(texts), split_special_tokens=True, verbose=False)["input_ids"]
        cut = [row for row, ids in enumerate(rows) if len(ids) > self.max_length]
        self.cut_texts += len(cut)
        for row in cut:
            rows[row] = self.tokenizer(
                texts[row], split_special_tokens=True, truncation=True, max_length=self.max_length
            )["input_ids"]
        if self._end is not None:
            for text, ids in zip(texts, rows, strict=True):
                if ids[-1:] != [self._end] or ids.count(self._end) != 1:
                    raise UserError(
                        f"{self.tokenizer.name_or_path}: {text[:40]!r} has {ids.count(self._end)} end tokens and ends "
                        f"in {self.tokenizer.decode(ids[-1:])!r}; the model reads its answer at one end token, so let "
                        "the tokenizer's post-processor add it (`add_eos_token` or tokenizer.json)"
                    )
        return rows

    def training_rows(self, rows: Dataset) -> Dataset:
        """`input_ids` and `labels` (the label id) of each row, in the rows' order."""
        return Dataset.from_dict({"input_ids": self.encode(rows["text"]), "labels": list(rows["label"])})

    def show(self, row: dict) -> str:
        """A training row as text, special tokens included."""
        return self.tokenizer.decode(row["input_ids"])


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, base: str, revision: str | None, texts: list[str]) -> None:
    """Refuse a tokenizer that AutoTokenizer rebuilt otherwise than the base's tokenizer.json says.

    transformers 5 builds normaliser and pre-tokeniser from code, so an encoder could be handed other tokens than it
    was pre-trained on. Where the base has no tokenizer.json there is nothing to compare with.

    Raises:
        UserError: the two differ on one of the texts.
    """
    path = cached_file(base, "tokenizer.json", revision=revision, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return
    raw = Tokenizer.from_file(path)
    raw.no_truncation()
    raw.no_padding()
    texts = list(texts)
    ours = tokenizer(texts, verbose=False)["input_ids"]
    differing = [i for i, row in enumerate(raw.encode_batch(texts)) if row.ids != ours[i]]
    if differing:
        raise UserError(
            f"{base}: {type(tokenizer).__name__} reads {len(differing)} of {len(texts)} texts otherwise than its "
            f"tokenizer.json does, first {texts[differing[0]][:60]!r}; set `tokenizer_class` to "
            "PreTrainedTokenizerFast in the tokenizer_config.json of a local copy"
        )


def load_classifier(
    model_args: ClassifierArguments, base: str, task: Task, device: torch.device, seed: int
) -> PreTrainedModel:
    """The encoder in float32 with a new head whose outputs stand in the order of the task's labels.

    Args:
        seed: draws the head.

    Raises:
        UserError: the model is missing, gated, pickled or no encoder that transformers knows a head for; weights of
            the encoder itself are missing or of another shape.
    """
    names = task.names
    set_seed(seed)
    with runs.missing_model(base):
        stored = AutoConfig.from_pretrained(base, revision=model_args.model_revision, trust_remote_code=False)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            base,
            revision=model_args.model_revision,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={name: label for label, name in enumerate(names)},
            problem_type="single_label_classification",
            dtype=torch.float32,  # as stored, without this
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # another task's head; checked below
            output_loading_info=True,
        )
    inner = f"{model.base_model_prefix}."
    missing = sorted(loading["missing_keys"])
    wrong = [str(key[0] if isinstance(key, tuple) else key) for key in loading["mismatched_keys"]]
    damaged = [key for key in (*missing, *wrong) if key.startswith(inner) and ".pooler." not in key]
    if damaged:
        raise UserError(
            f"model {base}: {len(damaged)} weights are missing or misshapen, first {damaged[0]}; fetch again"
        )
    if any(name.endswith("ForSequenceClassification") for name in stored.architectures or ()):
        # its outputs are another task's labels in another order (FinBERT: positive, negative, neutral)
        outputs = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
        torch.nn.init.normal_(outputs.weight, std=getattr(stored, "initializer_range", 0.02))
        if outputs.bias is not None:
            torch.nn.init.zeros_(outputs.bias)
    print(
        f"model: {base} in {model.dtype}, {model.num_parameters():,} parameters, "
        f"attention {model.config._attn_implementation}, new: {', '.join(missing) or 'the output layer'}"
    )
    return model.to(device)


class LengthGrouped(LengthGroupedSampler):
    """transformers' sampler, each epoch's order drawn from the seed: a resumed epoch goes on in its own."""

    def __init__(self, *args, seed: int, **kwargs):
        super().__init__(*args, generator=torch.Generator(), **kwargs)
        self.seed = seed

    def set_epoch(self, epoch: int) -> None:
        self.generator.manual_seed(self.seed + epoch)


class ClassifierTrainer(Trainer):
    """Trainer whose `group_by_length` resumes within an epoch."""

    def _get_train_sampler(self, train_dataset: Dataset | None = None):
        rows = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length" or self.args.world_size > 1:
            return super()._get_train_sampler(rows)
        at_once = self.args.train_batch_size * self.args.gradient_accumulation_steps
        lengths = [len(ids) for ids in rows["input_ids"]]
        return LengthGrouped(at_once, lengths=lengths, seed=self.args.data_seed or self.args.seed)


def label_logits(logits: torch.Tensor | tuple, labels: torch.Tensor) -> torch.Tensor:
    """The (rows, labels) logits of what a Trainer collects; T5 returns its encoder's states behind them."""
    return logits[0] if isinstance(logits, tuple) else logits


def loss_of(weights: list[float] | None, label_smoothing: float = 0.0):
    """A Trainer's `compute_loss_func`: cross-entropy, times the weight of the row's class where there are weights.

    Summed and divided by the rows of the update, not of the micro-batch as in the models' own losses, so that
    gradient accumulation and several processes change nothing. Class weights average 1 over the training rows, so
    they leave the divisor alone.
    """

    def loss(outputs, labels: torch.Tensor, num_items_in_batch=None) -> torch.Tensor:
        logits, by_class = outputs.logits.float(), None if weights is None else torch.tensor(weights).to(labels.device)
        settings = {"reduction": "sum", "label_smoothing": label_smoothing}
        total = torch.nn.functional.cross_entropy(logits, labels, by_class, **settings)
        return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)

    return loss


def accuracy(prediction) -> dict[str, float]:
    """`eval_accuracy` of an evaluation on the validation split: what early stopping looks at."""
    return {"accuracy": float((prediction.predictions.argmax(axis=1) == prediction.label_ids).mean())}


@torch.no_grad()
def probabilities(
    model: PreTrainedModel, prompt: PlainText, texts: list[str], progress: str | None = None
) -> np.ndarray:
    """(texts, labels) probabilities in float64, in the order of `texts` and of the label ids.

    Args:
        progress: title of a progress bar; None shows none.
    """
    rows = prompt.encode(texts)
    tokens_per_batch = 4096 if model.device.type == "cpu" else 65536
    scores = np.empty((len(rows), model.config.num_labels))
    training = model.training
    model.eval()
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))  # like lengths together: little padding
    with tqdm(total=len(rows), desc=progress, disable=progress is None) as bar:
        while order:
            size = max(1, tokens_per_batch // max(1, len(rows[order[0]])))
            at_once, order = order[:size], order[size:]
            batch = prompt.tokenizer.pad({"input_ids": [rows[row] for row in at_once]}, return_tensors="pt")
            logits = model(**batch.to(model.device)).logits
            scores[at_once] = torch.softmax(logits.double(), dim=-1).cpu().numpy()
            bar.update(len(at_once))
    model.train(training)
    return scores


def calibrate_classifier(data: TaskData, prompt: PlainText, model: PreTrainedModel) -> dict:
    """`calibrate` on the validation split."""
    rows = data.splits["validation"]
    return calibrate(probabilities(model, prompt, rows["text"], progress="calibrating"), rows["label"])


def evaluate_classifier(
    task: Task, data: TaskData, prompt: PlainText, model: PreTrainedModel, temperature: float, split: str = "test"
):
    """Score a split; returns as `runs.score_split` does."""
    texts, cut_before = data.splits[split]["text"], prompt.cut_texts
    started = time.perf_counter()
    scores = probabilities(model, prompt, texts, progress=f"scoring {split}")
    metrics, predictions = runs.score_split(task, data, split, scores, temperature, time.perf_counter() - started)
    metrics["texts_cut"] = prompt.cut_texts - cut_before
    return metrics, predictions
