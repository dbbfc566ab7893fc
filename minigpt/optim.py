"""Parameter groups with a learning rate each, Adam and AdamW."""

import torch
from torch import nn

from minigpt.config import LearningRates, TrainConfig
from minigpt.model import MiniGPT


def optimizer(model: MiniGPT, config: TrainConfig) -> torch.optim.Optimizer:
    """Fused Adam or AdamW over the groups of `config.lr`; weight decay acts on matrices only."""
    groups = [
        {
            "params": parameters,
            "lr": getattr(config.lr, name),
            "weight_decay": 0.0 if name == "vector" else config.weight_decay,
            "name": name,
        }
        for name, parameters in parameter_groups(model).items()
        if parameters
    ]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def parameter_groups(model: MiniGPT) -> dict[str, list[nn.Parameter]]:
    """Split the parameters of `model` by the fields of LearningRates.

    `hidden`: matrices of the blocks; `embedding`: tokens and learned positions; `head`: the output
    matrix; `vector`: gains, offsets and biases.
    """
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in LearningRates.model_fields}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            groups["vector"].append(parameter)
        elif name.startswith("blocks."):
            groups["hidden"].append(parameter)
        elif name.startswith("head."):
            groups["head"].append(parameter)
        else:
            groups["embedding"].append(parameter)
    return groups


def set_rates(optimizer: torch.optim.Optimizer, lr: LearningRates, factor: float) -> None:
    """Set every group's rate to its peak times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = getattr(lr, group["name"]) * factor


def clip(model: MiniGPT, limit: float | None) -> None:
    """Scale the gradients to a global norm of at most `limit`."""
    if limit is not None:
        nn.utils.clip_grad_norm_(model.parameters(), limit)
