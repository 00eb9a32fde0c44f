"""Exact label probabilities without generation: every token of every label and its end, in one forward per batch.

The instruction that all prompts share is computed once, and all labels follow a text as a tree whose branches do
not see each other: [instruction (cached) | text | label tree]. Log-probabilities equal those of scoring one label at a
time (float32: 1e-4), whatever the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, GenerationConfig, PreTrainedModel

from fintune.data.inputs import Input
from fintune.errors import UserError
from fintune.model.attention import CACHED_PREFIX
from fintune.model.batches import by_length, encoded_ahead
from fintune.model.forward import common_prefix, evaluation, last_mlp_at
from fintune.model.prompt import Prompt
from fintune.scoring.greedy import greedy_label_rate

GREEDY_ROWS = 64  # on which a model's own greedy answers are looked at
LOGIT_TRANSFORMS = (
    "final_logit_softcapping",
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "output_multiplier",
)


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

        Raises:
            UserError: the model transforms its logits after the head, which a score read at the head would miss.
        """
        self.wrapped, self.encoder = model, prompt
        self.model = model.get_base_model() if hasattr(model, "get_base_model") else model
        transforms = [key for key in LOGIT_TRANSFORMS if getattr(self.model.config, key, None) not in (None, 1.0)]
        if transforms:
            raise UserError(
                f"{self.model.config.name_or_path}: `{transforms[0]}` in its config is not supported in scoring"
            )
        self.tree = label_tree(prompt.label_ids)
        on_cpu = self.model.device.type == "cpu"
        self.tokens_per_batch = tokens_per_batch or (1024 if on_cpu else 32768)

    def probabilities(self, inputs: Sequence[Input], progress: str | None = None) -> np.ndarray:
        """(texts, labels) probabilities; see `log_likelihoods`."""
        scores = self.log_likelihoods(inputs, progress)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf))
        return scores / scores.sum(axis=1, keepdims=True)

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
        scores = np.empty((len(inputs), len(self.tree.paths)))
        prefix, cache = [], []
        with (
            evaluation(self.model, CACHED_PREFIX),
            tqdm(total=len(inputs), desc=progress, disable=progress is None) as bar,
        ):
            for start, prompts in encoded_ahead(inputs, self.encoder.encode):
                if not start:
                    prefix = prompts[0][: common_prefix(prompts)]
                    cache = self._prefix_cache(prefix) if prefix else []
                # one more token in place of a text, so that the whole of `prefix` may be shared
                shared = common_prefix([*prompts, [*prefix, -1]])
                known = [(keys[:, :, :shared], values[:, :, :shared]) for keys, values in cache] if shared else []
                lengths = [len(ids) - shared + len(self.tree.tokens) for ids in prompts]
                for rows in by_length(lengths, self.tokens_per_batch):
                    found = self._score([prompts[row][shared:] for row in rows], known, shared)
                    scores[[start + row for row in rows]] = found
                    bar.update(len(rows))
        return scores

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

    def further_metrics(self, inputs: Sequence[Input]) -> dict:
        """`greedy_label_rate` of the first texts."""
        return {"greedy_label_rate": greedy_label_rate(self.wrapped, self.encoder, inputs[:GREEDY_ROWS])}

    def merge(self) -> None:
        """Add the adapter to the weights where they are float32: exact to 1e-6, and a score takes half as long."""
        if isinstance(self.wrapped, PeftModel) and self.exact and not self._is_quantized:
            self.wrapped = self.model = self.wrapped.merge_and_unload()

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
            model = model.merge_and_unload()
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
