"""An encoder with a classification head, and the token ids that it reads."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BatchEncoding,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import cached_file

from fintune.data.inputs import Input, columns_of, text_of
from fintune.data.load import inputs_of
from fintune.errors import UserError
from fintune.model.batches import by_length, encoded_ahead
from fintune.model.cut import CHARACTERS, beginning, most
from fintune.model.load import missing_model
from fintune.recipe.recipe import ModelArguments
from fintune.recipe.task import Task

PLAIN = {"split_special_tokens": True, "verbose": False}  # control tokens inside a text stay plain characters


@dataclass(kw_only=True)
class EncoderArguments(ModelArguments):
    """Keys of train_cls.py."""

    model_name_or_path: str = field(metadata={"help": "Encoder on the Hub, or a local folder with safetensors."})
    model_revision: str | None = field(default=None, metadata={"help": "Commit of the Hub repository."})
    max_length: int = field(
        default=360, metadata={"help": "Tokens of a text with its special tokens; longer texts are truncated."}
    )
    early_stopping_patience: int = field(
        default=3, metadata={"help": "Evaluations on validation without a better one after which training ends."}
    )
    distillation_temperature: float = field(
        default=1.0, metadata={"help": "Divides the logits of teacher and pupil where the task has soft_labels."}
    )

    def __post_init__(self):
        if not 0 < self.distillation_temperature < math.inf:
            raise ValueError(f"distillation_temperature is {self.distillation_temperature}; it takes one above 0")


class EncoderInput:
    """A text's own tokens between the encoder's special ones: no instruction, no label.

    Columns are a second segment after the text, such as `ticker: AAPL; source: Reuters`.

    Attributes:
        truncated_texts: how many of the texts encoded so far were truncated to `max_length`.
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
        self.truncated_texts = 0
        self._tells_segments = "token_type_ids" in tokenizer.model_input_names and (
            getattr(config, "type_vocab_size", 0) > 1
        )
        self._frame = lru_cache(4096)(lambda pair: len(tokenizer("", pair or None, **PLAIN)["input_ids"]))
        # T5 and BART read their answer at the end token: one of it, at the end, or another token is read
        self._end = config.eos_token_id if config.is_encoder_decoder else None
        name, pad = tokenizer.name_or_path, tokenizer.pad_token_id
        if pad is None or pad != config.pad_token_id:
            raise UserError(
                f"{name}: the tokenizer pads with {pad}, the model takes {config.pad_token_id} for padding; "
                "fix `pad_token` in tokenizer_config.json or `pad_token_id` in config.json"
            )
        positions = getattr(config, "max_position_embeddings", max_length)
        positions = min(tokenizer.model_max_length, positions if positions > 0 else max_length)  # XLNet: -1, no bound
        if max_length > positions:
            raise UserError(f"{name}: max_length is {max_length}, the model reads {positions} tokens; lower it")

    def encode(self, inputs: Sequence[Input]) -> list[list[int]]:
        """Token ids of each text with its columns; see `read`."""
        return self.read(inputs)[0]["input_ids"]

    def read(self, inputs: Sequence[Input]) -> tuple[dict[str, list[list[int]]], list[bool]]:
        """`input_ids` of each text, with columns also the `token_type_ids` of a model that has them; and whether the
        text lost its end.

        Control tokens inside a text or a column (`[SEP]`, `</s>`) stay plain characters. Of what is too long the text
        loses its end, never a column.

        Raises:
            UserError: a text does not end in the end token that the model reads its answer at; its columns leave no
                room for it.
        """
        if not inputs:
            return {"input_ids": []}, []
        texts = [text_of(given) for given in inputs]
        pairs = [_second_segment(given) for given in inputs] if columns_of(inputs[0]) else None
        keys = ["input_ids", "token_type_ids"] if pairs and self._tells_segments else ["input_ids"]
        starts = [text[: CHARACTERS * self.max_length] for text in texts]  # what is longer is looked at alone
        found = self.tokenizer(starts, pairs, **PLAIN)
        rows, cut = found["input_ids"], [False] * len(inputs)
        for row, given in enumerate(inputs):
            if len(rows[row]) <= self.max_length and starts[row] == texts[row]:
                continue
            if fault := self.fault(given):
                raise UserError(f"text {row}: {fault}")
            start, ids = beginning(texts[row], self.max_length + 1, self._ids)
            cut[row] = len(ids) > self._room(given)
            settings = {**PLAIN, "truncation": "only_first", "max_length": self.max_length}
            shorter = self.tokenizer(start, pairs and pairs[row], **settings)
            for key in keys:
                found[key][row] = shorter[key]
        self.truncated_texts += sum(cut)
        if self._end is not None:
            ends = rows[0].count(self._end) if pairs else 1  # one after each segment
            for text, ids in zip(texts, rows, strict=True):
                if ids[-1:] != [self._end] or ids.count(self._end) != ends:
                    raise UserError(
                        f"{self.tokenizer.name_or_path}: {text[:40]!r} has {ids.count(self._end)} end tokens and ends "
                        f"in {self.tokenizer.decode(ids[-1:])!r}; the model reads its answer at one end token, so let "
                        "the tokenizer's post-processor add it (`add_eos_token` or tokenizer.json)"
                    )
        return {key: found[key] for key in keys}, cut

    def fault(self, given: Input) -> str | None:
        """That its columns leave no room for a text; None where they do."""
        if not columns_of(given) or self._room(given) > 0:
            return None
        frame = self.max_length - self._room(given)
        return f"its columns take {frame} tokens, of max_length {self.max_length}; shorten them"

    def is_cut(self, given: Input) -> bool:
        """Whether a text with its columns is too long for `max_length`, so that its end is not read."""
        room = self._room(given)
        if text_of(given).isascii() and len(text_of(given)) < room:  # of which a character is a token at most
            return False
        return len(beginning(text_of(given), room + 1, self._ids)[1]) > room

    def bounds(self, given: Input) -> list[int]:
        """At which characters of a text the tokens that there is room for begin, and where the last ends.

        That is the text's own end unless it is too long.

        Raises:
            UserError: the tokenizer does not say where its tokens begin.
        """
        text, room = text_of(given), self._room(given)
        if not self.tokenizer.is_fast:
            raise UserError(
                f"{self.tokenizer.name_or_path}: this tokenizer, written in Python, does not say where a token "
                "begins, so its texts have no windows; leave out --long split"
            )
        _, starts = beginning(text, room + 1, self._starts)
        ends = [*starts[1:], len(text)] if len(starts) <= room else starts[1:]
        kept = most(len(ends), room, lambda tokens: len(self._ids(text[: ends[tokens - 1]])) <= room)
        return [*starts[:kept], ends[kept - 1] if kept else 0]

    def _room(self, given: Input) -> int:
        """Tokens that a text may have beside the special ones and its columns."""
        return self.max_length - self._frame(_second_segment(given))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, **PLAIN)["input_ids"]

    def _starts(self, text: str) -> list[int]:
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **PLAIN)
        return [start for start, _ in offsets["offset_mapping"]]

    def batches(
        self, inputs: Sequence[Input], device: torch.device, progress: str | None = None
    ) -> Iterator[tuple[list[int], BatchEncoding, list[bool]]]:
        """Texts of like length together, padded, on the device.

        Args:
            progress: title of a progress bar; None shows none.

        Yields:
            (places in `inputs`; of these what `read` gives and `attention_mask`, each (texts, tokens); and whether
            each lost its end).
        """
        tokens_per_batch = 4096 if device.type == "cpu" else 65536
        with tqdm(total=len(inputs), desc=progress, disable=progress is None) as bar:
            for start, (features, cut) in encoded_ahead(inputs, self.read):
                for rows in by_length(list(map(len, features["input_ids"])), tokens_per_batch):
                    taken = {key: [values[row] for row in rows] for key, values in features.items()}
                    batch = self.tokenizer.pad(taken, return_tensors="pt")
                    yield [start + row for row in rows], batch.to(device), [cut[row] for row in rows]
                    bar.update(len(rows))

    def training_rows(self, rows: Dataset) -> Dataset:
        """`input_ids` and the like, and `labels` (the label id, or probabilities by label id), in the rows' order."""
        labels = "probabilities" if "probabilities" in rows.column_names else "label"
        return Dataset.from_dict({**self.read(inputs_of(rows))[0], "labels": list(rows[labels])})

    def describe(self, row: dict, names: list[str]) -> str:
        """What was truncated, and one training row, special tokens included."""
        text, label = self.tokenizer.decode(row["input_ids"]), row["labels"]
        if isinstance(label, list):
            answer = ", ".join(f"{name} {share:.4f}" for name, share in zip(names, label, strict=True))
        else:
            answer = names[label]
        return f"{self.truncated_texts:,} texts truncated to {self.max_length} tokens\none row:\n{text} -> {answer}"


def _second_segment(given: Input) -> str:
    return "; ".join(f"{name}: {value}" for name, value in columns_of(given).items())


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


def refuse_damaged(base: str, keys: Iterable[str]) -> None:
    """Refuse an encoder without all of its own weights; those of a pooler are learnt with the head, or not read.

    Args:
        keys: names of the encoder's weights that are missing or of another shape.

    Raises:
        UserError: one is not the pooler's.
    """
    damaged = sorted(key for key in keys if "pooler." not in key)
    if damaged:
        raise UserError(
            f"model {base}: {len(damaged)} weights are missing or of the wrong shape, first {damaged[0]}; fetch again"
        )


def load_encoder(base: str, revision: str | None, task: Task, device: torch.device, seed: int) -> PreTrainedModel:
    """The encoder in float32 with a new head whose outputs are in the order of the task's labels.

    Args:
        seed: draws the head.

    Raises:
        UserError: the model is missing, gated, pickled or no encoder that transformers knows a head for; weights of
            the encoder itself are missing or of another shape.
    """
    names = task.names
    set_seed(seed)
    with missing_model(base):
        stored = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=False)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            base,
            revision=revision,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={name: label for label, name in enumerate(names)},
            problem_type="single_label_classification",
            dtype=torch.float32,  # as stored, without this
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # another task's head; checked below
            output_loading_info=True,
        )
    inner = f"{model.base_model_prefix}."
    missing = sorted(loading["missing_keys"])
    wrong = [str(key[0] if isinstance(key, tuple) else key) for key in loading["mismatched_keys"]]
    refuse_damaged(base, [key for key in (*missing, *wrong) if key.startswith(inner)])
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
