"""A model whose heads are known, because their weights are set by hand."""

import torch

from minigpt import heads
from minigpt.config import ModelConfig
from minigpt.model import MiniGPT

LETTERS, WIDTH, RATES, CONTEXT = 40, 128, 24, 64
OWN, PREVIOUS = slice(48, 88), slice(88, 128)  # channels: a place's token, and the one before it


def induction_model() -> MiniGPT:
    """Induction by hand (Elhage et al. 2021): two layers of two heads of which the first works.

    Positions are in the first 48 channels, sin and cos of 24 rates. The first head turns a query's
    by one step back, so that it meets its predecessor's key, and copies that token's OWN channels
    to PREVIOUS. The second layer's looks for places whose PREVIOUS token is the query's own, and
    whose own token is not (at the first place the two are the same). MLPs are zero.
    """
    config = ModelConfig(
        preset="vaswani",
        d_model=WIDTH,
        n_layers=2,
        n_heads=2,
        d_ff=1,
        vocab_size=LETTERS,
        seq_len=CONTEXT,
        positions="sinusoidal",
    )
    model = MiniGPT(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        model.embedding.weight[:, OWN] = 100 * torch.eye(LETTERS)
        first, second = (attention.qkv.weight for attention in heads.attentions(model))
        query, key, value = 0, WIDTH, 2 * WIDTH  # rows of the fused matrix
        rate = 10_000.0 ** (-2 * torch.arange(RATES) / WIDTH)
        for i, (sin, cos) in enumerate(zip(rate.sin(), rate.cos(), strict=True)):
            turn = torch.tensor([[cos, -sin], [sin, cos]])
            first[query + 2 * i : query + 2 * i + 2, 2 * i : 2 * i + 2] = 100 * turn
            first[key + 2 * i : key + 2 * i + 2, 2 * i : 2 * i + 2] = torch.eye(2)
        first[value : value + LETTERS, OWN] = torch.eye(LETTERS)
        second[query : query + LETTERS, OWN] = 10 * torch.eye(LETTERS)
        second[key : key + LETTERS, PREVIOUS] = torch.eye(LETTERS)
        second[key : key + LETTERS, OWN] = -torch.eye(LETTERS)
        second[value : value + LETTERS, OWN] = torch.eye(LETTERS)
        one, two = (attention.out.weight for attention in heads.attentions(model))
        one[PREVIOUS, :LETTERS] = torch.eye(LETTERS)
        two[OWN, :LETTERS] = torch.eye(LETTERS)
        model.head.weight[:, OWN] = torch.eye(LETTERS)
    return model.eval()
