"""The loss: cross-entropy in nats per token, of one model or of several."""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100  # a target that does not enter the loss


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean −log P(target), a scalar in nats per token, over targets that are not IGNORED."""
    logits_BTV = logits_BTV.float() if logits_BTV.dtype == torch.bfloat16 else logits_BTV
    return F.cross_entropy(logits_BTV.flatten(0, -2), targets_BT.flatten(), ignore_index=IGNORED)


def cross_entropies(logits: Tensor, targets: Tensor, models: int) -> Tensor:
    """`cross_entropy` of each of several models, whose axis is the first; no target is IGNORED."""
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    flat = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return flat.view(models, -1).mean(dim=1)
