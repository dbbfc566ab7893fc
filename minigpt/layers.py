"""The layers of MiniGPT, for one model or for several of one shape at once.

Given a weight with one more axis in front, a layer is M layers that share nothing: its input has
the axis in front too, and so has its output. Modules are built for one model;
`torch.func.functional_call` gives them the weights of several.

Shapes: M models, N rows (any axes between the first and the last), I inputs, O outputs.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """x·Wᵀ + b; M of them as one batched product."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., I) to (..., O), or (M, ..., I) to (M, ..., O)."""
        x, weight, bias = input, self.weight, self.bias
        if weight.ndim == 2:
            return F.linear(x, weight, bias)
        x, weight = autocast_to(x, weight)
        bias = None if bias is None else bias.to(x.dtype)
        return _Products.apply(x.flatten(1, -2), weight, bias).unflatten(1, x.shape[1:-1])


def autocast_to(*tensors: Tensor) -> list[Tensor]:
    """The tensors as autocast would have them, which does not reach into own functions."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors]


class _Products(torch.autograd.Function):
    """x_MNI·Wᵀ + b for each model; the gradient of W_MOI lies in memory as W does."""

    @staticmethod
    def forward(ctx: Any, x_MNI: Tensor, weight_MOI: Tensor, bias_MO: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_MNI, weight_MOI)
        ctx.biased = bias_MO is not None
        if bias_MO is None:
            return torch.bmm(x_MNI, weight_MOI.mT)
        return torch.baddbmm(bias_MO[:, None], x_MNI, weight_MOI.mT)

    @staticmethod
    def backward(ctx: Any, g_MNO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_MNI, weight_MOI = ctx.saved_tensors
        own = torch.bmm(g_MNO, weight_MOI) if ctx.needs_input_grad[0] else None
        return own, torch.bmm(g_MNO.mT, x_MNI), g_MNO.sum(dim=1) if ctx.biased else None


class Embedding(nn.Embedding):
    """Rows of a table, of each model its own."""

    def forward(self, input: Tensor) -> Tensor:
        """Ids (...) to (..., D), or (M, ...) to (M, ..., D)."""
        if self.weight.ndim == 2:
            return F.embedding(input, self.weight)
        return _Rows.apply(self.weight, input)


class _Rows(torch.autograd.Function):
    """table_MVD at ids (M, ...); the gradient is summed row by row."""

    @staticmethod
    def forward(ctx: Any, table_MVD: Tensor, ids: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = table_MVD.shape
        models_M = torch.arange(len(ids), device=ids.device)
        return table_MVD[_for_each(models_M, ids), ids]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (ids,) = ctx.saved_tensors
        M, V, D = ctx.shape
        first_M = torch.arange(0, M * V, V, device=ids.device)
        own = torch.zeros(M * V, D, dtype=g.dtype, device=g.device)
        own.index_add_(0, (ids + _for_each(first_M, ids)).flatten(), g.flatten(0, -2))
        return own.view(ctx.shape), None


class Dropout(nn.Module):
    """In training each entry is zero with probability p, else 1/(1 − p) of itself.

    Srivastava et al. 2014, §10, scaled in training, so that nothing changes in evaluation. What is
    dropped is drawn from `draw`; where that is None, from torch's own generator of the device.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.draw: torch.Generator | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Of one model's x, of any shape."""
        if not self.training or self.p == 0:
            return x
        kept = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.draw)
        return x * kept / (1 - self.p)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation (Ba et al. 2016, eq. 4)."""

    def forward(self, input: Tensor) -> Tensor:
        """Of the last axis."""
        if self.weight.ndim == 1:
            return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
        normed = F.layer_norm(input, self.normalized_shape, eps=self.eps)
        return torch.addcmul(_for_each(self.bias, input), normed, _for_each(self.weight, input))


class RMSNorm(nn.RMSNorm):
    """Root-mean-square normalisation (Zhang & Sennrich 2019, eq. 4)."""

    def forward(self, x: Tensor) -> Tensor:
        """Of the last axis."""
        assert self.eps is not None
        if self.weight.ndim > 1:
            normed = F.rms_norm(x, list(self.normalized_shape), eps=self.eps)
            return normed * _for_each(self.weight, x)
        if x.device.type == "cpu":  # where torch's is a chain of a dozen operations
            return _Normed.apply(x, self.weight, self.eps)
        return F.rms_norm(x, list(self.normalized_shape), self.weight, self.eps)


class _Normed(torch.autograd.Function):
    """x·r·w with r = 1/√(mean x² + ε) over the last axis, in few passes through memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        r = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight_D, r)
        return (x * r).mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight_D, r = ctx.saved_tensors
        xr = x * r
        gxr = g * xr
        along = torch.matmul(gxr, weight_D)[..., None].mul_(r).div_(x.shape[-1])
        own = (g * weight_D).mul_(r).addcmul_(xr, along, value=-1)
        return own, gxr.flatten(0, -2).sum(dim=0), None


def _for_each(value: Tensor, x: Tensor) -> Tensor:
    """A value (M,) or (M, K) of each model, to broadcast with its part of x (M, ...)."""
    return value.view(value.shape[0], *[1] * (x.ndim - value.ndim), *value.shape[1:])
