"""What a causal language model answers when it may say anything: a check on the model, not a way of scoring."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from fintune.data.inputs import Input
from fintune.model.forward import evaluation
from fintune.model.plain import FITS
from fintune.model.prompt import Prompt


def greedy_label_rate(model: PreTrainedModel, prompt: Prompt, inputs: Sequence[Input]) -> dict:
    """Greedy generation on a few texts: the share of answers that are a label and its end.

    Returns:
        rows, share and, where there is a miss, first_miss (its text) and first_miss_lacks_end.
    """
    prompts = prompt.encode(inputs)
    longest, new_tokens = max(map(len, prompts)), max(map(len, prompt.label_ids))
    ids = torch.full((len(prompts), longest), prompt.tokenizer.pad_token_id)
    for row, prompt_ids in enumerate(prompts):
        ids[row, longest - len(prompt_ids) :] = torch.tensor(prompt_ids)
    mask = (torch.arange(longest) >= longest - torch.tensor([len(p) for p in prompts])[:, None]).long()
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    with evaluation(model):
        answers = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=new_tokens,
            use_cache=FITS.get(base, 0) is not None,  # caches of some mixtures do not take a padded batch
            do_sample=False,  # Qwen3 ships do_sample: true, which answers differently every time
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=prompt.tokenizer.pad_token_id,
            eos_token_id=prompt.tokenizer.eos_token_id,
        )[:, longest:].tolist()
    misses = [answer for answer in answers if not any(answer[: len(label)] == label for label in prompt.label_ids)]
    report = {"rows": len(prompts), "share": 1 - len(misses) / len(prompts)}
    if misses:
        report["first_miss"] = prompt.tokenizer.decode(misses[0])
        report["first_miss_lacks_end"] = any(misses[0][: len(label) - 1] == label[:-1] for label in prompt.label_ids)
    return report
