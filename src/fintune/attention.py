"""Attention for rows that share one line: a row sees the shared tokens and its own, never a neighbour's.

Registered with transformers under `one_line`. A call's keywords carry the layout, see `fintune.trainer.OneLine`.
"""

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

ONE_LINE = "one_line"


def one_line_attention(
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
    """Causal attention inside each sequence: FlashAttention's varlen kernel on CUDA, one SDPA call a sequence else.

    Args:
        query, key, value: (1, heads, T, head size), keys and values with as many heads or a divisor of them.
        key_tokens: (K,) which of the T tokens a sequence's keys are, sequence behind sequence; a token may stand in
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
        line = [heads[0].transpose(0, 1).to(value.dtype) for heads in (query, key, value)]
        lengths = (cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k)
        return varlen_attn(*line, *lengths, scale=scaling, window_size=(-1, 0))[None], None
    of_queries, of_keys = cu_seq_lens_q.diff().tolist(), cu_seq_lens_k.diff().tolist()
    rows = zip(query.split(of_queries, 2), key.split(of_keys, 2), value.split(of_keys, 2), strict=True)
    attended = []
    for q, k, v in rows:
        sees = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - q.shape[2])
        attended.append(
            F.scaled_dot_product_attention(q, k, v, attn_mask=sees, dropout_p=dropout, scale=scaling, enable_gqa=True)
        )
    return torch.cat(attended, 2).transpose(1, 2), None


AttentionInterface.register(ONE_LINE, one_line_attention)
