"""Another number of key-value heads for a trained model, to ask what sharing them costs (GQA, arXiv 2305.13245)."""

import torch
from transformers import PreTrainedModel

from fintune.errors import UserError


def shareable(queries: int, old: int, heads: int) -> bool:
    """Whether that many key-value heads can be made from the `old` ones, each for as many query heads."""
    return heads > 0 and queries % heads == 0 and (heads % old == 0 or old % heads == 0)


@torch.no_grad()
def set_key_value_heads(model: PreTrainedModel, heads: int) -> None:
    """Give every attention layer that many key-value heads, in place.

    More heads repeat each one, and the model computes the same function. Fewer are the means of the heads they replace
    for (Ainslie et al. 2023, section 2.1), and the model must be trained on.

    Raises:
        UserError: query heads cannot be shared out so, or the weights are quantized.
    """
    config = model.config
    old, queries = config.num_key_value_heads, config.num_attention_heads
    if not shareable(queries, old, heads):
        raise UserError(
            f"`key_value_heads` is {heads}; {queries} query heads and {old} key-value heads leave a divisor of "
            f"{queries} that is a multiple or a divisor of {old}"
        )
    if getattr(model, "is_quantized", False):
        raise UserError("`key_value_heads` with a quantized base: 4-bit weights cannot be averaged; load it in bf16")
    for layer in model.get_decoder().layers:
        attention = layer.self_attn
        for projection in (attention.k_proj, attention.v_proj):
            for name, parameter in list(projection.named_parameters(recurse=False)):
                by_head = parameter.unflatten(0, (old, -1))
                if heads > old:
                    changed = by_head.repeat_interleave(heads // old, dim=0)
                else:
                    changed = by_head.unflatten(0, (heads, -1)).mean(dim=1)
                setattr(projection, name, torch.nn.Parameter(changed.flatten(0, 1).contiguous()))
            projection.out_features = projection.weight.shape[0]
        attention.num_key_value_groups = queries // heads
    config.num_key_value_heads = heads
