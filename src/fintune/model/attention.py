"""Attention where rows share their beginning, in training (`shared_prefix`) and in scoring (`cached_prefix`).

Registered with transformers under these names; the layout comes with the keywords of a call of the model.
"""

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

SHARED_PREFIX, CACHED_PREFIX = "shared_prefix", "cached_prefix"


def shared_prefix_attention(
    module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    key_tokens: torch.Tensor,
    cu_seq_lens_q: torch.Tensor,
    cu_seq_lens_k: torch.Tensor,
    max_length_q: int,
    max_length_k: int,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each of several packed sequences: a row sees the shared tokens and its own, no other's.

    FlashAttention's varlen kernel on CUDA, else one SDPA call a sequence. `SharedPrefixCollator` makes the layout.

    Args:
        query, key, value: (1, heads, T, head size), keys and values with as many heads or a divisor of them.
        key_tokens: (K,) which of the T tokens a sequence's keys are, sequence after sequence; a token may be in
            several, and its gradient is then their sum.
        cu_seq_lens_q, cu_seq_lens_k: (sequences + 1,) where sequences begin among the T queries and the K keys. The
            last query of a sequence sees all of its keys, the one before it all but one, and so on.
        max_length_q, max_length_k: the longest of each.

    Returns:
        (1, T, heads, head size), None.
    """
    key, value = key.index_select(2, key_tokens), value.index_select(2, key_tokens)
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout:
        from torch.nn.attention.varlen import varlen_attn  # imports CUDA's parts

        groups = query.shape[1] // key.shape[1]
        key, value = (heads.repeat_interleave(groups, dim=1) for heads in (key, value))
        packed = [heads[0].transpose(0, 1).to(value.dtype) for heads in (query, key, value)]
        lengths = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
        return varlen_attn(*packed, *lengths, scale=scaling, window_size=(-1, 0))[None], None
    of_queries, of_keys = cu_seq_lens_q.diff().tolist(), cu_seq_lens_k.diff().tolist()
    rows = zip(query.split(of_queries, 2), key.split(of_keys, 2), value.split(of_keys, 2), strict=True)
    attended = []
    for q, k, v in rows:
        sees = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
        attended.append(
            F.scaled_dot_product_attention(q, k, v, attn_mask=sees, dropout_p=dropout, scale=scaling, enable_gqa=True)
        )
    return torch.cat(attended, 2).transpose(1, 2), None


def cached_prefix_attention(
    module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    prefix: list[tuple[torch.Tensor, torch.Tensor]] = (),
    sees: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention of padded rows after a cached prefix that all of them share; only one layer's keys are ever held.

    Args:
        query, key, value: (rows, heads, T, head size), keys and values with as many heads or a divisor of them.
        prefix: keys and values of each layer, (1, heads, P, head size); none to compute the prefix itself.
        sees: (rows, 1, T, P + T) 0 where a token sees another and -inf where not; None is causal.

    Returns:
        (rows, T, heads, head size), None.
    """
    if prefix:
        shared = (states.expand(len(query), -1, -1, -1) for states in prefix[module.layer_idx])
        key, value = (torch.cat(pair, 2) for pair in zip(shared, (key, value), strict=True))
    if query.is_cuda:  # with a mask, a CUDA kernel needs keys repeated for each head
        groups = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    mask = None if sees is None else sees.to(query.dtype)
    attended = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=not query.is_cuda
    )
    return attended.transpose(1, 2), None


AttentionInterface.register(SHARED_PREFIX, shared_prefix_attention)
AttentionInterface.register(CACHED_PREFIX, cached_prefix_attention)
