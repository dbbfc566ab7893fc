"""What a model has read: keys and values of every layer, so that generation reads a token once.

Shapes: L layers, B rows, T tokens to be read, S places of a row, H heads, K channels of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.config import ModelConfig


@dataclass(frozen=True)
class Past:
    """One layer's share of a cache, and the tokens that are being read.

    They stand at `position_BT` and attend to the places `seen_B1TS`, in every head.
    """

    keys_BSHK: Tensor
    values_BSHK: Tensor
    position_BT: Tensor
    seen_B1TS: Tensor

    def extended(self, k_BTHK: Tensor, v_BTHK: Tensor) -> tuple[Tensor, Tensor]:
        """Write the keys and values of the tokens at hand; those of all places, k and v_BSHK."""
        rows_B1 = torch.arange(len(k_BTHK), device=k_BTHK.device)[:, None]
        self.keys_BSHK[rows_B1, self.position_BT] = k_BTHK
        self.values_BSHK[rows_B1, self.position_BT] = v_BTHK
        return self.keys_BSHK, self.values_BSHK


class KVCache:
    """Keys and values of B texts, of one model; its place in a row is a token's position.

    `lengths_B` says how much of each row counts: what lies beyond is never attended to, and the
    next tokens replace it. So texts of several lengths are read at once, padded at the end, and
    `lengths_B` is then set to their own. Written in place: for use without gradients.
    """

    def __init__(self, config: ModelConfig, rows: int, room: int, like: Tensor) -> None:
        """Room for `room` tokens in each of `rows`; dtype and device are those of `like`."""
        shape = (config.n_layers, rows, room, config.n_heads, config.d_head)
        self.keys_LBSHK, self.values_LBSHK = like.new_zeros(shape), like.new_zeros(shape)
        self.lengths_B = torch.zeros(rows, dtype=torch.int64, device=like.device)

    def read(self, tokens: int) -> tuple[Tensor, list[Past]]:
        """Take the next `tokens` of every row as read: their position_BT, and each layer's past."""
        position_BT = self.lengths_B[:, None] + torch.arange(tokens, device=self.lengths_B.device)
        self.lengths_B = self.lengths_B + tokens
        S = int(self.lengths_B.max())  # attention over what is empty everywhere would be wasted
        seen_BTS = position_BT[..., None] >= torch.arange(S, device=position_BT.device)
        layers = zip(self.keys_LBSHK, self.values_LBSHK, strict=True)
        return position_BT, [
            Past(k[:, :S], v[:, :S], position_BT, seen_BTS[:, None]) for k, v in layers
        ]

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows, in this order; a row may come several times, or not at all."""
        self.keys_LBSHK = self.keys_LBSHK[:, rows]
        self.values_LBSHK = self.values_LBSHK[:, rows]
        self.lengths_B = self.lengths_B[rows]
