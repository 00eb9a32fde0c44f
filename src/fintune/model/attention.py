"""Attention where rows share their beginning, in training (`shared_prefix`) and in scoring (`cached_prefix`).

Registered with transformers under these names; the layout comes with the keywords of a call of the model.
"""

import itertools

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

SHARED_PREFIX, CACHED_PREFIX = "shared_prefix", "cached_prefix"


def shared_prefix_attention(
    module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
    **layout,
) -> tuple[torch.Tensor, None]:
    """`packed_attention` as transformers calls it.

    Args:
        query, key, value: (1, heads, T, head size), keys and values with as many heads or a divisor of them.
        layout: of the batch, see `packed_attention`.

    Returns:
        (1, T, heads, head size), None.
    """
    # under autocast norms may give float32, and the value is what a projection gave
    packed = (states.transpose(1, 2).to(value.dtype) for states in (query, key, value))
    return packed_attention(*packed, scaling, dropout=dropout, **layout), None


def packed_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float,
    key_tokens: torch.Tensor,
    cu_seq_lens_q: torch.Tensor,
    cu_seq_lens_k: torch.Tensor,
    max_length_q: int,
    max_length_k: int,
    masks: list[torch.Tensor] | None = None,
    dropout: float = 0.0,
    **kwargs,
) -> torch.Tensor:
    """Causal attention inside each of several packed sequences: a row sees the shared tokens and its own, no other's.

    FlashAttention's varlen kernel on CUDA, else one SDPA call a sequence. `SharedPrefixCollator` makes the layout.

    Args:
        query, key, value: (1, T, heads, head size), keys and values with as many heads or a divisor of them.
        key_tokens: (K,) which of the T tokens a sequence's keys are, sequence after sequence; a token may be in
            several, and its gradient is then their sum.
        cu_seq_lens_q, cu_seq_lens_k: (sequences + 1,) where sequences begin among the T queries and the K keys. The
            last query of a sequence sees all of its keys, the one before it all but one, and so on.
        max_length_q, max_length_k: the longest of each.
        masks: `causal_masks`, for all layers to share; made here where there are none.

    Returns:
        (1, T, heads, head size).
    """
    key, value = key.index_select(1, key_tokens), value.index_select(1, key_tokens)
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout:
        from torch.nn.attention.varlen import varlen_attn  # imports CUDA's parts

        groups = query.shape[2] // key.shape[2]
        key, value = (heads.repeat_interleave(groups, dim=2) for heads in (key, value))
        packed = (states.squeeze(0) for states in (query, key, value))
        lengths = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
        return varlen_attn(*packed, *lengths, scale=scaling, window_size=(-1, 0)).unsqueeze(0)
    masks = causal_masks(cu_seq_lens_q, cu_seq_lens_k, query.dtype) if masks is None else masks
    if query.device.type == "cpu" and not dropout:
        return _CpuRows.apply(query, key, value, scaling, masks)
    attended = [
        F.scaled_dot_product_attention(*row, attn_mask=mask, dropout_p=dropout, scale=scaling, enable_gqa=True)
        for *row, mask in _rows(query, key, value, masks)
    ]
    return torch.cat(attended, 2).transpose(1, 2)


class _CpuRows(torch.autograd.Function):
    """The CPU's own kernel of SDPA, a call a sequence; through autograd these are three times as many operations."""

    @staticmethod
    def forward(ctx, query, key, value, scaling, masks):
        kernel, rows = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, _rows(query, key, value, masks)
        attended = [kernel(*row, attn_mask=mask, scale=scaling) for *row, mask in rows]
        saved = [(*row, *pair, mask) for (*row, mask), pair in zip(rows, attended, strict=True)]
        ctx.save_for_backward(*itertools.chain(*saved))
        ctx.scaling = scaling
        return _joined([out for out, _ in attended])

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        saved = list(zip(*[iter(ctx.saved_tensors)] * 6, strict=True))  # query, key, value, out, its sums, mask
        of_out = upstream.transpose(1, 2).split([row[0].shape[2] for row in saved], 2)
        found = [
            kernel(grad, *row, 0.0, False, attn_mask=mask, scale=ctx.scaling)
            for grad, (*row, mask) in zip(of_out, saved, strict=True)
        ]
        return *map(_joined, zip(*found, strict=True)), None, None


def _rows(query, key, value, masks: list[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
    """(query, key, value, mask) of each sequence, the first three (1, heads, tokens, head size)."""
    of_queries, of_keys = zip(*(mask.shape for mask in masks), strict=True)
    pairs = zip((query, key, value), (of_queries, of_keys, of_keys), strict=True)
    return list(zip(*(states.transpose(1, 2).split(sizes, 2) for states, sizes in pairs), masks, strict=True))


def _joined(rows: list[torch.Tensor]) -> torch.Tensor:
    """Sequences (1, heads, tokens, head size) one after the other, contiguous as (1, T, heads, head size)."""
    _, heads, _, size = rows[0].shape
    whole = rows[0].new_empty(1, sum(row.shape[2] for row in rows), heads, size)
    torch.cat(rows, 2, out=whole.transpose(1, 2))
    return whole


def causal_masks(cu_seq_lens_q: torch.Tensor, cu_seq_lens_k: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """For each sequence (queries, keys): 0 where a query sees a key, -inf where not."""
    sizes = zip(cu_seq_lens_q.diff().tolist(), cu_seq_lens_k.diff().tolist(), strict=True)
    device = cu_seq_lens_q.device
    return [torch.full((q, k), -torch.inf, dtype=dtype, device=device).triu_(k - q + 1) for q, k in sizes]


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
