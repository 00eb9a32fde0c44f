"""Token ids of a prompt and of the labels: training and scoring both come here, so they cannot differ."""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import jinja2
import jinja2.meta
import jinja2.sandbox
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from fintune.data.inputs import Input, as_input, columns_of, input_fault, text_of, wanted
from fintune.data.load import inputs_of
from fintune.errors import UserError
from fintune.files import read_text
from fintune.model.cut import CHARACTERS, UNSURE, beginning, most
from fintune.recipe.task import Task

IGNORE = -100  # label id that the loss skips
NO_THINK = " /no_think"  # the paper's tag at the end of a user turn; words of Qwen3's, noise to any other model


class Prompt:
    """One user turn from the task's template, the assistant's empty think block, then a label and the end of turn.

    Attributes:
        label_ids: token ids of each label with its end token, in the order of the label ids.
        truncated_texts: how many of the texts encoded so far were truncated to fit `max_length`.
    """

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int):
        """
        Args:
            tokenizer: must have a chat template and an end token that is not its padding token.
            max_length: tokens of prompt, longest label and end token together; longer texts are truncated.

        Raises:
            UserError: the template has no `{{ text }}` or uses other columns than the task's, the tokenizer's chat
                template fails or leaves the text out, it has no usable end, a label cannot be told apart, or the
                instruction alone is longer than `max_length`.
        """
        self.task, self.tokenizer, self.max_length = task, tokenizer, max_length
        self.truncated_texts = 0
        self._template = _user_turn(task)
        self._remove = "" if "enable_thinking" in str(tokenizer.chat_template) else NO_THINK
        if tokenizer.chat_template is None or tokenizer.eos_token_id is None:
            raise UserError(f"{tokenizer.name_or_path}: no chat template or no end token; set `chat_template_path`")
        if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
            raise UserError(f"{tokenizer.name_or_path}: {padding_fault(tokenizer)}")
        # every added token, also those that the chat template does not hold, such as <|fim_prefix|>
        tokenizer.chat_control_tokens = [token for token in tokenizer.get_added_vocab() if not token.isspace()]
        control = {*tokenizer.chat_control_tokens, *tokenizer.all_special_tokens}
        self._control = re.compile(f"({'|'.join(map(re.escape, sorted(control, key=len, reverse=True)))})")
        self.label_ids = [[*self._ids_of(name), tokenizer.eos_token_id] for name in task.names]
        self._frame = lru_cache(4096)(lambda columns: len(self._render([as_input("", dict(columns))])[0]))
        try:
            self._check_labels()
            frame = self._frame(tuple((name, "") for name in task.columns))
            empty, probe = self._render([as_input(text, dict.fromkeys(task.columns, "")) for text in ("", "x")])
        except jinja2.TemplateError as error:
            raise UserError(
                f"{tokenizer.name_or_path}: its chat template fails ({type(error).__name__}: {error}); fix it, or "
                "name another in `chat_template_path`"
            ) from error
        if empty == probe:  # every row would be one and the same prompt
            raise UserError(
                f"{tokenizer.name_or_path}: its chat template leaves out what the user says; name another in "
                "`chat_template_path`"
            )
        self._longest_label = max(map(len, self.label_ids))
        self._room = max_length - self._longest_label
        if frame + self._longest_label >= max_length:
            raise UserError(
                f"{task.template}: the instruction takes {frame} tokens and a label up to {self._longest_label}; that "
                f"leaves no room for a text in max_length {max_length}; shorten it or raise max_length"
            )

    def encode(self, inputs: Sequence[Input]) -> list[list[int]]:
        """Prompt ids of each text; see `read`."""
        return self.read(inputs)[0]

    def read(self, inputs: Sequence[Input]) -> tuple[list[list[int]], list[bool]]:
        """Prompt ids of each text with its columns, up to where the label begins; and whether the text lost its end.

        Control tokens inside a text or a column (`<|im_end|>`, `<think>`, ...) stay plain characters. A text too long
        for `max_length` loses its own end, never a column, the instruction or the label, and is counted in
        `truncated_texts`.

        Raises:
            UserError: something is not a str, or empty; the columns leave no room for a text.
        """
        for row, given in enumerate(inputs):
            if input_fault(given, self.task.columns):
                raise UserError(f"text {row} is {given!r}; {wanted(self.task.columns)}")
        if not inputs:
            return [], []
        prompts = self._render([as_input(self._start(given), columns_of(given)) for given in inputs])
        cut = [False] * len(inputs)
        for row, given in enumerate(inputs):
            if len(prompts[row]) <= self._room and self._start(given) == text_of(given).strip():
                continue
            if fault := self.fault(given):
                raise UserError(f"text {row}: {fault}")
            end = self.bounds(given)[-1]
            prompts[row] = self._render([as_input(text_of(given)[:end], columns_of(given))])[0]
            cut[row] = end < len(text_of(given))
        self.truncated_texts += sum(cut)
        return prompts, cut

    def is_cut(self, given: Input) -> bool:
        """Whether a text with its columns is too long for `max_length`, so that its end is not read."""
        columns = columns_of(given)
        added = len(self.turn(given)) - len(self.turn(as_input("", columns)))
        # a character of ASCII is a token at most; where a text stands, tokens of the instruction may come apart
        if text_of(given).isascii() and self._frame(tuple(columns.items())) + added + UNSURE <= self._room:
            return False
        return self.bounds(given)[-1] < len(text_of(given))

    def bounds(self, given: Input) -> list[int]:
        """At which characters of a text the tokens that the prompt has room for begin, and where the last ends.

        That is the text's own end unless it is too long. Else it is where its longest beginning ends, between two
        of its tokens, whose prompt fits: found in the beginning alone, as if all of it were tokenised.
        """
        whole, columns = text_of(given), columns_of(given)
        text, room = whole.strip(), self._room
        before = len(whole) - len(whole.lstrip())
        _, starts = beginning(text, room + 1, self._starts)  # no text has room for so many
        ends = [*starts[1:], len(text)] if len(starts) <= room else starts[1:]

        def fits(tokens: int) -> bool:
            return len(self._render([as_input(text[: ends[tokens - 1]], columns)])[0]) <= room

        kept = most(len(ends), room - self._frame(tuple(columns.items())), fits)
        end = ends[kept - 1] if kept else 0
        return [*(before + start for start in starts[:kept]), len(whole) if end == len(text) else before + end]

    def fault(self, given: Input) -> str | None:
        """That its columns leave no room for a text; None where they do."""
        frame = self._frame(tuple(columns_of(given).items()))
        if frame + self._longest_label < self.max_length:
            return None
        return f"its columns take the prompt to {frame} tokens, of max_length {self.max_length}; shorten them"

    def training_rows(self, rows: Dataset, class_weights: list[float] | None = None) -> Dataset:
        """`input_ids` and `labels` of each row, in the rows' order: trained are the label's tokens and its end.

        With `class_weights`, one for each label id, also `weight`, by which the row's loss is multiplied.
        """

        def row(text_ids: list[int], label: int) -> dict:
            label_ids = self.label_ids[label]
            ids = {"input_ids": text_ids + label_ids, "labels": [IGNORE] * len(text_ids) + label_ids}
            return ids | ({"weight": class_weights[label]} if class_weights else {})

        return Dataset.from_list(
            [row(*pair) for pair in zip(self.encode(inputs_of(rows)), rows["label"], strict=True)]
        )

    def show(self, row: dict) -> str:
        """A training row as text, its trained tokens between ⟦ ⟧."""
        pieces = []
        for token, label in zip(row["input_ids"], row["labels"], strict=True):
            piece = self.tokenizer.decode([token])
            pieces.append(piece if label == IGNORE else f"⟦{piece}⟧")
        return "".join(pieces)

    def describe(self, row: dict) -> str:
        """What was truncated, and one training row."""
        return (
            f"{self.truncated_texts:,} texts truncated to {self.max_length} tokens\n"
            f"one row, its trained tokens in ⟦⟧:\n{self.show(row)}"
        )

    def turn(self, given: Input) -> str:
        """What the user says in the chat."""
        variables = {"text": text_of(given).strip(), "labels": self.task.names, **columns_of(given)}
        return self._template.render(variables).removesuffix(self._remove)

    def _render(self, inputs: Sequence[Input]) -> list[list[int]]:
        return self.tokenizer.apply_chat_template(
            [[{"role": "user", "content": self.turn(given)}] for given in inputs],
            add_generation_prompt=True,
            enable_thinking=False,  # the assistant's turn then opens with Qwen3's empty think block
            sanitize_control_tokens=True,
        )["input_ids"]

    def _start(self, given: Input) -> str:
        """As much of a text as is read at first; what is longer may fit too, and is looked at alone."""
        return text_of(given).strip()[: CHARACTERS * self.max_length]

    def _starts(self, text: str) -> list[int]:
        """At which characters the tokens of a text begin; those of a control token in it are tokens of plain text."""
        starts, at = [], 0
        for number, piece in enumerate(self._control.split(text)):
            plain = {"add_special_tokens": False, "split_special_tokens": number % 2 == 1, "verbose": False}
            offsets = self.tokenizer(piece, return_offsets_mapping=True, **plain)["offset_mapping"]
            starts += [at + start for start, _ in offsets]
            at += len(piece)
        return starts

    def _ids_of(self, name: str) -> list[int]:
        """Read after a line break: SentencePiece would put a space in front of what it takes for a first word."""
        line_break = self.tokenizer("\n", add_special_tokens=False)["input_ids"]
        ids = self.tokenizer("\n" + name, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids[len(line_break) :]

    def _check_labels(self) -> None:
        """The label must tokenise alone as it does after the prompt, and no label may spell another."""
        if len({tuple(ids) for ids in self.label_ids}) < len(self.label_ids):
            raise UserError(f"{self.task.task}: two labels have the same tokens among {self.task.names}; rename one")
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}], add_generation_prompt=True, enable_thinking=False, tokenize=False
        )
        frame = self.tokenizer(rendered, add_special_tokens=False)["input_ids"]
        for name, ids in zip(self.task.names, self.label_ids, strict=True):
            joint = self.tokenizer(rendered + name, add_special_tokens=False)["input_ids"]
            if joint != frame + ids[:-1]:
                raise UserError(
                    f"{self.task.task}: label {name!r} does not begin on a token boundary after the prompt; "
                    "end the chat template with a line break"
                )


def padding_fault(tokenizer: PreTrainedTokenizerBase) -> str:
    """What is wrong with a padding token that is missing or ends a turn too, and the recipe's key that mends it."""
    end, pad = tokenizer.eos_token, tokenizer.pad_token
    none = pad is None or (pad == tokenizer.unk_token and tokenizer.init_kwargs.get("pad_token") is None)
    turn = tokenizer.apply_chat_template(
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Up"}], tokenize=False
    )
    control = sorted(tokenizer.get_added_vocab().items(), key=lambda item: ("pad" not in item[0].lower(), item[1]))
    control = [token for token, _ in control if token not in (end, tokenizer.bos_token)]
    after = turn.rpartition("Up")[2].strip()
    ends = next((token for token in control if after.startswith(token)), None)
    free = end if ends else next((token for token in control if token not in turn), "<a token that no text holds>")
    fault = "there is no padding token" if none else f"the padding token equals the end token, {end}"
    flags = f"--pad_token '{free}'" if none or not ends else ""
    if ends:  # such as Qwen2.5's base
        fault += f", and the chat template ends a turn with {ends}"
        flags = f"--eos_token '{ends}' {flags}".strip()
    return f"{fault}; set {flags} (or the same keys in the recipe)"


def read_template(task: Task) -> str:
    """The text of a task's template.

    Raises:
        UserError: there is none, or it is not UTF-8.
    """
    try:
        return read_text(Path(task.template))
    except FileNotFoundError as error:
        raise UserError(
            f"{task.template}: no such template; write it, or set `template` in the task's YAML"
        ) from error


def _user_turn(task: Task) -> jinja2.Template:
    environment, source = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined), read_template(task)
    try:
        variables = jinja2.meta.find_undeclared_variables(environment.parse(source))
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{task.template}:{error.lineno}: {error.message}; fix the template") from error
    needed = {"text", *task.columns}
    if needed - variables or variables - needed - {"labels"}:
        must = " and ".join(f"{{{{ {name} }}}}" for name in ("text", *task.columns))
        raise UserError(
            f"{task.template}: uses {sorted(variables)}; it must use {must} and may use labels (other columns of the "
            "file after `columns` names them in the task's YAML)"
        )
    return environment.from_string(source)
