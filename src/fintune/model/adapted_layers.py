"""Decoder layers of a PEFT model that run as `fused` ones in training; the model and what is saved stay PEFT's own."""

from dataclasses import dataclass
from functools import partial

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from fintune.model.attention import packed_attention
from fintune.model.fused import FrozenNorm, keep, project, rotate, swiglu

GROUPS = [("self_attn", ["q_proj", "k_proj", "v_proj"]), ("self_attn", ["o_proj"])]
GROUPS += [("mlp", ["gate_proj", "up_proj"]), ("mlp", ["down_proj"])]


@dataclass
class Adapter:
    """What LoRA adds to one matrix of a group: A (r, in), B (out, r), and where they stand among the stacked ones."""

    a: nn.Parameter
    b: nn.Parameter
    scaling: float
    rows: slice
    columns: slice


class Group:
    """Linear layers of one input: their stacked weight (out, in), which they share, and their adapters."""

    def __init__(self, modules: list[nn.Module]):
        bases = [getattr(module, "base_layer", module) for module in modules]
        self.weight = stacked([base.weight for base in bases])
        self.adapters: list[Adapter] = []
        row = column = 0
        for module, base in zip(modules, bases, strict=True):
            out = base.weight.shape[0]
            for name in getattr(module, "active_adapters", []):
                a, b = module.lora_A[name].weight, module.lora_B[name].weight
                place = slice(row, row + out), slice(column, column + len(a))
                self.adapters.append(Adapter(a, b, module.scaling[name], *place))
                column += len(a)
            row += out
        self.rank = column
        self.whole = len(modules) == len(self.adapters) == 1


def stacked(weights: list[nn.Parameter]) -> torch.Tensor:
    """Weights (out, in) in one tensor, of which they become views: no memory is added, nor when done again."""
    first, size = weights[0], weights[0].shape[1]
    begins = first.data_ptr()
    for weight in weights:
        if weight.data_ptr() != begins or not weight.is_contiguous():
            break
        begins += weight.nbytes
    else:
        storage = first.untyped_storage()
        if begins <= storage.data_ptr() + storage.nbytes():
            return first.detach().as_strided((sum(map(len, weights)), size), (size, 1))
    whole = torch.cat([weight.detach() for weight in weights])
    for weight, part in zip(weights, whole.split([len(weight) for weight in weights]), strict=True):
        weight.data = part
    return whole


class FusedLayers:
    """The layers of a model, and their adapters in the type of the product, cast once for all."""

    def __init__(self, model: PeftModel):
        """Let each layer's forward be `_forward` where a call of the model brings `adapters`."""
        layers = model.get_decoder().layers
        self.groups = [[Group(_modules(layer, *names)) for names in GROUPS] for layer in layers]
        self.adapted = [group for groups in self.groups for group in groups if group.adapters]
        adapters = [adapter for group in self.adapted for adapter in group.adapters]
        self.weights = [weight for adapter in adapters for weight in (adapter.a, adapter.b)]
        self.scalings = [adapter.scaling for adapter in adapters]
        self._dropout = next(iter(_dropouts(layers)), 0.0)
        for layer, groups in zip(layers, self.groups, strict=True):
            layer.forward = partial(_forward, self, layer, groups, _norms(layer), layer.forward)
        self._rotary = model.get_decoder().rotary_emb
        self.halves = HALVES

    def compile(self, backend: str = "inductor", mode: str | None = None) -> None:
        """Compile what a layer does before and after attention, whose arguments change with each batch.

        All layers share the graphs: they are compiled for the first batch, and once more, for any length, where a
        later one is longer or shorter. Evaluation is not compiled.
        """
        self.halves = tuple(torch.compile(half, backend=backend, mode=mode) for half in HALVES)

    @staticmethod
    def fit(model: nn.Module) -> bool:
        """Whether every layer is LLaMA's or Qwen3's, on frozen dense weights without biases, with plain LoRA."""
        layers = getattr(model.get_decoder(), "layers", []) if isinstance(model, PeftModel) else []
        return len(layers) > 0 and all(map(_fits, layers)) and len(_dropouts(layers)) == 1

    def inputs(self, dtype: torch.dtype, position_ids: torch.Tensor, columns: torch.Tensor, training: bool) -> dict:
        """Keywords for a call of the model.

        Args:
            dtype: that the products are computed in.
            position_ids: (1, T).
            columns: (n,) positions behind which the head reads; the last layer gives those alone.
            training: with LoRA's dropout.
        """
        cos, sin = self._rotary(self.weights[0].new_empty(0, dtype=dtype), position_ids)
        before, behind = sin[0, :, None].chunk(2, -1)
        rotary = cos[0, :, None], torch.cat([-before, behind], -1)
        dropout = self._dropout if training else 0.0
        cast = iter(_Cast.apply(self, dtype, [scaling / (1 - dropout) for scaling in self.scalings], *self.weights))
        adapters = [
            [(next(cast), next(cast)) if group.adapters else (None, None) for group in groups]
            for groups in self.groups
        ]
        return {"adapters": adapters, "columns": columns, "rotary": rotary, "dropout": dropout}

    def parts(self, stacks: list[torch.Tensor]) -> list[torch.Tensor]:
        """What of the stacked A and B of all groups is each adapter's, in the order of `weights`."""
        found = []
        for group, a, b in zip(self.adapted, stacks[::2], stacks[1::2], strict=True):
            if group.whole:
                found += [a, b]
                continue
            rows = a.split([len(adapter.a) for adapter in group.adapters])
            for adapter, part in zip(group.adapters, rows, strict=True):
                place = adapter.rows.start * group.rank + adapter.columns.start
                found += [part, b.as_strided(adapter.b.shape, b.stride(), place)]
        return found


class _Cast(torch.autograd.Function):
    """All A and B of a model to stacked ones: (R, in), and (out, R) of blocks that hold the scaling."""

    @staticmethod
    def forward(ctx, fused, dtype, scalings, *weights):
        ctx.fused, ctx.scalings, out = fused, scalings, []
        for group in fused.adapted:
            new = weights[0].new_empty if group.whole else weights[0].new_zeros
            out += [
                new(group.rank, group.weight.shape[1], dtype=dtype),
                new(len(group.weight), group.rank, dtype=dtype),
            ]
        targets = fused.parts(out)
        _copy(targets[::2], weights[::2])
        _copy(targets[1::2], torch._foreach_mul(weights[1::2], scalings))
        return tuple(out)

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream):
        fused = ctx.fused
        gradients = torch._foreach_mul(fused.weights, 0)  # room, in one operation for all
        _copy(gradients, fused.parts(upstream))
        torch._foreach_mul_(gradients[1::2], ctx.scalings)
        return None, None, None, *gradients


def _copy(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Contiguous ones apart: among others on a GPU each would be a launch of its own."""
    pairs = list(zip(targets, sources, strict=True))
    for wanted in (True, False):
        some = [pair for pair in pairs if all(part.is_contiguous() for part in pair) == wanted]
        if some:
            torch._foreach_copy_(*zip(*some, strict=True))


def _forward(fused, layer, groups, norms, stock, hidden, *args, adapters=None, columns=None, **kwargs):
    """A layer's forward: transformers' own where no adapters are given."""
    if adapters is None:
        return stock(hidden, *args, **kwargs)
    index, last = layer.self_attn.layer_idx, len(adapters) - 1
    columns, halves = columns if index == last else None, fused.halves if layer.training else HALVES
    call = partial(_layer, layer, groups, norms, halves, adapters[index], columns, **kwargs)
    if layer.gradient_checkpointing and layer.training:
        return layer._gradient_checkpointing_func(call, hidden)
    return call(hidden)


def _layer(layer, groups, norms, halves, adapters, columns, hidden, rotary, dropout, **layout):
    """(T, hidden size) to the same; from (1, T, hidden size) in the first layer, to (1, columns, ...) in the last."""
    attention, (before, after) = layer.self_attn, halves
    heads = attention.config.num_attention_heads, attention.config.num_key_value_heads, attention.head_dim
    with torch.autocast(hidden.device.type, enabled=False):
        x = hidden.flatten(0, -2)
        kept = [None] * len(groups)
        if dropout:
            lengths = [len(x), *[len(x if columns is None else columns)] * 3]
            sizes = [length * group.weight.shape[1] for length, group in zip(lengths, groups, strict=True)]
            kept = keep(sum(sizes), dropout, x.device).split(sizes)
        linear = [(group.weight, *pair, part) for group, pair, part in zip(groups, adapters, kept, strict=True)]
        query, key, value = before(x, rotary, linear[0], norms[0], norms[2] if len(norms) > 2 else None, heads)
        attended = packed_attention(query, key, value, attention.scaling, **layout).reshape(len(x), -1)
        if columns is not None:
            attended, x = attended.index_select(0, columns), x.index_select(0, columns)
        x = after(attended, x, linear[1:], norms[1])
    return x if columns is None else x[None]


def _before_attention(x, rotary, linear, norm, head_norm, heads):
    """(T, hidden size) to query, key, value (1, T, heads, head size); `heads` of queries, of keys, and their size."""
    queries, keys, size = heads
    states = project(norm(x).to(rotary[0].dtype), *linear).view(1, len(x), -1, size)
    rotating, value = states.split([queries + keys, keys], 2)
    if head_norm is not None:
        rotating = head_norm(rotating)
    return *rotate(rotating, *rotary).split([queries, keys], 2), value


def _after_attention(attended, x, linear, norm):
    """What attention gave (n, heads * head size) and the residual (n, hidden size) to the layer's end."""
    out, gate_up, down = linear
    x = project(attended, *out, x)
    return project(swiglu(project(norm(x).to(attended.dtype), *gate_up)), *down, x)


HALVES = _before_attention, _after_attention


def _modules(layer: nn.Module, part: str, names: list[str]) -> list[nn.Module]:
    return [getattr(getattr(layer, part), name) for name in names]


def _norms(layer: nn.Module) -> list[FrozenNorm]:
    """Those before attention and MLP, and Qwen3's of queries and keys as one, (heads, head size)."""
    attention, norms = layer.self_attn, [layer.input_layernorm, layer.post_attention_layernorm]
    frozen = [FrozenNorm(norm.weight, norm.variance_epsilon) for norm in norms]
    if hasattr(attention, "q_norm"):
        counts = attention.config.num_attention_heads, attention.config.num_key_value_heads
        pairs = zip((attention.q_norm, attention.k_norm), counts, strict=True)
        weight = torch.cat([norm.weight.expand(count, -1) for norm, count in pairs])
        frozen.append(FrozenNorm(weight, attention.q_norm.variance_epsilon))
    return frozen


def _dropouts(layers: nn.ModuleList) -> set[float]:
    """Probabilities of all adapters' dropouts; an Identity has none."""
    adapted = (module for module in layers.modules() if isinstance(module, LoraLinear))
    return {getattr(dropout, "p", 0.0) for module in adapted for dropout in module.lora_dropout.values()}


def _fits(layer: nn.Module) -> bool:
    if type(layer) not in (LlamaDecoderLayer, Qwen3DecoderLayer) or layer.mlp.config.hidden_act != "silu":
        return False
    trained = {id(p) for name, p in layer.named_parameters() if p.requires_grad and "lora_" not in name}
    groups = [_modules(layer, *names) for names in GROUPS]
    return not trained and not layer.self_attn.attention_dropout and all(map(_plain, groups))


def _plain(modules: list[nn.Module]) -> bool:
    bases = [getattr(module, "base_layer", module) for module in modules]
    adapted = [module for module in modules if module not in bases]
    return (
        all(type(base) is nn.Linear and base.bias is None for base in bases)
        and all(type(module) is LoraLinear and not module.lora_variant and not module.merged for module in adapted)
        and not any(bias for module in adapted for bias in module.lora_bias.values())
    )
