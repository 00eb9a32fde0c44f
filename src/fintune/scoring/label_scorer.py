"""Exact label probabilities without generation: every token of every label and its end, in one forward per batch.

The instruction that all prompts share is computed once, and all labels follow a text as a tree whose branches do
not see each other: [instruction (cached) | text | label tree]. Log-probabilities equal those of scoring one label at a
time (float32: 1e-4), whatever the batch. A base whose layers do not fit this is found before it is used, and each of
its labels is scored by its own forward.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, GenerationConfig, PreTrainedModel

from fintune.data.inputs import Input
from fintune.model.attention import CACHED_PREFIX
from fintune.model.batches import by_length, encoded_ahead
from fintune.model.forward import common_prefix, evaluation, last_mlp_at, own_attention
from fintune.model.load import merged
from fintune.model.plain import FITS, log_likelihoods, misfit
from fintune.model.prompt import Prompt
from fintune.scoring.greedy import greedy_label_rate

OWN_AT_ONCE = 256  # texts whose rows of one length go together where a model's own forward scores them
GREEDY_ROWS = 64  # on which a model's own greedy answers are looked at


@dataclass
class LabelTree:
    """All labels as one tree of tokens; node 0 is the prompt's last token, the others are inputs after it.

    Attributes:
        tokens: token id of nodes 1..n, parents first.
        depth: distance of nodes 1..n from node 0.
        sees: (n, n) bool, whether node i + 1 may attend to node j + 1: its ancestors and itself.
        edges: (node, token) pairs whose log-probability is needed.
        paths: for each label the indices of its edges; their sum is the label's log-likelihood.
    """

    tokens: list[int]
    depth: list[int]
    sees: torch.Tensor
    edges: list[tuple[int, int]]
    paths: list[list[int]]


def label_tree(label_ids: list[list[int]]) -> LabelTree:
    """Merge label token sequences (each with its end token) that begin alike."""
    tokens, parents, depth = [], [], []
    children: dict[tuple[int, int], int] = {}
    edges: dict[tuple[int, int], int] = {}
    paths = []
    for ids in label_ids:
        node, path = 0, []
        for token in ids:
            path.append(edges.setdefault((node, token), len(edges)))
            if token == ids[-1] and len(path) == len(ids):
                break  # the end token is predicted, never read
            if (node, token) not in children:
                tokens.append(token)
                parents.append(node)
                depth.append(len(path))
                children[node, token] = len(tokens)
            node = children[node, token]
        paths.append(path)
    sees = torch.eye(len(tokens), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent:
            sees[node] |= sees[parent - 1]
    return LabelTree(tokens, depth, sees, list(edges), paths)


class LabelScorer:
    """Scores texts against a task's labels with one causal language model; see `fintune.scoring.scorer.Scorer`."""

    def __init__(self, model: PreTrainedModel, prompt: Prompt, tokens_per_batch: int | None = None):
        """
        Args:
            model: a causal language model, PEFT-wrapped or not; it is put into evaluation mode while scoring.
            tokens_per_batch: tokens in one forward; default 1,024 on the CPU, for its caches, and 32,768 on a GPU.
        """
        self.wrapped, self.encoder = model, prompt
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.tree = label_tree(prompt.label_ids)
        on_cpu = self.model.device.type == "cpu"
        self.tokens_per_batch = tokens_per_batch or (1024 if on_cpu else 32768)

    def probabilities(self, inputs: Sequence[Input], progress: str | None = None) -> np.ndarray:
        """(texts, labels) of `scores`."""
        return self.scores(inputs, progress)[0]

    def scores(self, inputs: Sequence[Input], progress: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(texts, labels) probabilities, see `log_likelihoods`; (texts,) whether the end of each was not read."""
        scores, truncated = self._read_and_scored(inputs, progress)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf))
        return scores / scores.sum(axis=1, keepdims=True), truncated

    def log_likelihoods(self, inputs: Sequence[Input], progress: str | None = None) -> np.ndarray:
        """Natural-log likelihood of each label with its end token after each text.

        Args:
            inputs: non-empty strings, or those with columns; see `Prompt.encode`.
            progress: title of a progress bar; None shows none.

        Returns:
            (texts, labels) float64, in the order of `inputs` and of the label ids.

        Raises:
            UserError: as `Prompt.encode`.
        """
        return self._read_and_scored(inputs, progress)[0]

    def _read_and_scored(self, inputs: Sequence[Input], progress: str | None) -> tuple[np.ndarray, np.ndarray]:
        """`log_likelihoods`; (texts,) whether the end of each was not read."""
        scores, prefix = np.empty((len(inputs), len(self.tree.paths))), None
        truncated = np.zeros(len(inputs), bool)
        with tqdm(total=len(inputs), desc=progress, disable=progress is None) as bar:
            for start, (prompts, cut) in encoded_ahead(inputs, self.encoder.read):
                truncated[start : start + len(cut)] = cut
                if self._fits(prompts):
                    prefix = prefix or self._prefix(prompts)
                    batches = self._by_tree(prompts, *prefix)
                else:
                    batches = self._by_own_forward(prompts)
                for rows, found in batches:
                    scores[[start + row for row in rows]] = found
                    bar.update(len(rows))
        return scores, truncated

    def check(self, inputs: Sequence[Input]) -> None:
        """Find out whether the tree fits this model, and say so where it does not; once for each model.

        Raises:
            UserError: the model's own forward fails, so that nothing can be scored.
        """
        self._fits(self.encoder.encode(inputs))

    def _fits(self, prompts: list[list[int]]) -> bool:
        """Whether the tree gives the model's own scores; asked again for a longer prompt, which a window may cut.

        Three prompts: the longest, the shortest, and the longest without a token in its middle, so that some are
        padded and some of each is cached, also where there is but one. Two labels: the longest and the shortest. So
        at most 6 rows by the model's own forward, and in 16 bits 12, about what 50 rows cost by the tree.
        """
        longest, known = max(prompts, key=len, default=[]), FITS.get(self.model, 0)
        if known is None or len(longest) <= known:
            return known is not None
        middle = len(longest) // 2
        some = [longest, min(prompts, key=len), longest[:middle] + longest[middle + 1 :]]
        labels = sorted(range(len(self.encoder.label_ids)), key=lambda label: len(self.encoder.label_ids[label]))
        labels = [labels[0], labels[-1]]

        def fast() -> np.ndarray:
            found = np.empty((len(some), len(self.tree.paths)))
            for rows, scores in self._by_tree(some, *self._prefix(some)):
                found[rows] = scores
            return found[:, labels].flatten()

        pairs = [(prompt, self.encoder.label_ids[label]) for prompt in some for label in labels]
        why = misfit(self.model, *map(list, zip(*pairs, strict=True)), fast)
        FITS[self.model] = None if why else len(longest)
        if why:
            print(
                f"scoring: {self.model.config.name_or_path} does not fit the fast path ({why}); each label is scored "
                f"by the model's own forward with attention {own_attention(self.model)}: exact, and slower",
                file=sys.stderr,
            )
        return not why

    def _by_own_forward(self, prompts: list[list[int]]) -> Iterator[tuple[list[int], np.ndarray]]:
        """As `_by_tree`, by the model's own forward of each prompt with each label."""
        labels = self.encoder.label_ids
        for start in range(0, len(prompts), OWN_AT_ONCE):
            rows = list(range(start, min(start + OWN_AT_ONCE, len(prompts))))
            pairs = [(prompts[row], label) for row in rows for label in labels]
            found = log_likelihoods(self.model, *map(list, zip(*pairs, strict=True)))
            yield rows, found.reshape(len(rows), len(labels))

    def _prefix(self, prompts: list[list[int]]) -> tuple[list[int], list[tuple[torch.Tensor, torch.Tensor]]]:
        """What these prompts begin with, and its keys and values."""
        prefix = prompts[0][: common_prefix(prompts)]
        with evaluation(self.model, CACHED_PREFIX):
            return prefix, self._prefix_cache(prefix) if prefix else []

    def _by_tree(
        self, prompts: list[list[int]], prefix: list[int], cache: list
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Rows of `prompts` that went together, and their (rows, labels) scores."""
        # one more token in place of a text, so that the whole of `prefix` may be shared
        shared = common_prefix([*prompts, [*prefix, -1]])
        known = [(keys[:, :, :shared], values[:, :, :shared]) for keys, values in cache] if shared else []
        lengths = [len(ids) - shared + len(self.tree.tokens) for ids in prompts]
        with evaluation(self.model, CACHED_PREFIX):
            for rows in by_length(lengths, self.tokens_per_batch):
                yield rows, self._score([prompts[row][shared:] for row in rows], known, shared)

    def _prefix_cache(self, prefix: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values of the shared instruction, (1, heads, prefix, head size) a layer."""
        cache = DynamicCache(config=self.model.config)
        ids = torch.tensor([prefix], device=self.model.device)
        self.model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.layers]

    def _score(self, suffixes: list[list[int]], prefix: list, shared: int) -> np.ndarray:
        device, tree = self.model.device, self.tree
        rows, text, nodes = len(suffixes), max(map(len, suffixes)), len(tree.tokens)
        pad = torch.tensor([text - len(ids) for ids in suffixes])
        ids = torch.full((rows, text + nodes), tree.tokens[0])
        for row, suffix in enumerate(suffixes):
            ids[row, pad[row] : text] = torch.tensor(suffix)  # padded in front: the tree begins at one column
        ids[:, text:] = torch.tensor(tree.tokens)

        column = torch.arange(text)
        position = torch.empty(rows, text + nodes, dtype=torch.long)
        position[:, :text] = (column - pad[:, None]).clamp(min=0)
        position[:, text:] = (text - 1 - pad)[:, None] + torch.tensor(tree.depth)
        sees = torch.zeros(rows, 1, text + nodes, shared + text + nodes, dtype=torch.bool)
        sees[..., :shared] = True
        sees[:, 0, :, shared : shared + text] = (column >= pad[:, None])[:, None, :]
        sees[:, :, :text, shared : shared + text] &= column <= column[:, None]
        sees[:, :, text:, shared + text :] = tree.sees
        sees[:, 0, column, shared + column] = True  # padding sees itself: a row of nothing would be NaN
        mask = torch.zeros(sees.shape, dtype=self.model.dtype).masked_fill_(~sees, -torch.inf)

        read = torch.arange(text - 1, text + nodes, device=device)  # where a label token is predicted
        with last_mlp_at(self.model, read):
            hidden = self.model.base_model(
                input_ids=ids.to(device),
                position_ids=(position + shared).to(device),
                use_cache=False,
                sees=mask.to(device),
                prefix=prefix,
            ).last_hidden_state
        return self._path_sums(hidden[:, read])

    def _path_sums(self, hidden: torch.Tensor) -> np.ndarray:
        """(rows, nodes + 1, hidden) states to (rows, labels) sums of log-probabilities along each label's path."""
        nodes, tokens = (torch.tensor(column, device=hidden.device) for column in zip(*self.tree.edges, strict=True))
        head = self.model.get_output_embeddings()
        vocabulary = head.weight.shape[0]
        floats = 2 ** (19 if hidden.device.type == "cpu" else 27)  # of logits: 2 MiB stay in a CPU's cache; 512 MiB
        at_once = max(1, floats // (vocabulary * hidden.shape[1]))
        sums = []
        for part in hidden.split(at_once):
            logits = head(part).float()
            edges = (logits[:, nodes, tokens] - logits.logsumexp(dim=-1)[:, nodes]).double().cpu()
            sums.append(torch.stack([edges[:, path].sum(dim=1) for path in self.tree.paths], dim=1))
        return torch.cat(sums).numpy()

    def further_metrics(self, inputs: Sequence[Input], correct: np.ndarray) -> dict:
        """`greedy_label_rate` of the first texts."""
        return {"greedy_label_rate": greedy_label_rate(self.wrapped, self.encoder, inputs[:GREEDY_ROWS])}

    def merge(self) -> None:
        """Add the adapter to the weights where they are float32: exact to 1e-6, and a score takes half as long."""
        if isinstance(self.wrapped, PeftModel) and self.exact and not self._is_quantized:
            self.wrapped = self.model = merged(self.wrapped)

    @property
    def exact(self) -> bool:
        """Whether it computes in float32."""
        return self.model.dtype == torch.float32

    @property
    def _is_quantized(self) -> bool:
        return getattr(self.model, "is_quantized", False)

    def save_pretrained(self, folder: Path) -> None:
        """Write what was trained, an adapter without its base, and the tokenizer."""
        self.wrapped.save_pretrained(folder)
        self.encoder.tokenizer.save_pretrained(folder)

    def save_merged(self, folder: Path, run_dir: Path) -> None:
        """Write the model with its adapter merged in, and the tokenizer, in `from_pretrained` form.

        Args:
            run_dir: the run whose adapter it is; a 4-bit base is dequantized before it is merged.
        """
        model = self.wrapped
        if isinstance(model, PeftModel):
            if self._is_quantized:  # merging into 4 bits would round once more
                model = PeftModel.from_pretrained(model.unload().dequantize(), run_dir)
            model = merged(model)
        model.generation_config = GenerationConfig(  # Qwen3 ships do_sample: true
            do_sample=False,
            max_new_tokens=max(map(len, self.encoder.label_ids)),
            eos_token_id=self.encoder.tokenizer.eos_token_id,
            pad_token_id=self.encoder.tokenizer.pad_token_id,
        )
        model.save_pretrained(folder)
        self.encoder.tokenizer.save_pretrained(folder)

    def reloaded(self, folder: Path) -> "LabelScorer":
        """The scorer of what `save_merged` wrote, read as anyone would read it; this one's model is given up."""
        dtype, device = self.model.dtype, self.model.device
        self.model = self.wrapped = None  # frees it: two of them might not fit
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, trust_remote_code=False
        ).to(device)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return LabelScorer(model, Prompt(self.encoder.task, tokenizer, self.encoder.max_length))
