"""The loss: cross-entropy in nats per token, of one model or of each of several.

Shapes: M models, N tokens, D width, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from minigpt.layers import Linear, autocast_to

IGNORED = -100  # a target that does not enter the loss
# Of a model, in float32: above it they are never all in memory.
LOGITS_BYTES = {"cpu": 2**28, "cuda": 2**30}  # each part adds up the head's whole gradient anew


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean −log P(target), a scalar in nats per token, over targets that are not IGNORED."""
    logits_BTV = logits_BTV.float() if logits_BTV.dtype == torch.bfloat16 else logits_BTV
    return F.cross_entropy(logits_BTV.flatten(0, -2), targets_BT.flatten(), ignore_index=IGNORED)


def next_token_loss(x: Tensor, head: Linear, targets: Tensor) -> Tensor:
    """`cross_entropy` of the logits that the head makes of `x` (..., D), for targets (...).

    With weights of M models both have the axis in front, and the losses are (M,); of their targets
    none is IGNORED.
    """
    models = None if head.weight.ndim == 2 else len(head.weight)
    own = targets if models is None else targets[0]
    if 4 * own.numel() * head.weight.shape[-2] > LOGITS_BYTES[x.device.type]:
        losses_M = _in_chunks(x, head, targets, models)
        return losses_M if models else losses_M[0]
    logits = head(x)
    if models is None:
        return cross_entropy(logits, targets)
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    flat = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return flat.view(models, -1).mean(dim=1)


def _in_chunks(x: Tensor, head: Linear, targets: Tensor, models: int | None) -> Tensor:
    (x, weight), bias = autocast_to(x, head.weight), head.bias
    if models is None:  # as one of one
        x, weight, targets = x[None], weight[None], targets[None]
        bias = None if bias is None else bias[None]
    return _Chunked.apply(x.flatten(1, -2), weight, bias, targets.flatten(1))  # type: ignore[no-any-return]


class _Chunked(torch.autograd.Function):
    """Losses_M whose gradients are worked out with them, some tokens at a time.

    So that at no time there are the logits of all tokens.
    """

    @staticmethod
    def forward(
        ctx: Any, x_MND: Tensor, weight_MVD: Tensor, bias_MV: Tensor | None, targets_MN: Tensor
    ) -> Tensor:
        N, V = targets_MN.shape[1], weight_MVD.shape[1]
        chunk = max(1, LOGITS_BYTES[x_MND.device.type] // (4 * V))
        count_M = (targets_MN != IGNORED).sum(dim=1)
        losses_M = x_MND.new_zeros(len(x_MND), dtype=_sum_dtype(x_MND))
        own_MND = torch.empty_like(x_MND)
        own_MVD = torch.zeros_like(weight_MVD, dtype=losses_M.dtype)
        own_MV = None if bias_MV is None else torch.zeros_like(bias_MV)
        for start in range(0, N, chunk):
            here = slice(start, start + chunk)
            x_MnD, targets_Mn1 = x_MND[:, here], targets_MN[:, here, None]
            logits_MnV = torch.bmm(x_MnD, weight_MVD.mT).to(losses_M.dtype)
            if bias_MV is not None:
                logits_MnV += bias_MV[:, None]
            log_z_Mn1 = logits_MnV.logsumexp(dim=2, keepdim=True)
            kept_Mn1 = targets_Mn1 != IGNORED
            at_Mn1 = targets_Mn1.clamp(min=0)
            losses = (log_z_Mn1 - logits_MnV.gather(2, at_Mn1)) * kept_Mn1
            losses_M += losses.sum(dim=(1, 2)) / count_M
            # d loss / d logits = (softmax − one-hot) / count, where the target is not IGNORED.
            share_Mn1 = kept_Mn1.to(losses_M.dtype) / count_M[:, None, None]
            slope_MnV = logits_MnV.sub_(log_z_Mn1).exp_().mul_(share_Mn1)
            slope_MnV.scatter_add_(2, at_Mn1, -share_Mn1)
            if own_MV is not None:
                own_MV += slope_MnV.sum(dim=1)
            slope_MnV = slope_MnV.to(x_MND.dtype)
            own_MND[:, here] = torch.bmm(slope_MnV, weight_MVD)
            own_MVD += torch.bmm(slope_MnV.mT, x_MnD)
        ctx.save_for_backward(own_MND, own_MVD.to(weight_MVD.dtype), own_MV)
        return losses_M

    @staticmethod
    def backward(ctx: Any, g_M: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        own_MND, own_MVD, own_MV = ctx.saved_tensors
        g_M11 = g_M[:, None, None].to(own_MND.dtype)
        bias = None if own_MV is None else own_MV * g_M[:, None]
        return own_MND * g_M11, own_MVD * g_M11, bias, None


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
