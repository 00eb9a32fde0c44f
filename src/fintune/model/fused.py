"""A decoder layer in few operations: frozen weights, LoRA beside them, and a gradient written by hand.

For training with `SharedPrefixTrainer` on layers built like LLaMA's. On a GPU short texts wait for the host, which
needs the same time for an operation of 600 tokens as for one of 6,000; so q, k, v and gate, up are one product each,
with one dropout mask and one stacked `A`. Equal to transformers and PEFT in float32, but for what a dropout draws.
Each forward returns a new tensor, none changed in place or passed through `to`: compiled by PyTorch 2.11, a function
that returns such a one has gradients of zero.
"""

import math

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


class FrozenNorm:
    """Root mean square norm over the last dimension, in float32 inside."""

    def __init__(self, weight: torch.Tensor, eps: float):
        """
        Args:
            weight: (..., size), that broadcasts against what is normed.
        """
        size = weight.shape[-1]
        self.weight, self.eps = weight.detach(), eps
        self._by_length = self.weight.float() * math.sqrt(size)
        self._least = torch.tensor(math.sqrt(size * eps))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not x.is_cuda:
            return _Norm.apply(x, self._by_length, self._least)
        if self.weight.ndim == 1:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape[-1:], None, self.eps) * self.weight.to(x.dtype)


class _Norm(torch.autograd.Function):
    """PyTorch's own is 8 operations and 18 back on the CPU."""

    @staticmethod
    def forward(ctx, x, weight, least):
        dtype = x.dtype if x.dtype == torch.float64 else torch.float32
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype).hypot_(least)
        ctx.save_for_backward(x, weight, length)
        out = (x / length) * weight
        return out if out.dtype == x.dtype else out.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        x, weight, length = ctx.saved_tensors
        scaled = (upstream / length).mul_(weight)
        along = (scaled * x).sum(-1, keepdim=True).div_(length).div_(length)
        return torch.addcmul(scaled, along, x, value=-1).to(x.dtype), None, None


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of (T, heads, size) by (T, 1, size); the first half of `sin` has its sign turned."""
    return _Rotate.apply(x, cos, sin)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        cos, sin = ctx.saved_tensors
        turned = upstream.roll(upstream.shape[-1] // 2, -1)
        return (upstream * cos).addcmul_(turned, sin, value=-1), None, None


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of (T, 2 * size), gates first."""
    return _SwiGlu.apply(gate_up)


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_up):
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        [gate_up] = ctx.saved_tensors
        gate, up = gate_up.chunk(2, -1)
        of_gate = torch.ops.aten.silu_backward(upstream * up, gate)
        return torch.cat([of_gate, F.silu(gate).mul_(upstream)], -1)


def keep(size: int, p: float, device: torch.device) -> torch.Tensor:
    """(size,) bool, each False with probability p: what a dropout keeps.

    On the CPU of 16 random bits each: PyTorch draws 64 and takes 5 times as long. `p` is met to 2^-17 there.
    """
    if device.type != "cpu":
        return torch.empty(size, dtype=torch.bool, device=device).bernoulli_(1 - p)
    bits = torch.empty(-(-size // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return (bits if len(bits) == size else bits[:size]) >= round(p * 2**16) - 2**15


def project(
    x: torch.Tensor,
    weight: torch.Tensor,
    a: torch.Tensor | None,
    b: torch.Tensor | None,
    kept: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """x W' + (x where kept) A' B', and the residual where there is one; gradients for x, A, B and the residual.

    Args:
        x: (T, in), of the type that the product is computed in.
        weight: (out, in), frozen.
        a, b: (R, in) and (out, R) of several adapters, all scaling in b, dropout's too; None without adapters.
        kept: (T * in,) bool, of `keep`; None without dropout.
        residual: (T, out), which may be of another type; the result has its type.
    """
    if residual is None or residual.dtype == x.dtype:
        return _Project.apply(x, weight, a, b, kept, residual)
    return residual + _Project.apply(x, weight, a, b, kept, None)


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, a, b, kept, residual):
        weight, ctx.adds = weight.to(x.dtype), residual is not None
        out = torch.addmm(residual, x, weight.t()) if ctx.adds else x @ weight.t()
        if a is None:
            ctx.save_for_backward(weight, a, b, None, kept, None)
            return out
        if kept is not None:
            kept = kept.view(x.shape)
            x = x * kept
        inner = x @ a.t()
        ctx.save_for_backward(weight, a, b, x, kept, inner)
        return torch.addmm(out, inner, b.t())

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        weight, a, b, dropped, kept, inner = ctx.saved_tensors
        residual = upstream if ctx.adds else None
        if a is None:
            return upstream @ weight, None, None, None, None, residual
        of_inner = upstream @ b
        of_a, of_b = of_inner.t() @ dropped, upstream.t() @ inner
        of_x = of_inner @ a
        if kept is not None:
            of_x.mul_(kept)
        return of_x.addmm_(upstream, weight), None, of_a, of_b, None, residual
