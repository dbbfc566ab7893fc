"""MiniGPT, in two presets that share one code path where they agree.

Shapes: B batch, T sequence, D width (d_model), H heads, K channels of a head, F feed-forward width,
V vocabulary. Given weights with a leading axis (see `minigpt.layers`) the same code is M models at
once, and B stands for the two axes M, B.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.config import ModelConfig
from minigpt.counts import parameter_counts
from minigpt.kvcache import KVCache, Past
from minigpt.layers import Dropout, Embedding, LayerNorm, Linear, RMSNorm
from minigpt.loss import next_token_loss


class MiniGPT(nn.Module):
    """A decoder-only transformer; `forward` maps tokens_BT to logits_BTV, or to a loss.

    `vaswani`: x = LayerNorm(x + MHA(x)), then x = LayerNorm(x + FFN(x)); embeddings × √d_model
    (Vaswani et al. 2017, §3, decoder without cross-attention), torch's default initial
    distributions. `gpt`: x = x + MHA(RMSNorm(x)), then x = x + MLP(RMSNorm(x)); initial matrices
    N(0, 1/fan_in), embeddings N(0, 1), residual outputs and head zero, so the first loss is ln V
    exactly. Initial weights are drawn from `seed` alone: the global generator is left as it was.
    """

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # of the CPU, where weights are drawn
            self._build(config)
        own = sum(p.numel() for p in self.parameters())
        counted = parameter_counts(config).total
        assert own == counted, f"counts.py says {counted:,} parameters, the module has {own:,}"

    def _build(self, config: ModelConfig) -> None:
        gpt = config.preset == "gpt"
        self.position: Tensor
        self.cos_TK: Tensor
        self.sin_TK: Tensor
        self.embedding = Embedding(config.vocab_size, config.d_model)
        if config.positions == "learned":
            self.position = nn.Parameter(torch.zeros(config.seq_len, config.d_model))
        elif config.positions == "sinusoidal":
            self.register_buffer("position", _sinusoids_TD(config), persistent=False)
        else:
            cos_TK, sin_TK = _rotations_TK(config)
            self.register_buffer("cos_TK", cos_TK, persistent=False)
            self.register_buffer("sin_TK", sin_TK, persistent=False)
        self.dropout = Dropout(config.dropout)  # one for all of it: they draw from one generator
        self.blocks = nn.ModuleList(Block(config, self.dropout) for _ in range(config.n_layers))
        self.final_norm = RMSNorm(config.d_model, eps=1e-6) if gpt else nn.Identity()
        self.head = Linear(config.d_model, config.vocab_size, bias=not gpt)
        if gpt:
            self._init_gpt()

    def _init_gpt(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.down.weight", "head.weight")):
                nn.init.zeros_(parameter)

    def forward(
        self, tokens_BT: Tensor, targets_BT: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        """Logits_BTV of the next token after each position; T at most `seq_len`.

        Given targets, their mean loss (see `minigpt.loss`) in place of the logits. Given a cache,
        the tokens go on from the texts that it holds, `seq_len` in all, and it holds them too.
        """
        T = tokens_BT.shape[-1]
        at, pasts = (slice(T), [None] * len(self.blocks)) if cache is None else cache.read(T)
        x_BTD, rotation = self.embedding(tokens_BT), None
        if self.config.preset == "vaswani":
            # One for every sequence of a batch, or where each goes on at a place of its own.
            position_BTD = self.position[..., None, at, :] if cache is None else self.position[at]
            x_BTD = x_BTD * math.sqrt(self.config.d_model) + position_BTD
        else:
            rotation = (self.cos_TK[at][..., None, None, :], self.sin_TK[at][..., None, None, :])
        x_BTD = self.dropout(x_BTD)
        for block, past in zip(self.blocks, pasts, strict=True):
            x_BTD = block(x_BTD, rotation, past)
        if targets_BT is None:
            return self.head(self.final_norm(x_BTD))
        return self.loss(x_BTD, targets_BT)

    def loss(self, x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        """The loss of what the blocks made of a text (see `minigpt.loss`)."""
        return next_token_loss(self.final_norm(x_BTD), self.head, targets_BT)


class Block(nn.Module):
    """Attention and MLP with residuals, norms before (`gpt`) or after (`vaswani`)."""

    def __init__(self, config: ModelConfig, dropout: Dropout) -> None:
        super().__init__()
        self.pre_norm = config.preset == "gpt"
        norm = RMSNorm if self.pre_norm else LayerNorm
        eps = 1e-6 if self.pre_norm else 1e-5
        self.attention = Attention(config)
        self.mlp = MLP(config)
        self.norm1 = norm(config.d_model, eps=eps)
        self.norm2 = norm(config.d_model, eps=eps)
        self.dropout = dropout

    def forward(
        self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor] | None, past: Past | None = None
    ) -> Tensor:
        if self.pre_norm:
            x_BTD = x_BTD + self.dropout(self.attention(self.norm1(x_BTD), rotation, past))
            return x_BTD + self.dropout(self.mlp(self.norm2(x_BTD)))
        x_BTD = self.norm1(x_BTD + self.dropout(self.attention(x_BTD, rotation, past)))
        return self.norm2(x_BTD + self.dropout(self.mlp(x_BTD)))


class Attention(nn.Module):
    """Causal softmax(QKᵀ/√d_k)V over H heads, with one fused projection to Q, K and V.

    The fused matrix has the initial distribution of three separate ones: torch's bound depends on
    fan_in only.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        gpt = config.preset == "gpt"
        self.n_heads = config.n_heads
        self.qkv = Linear(config.d_model, 3 * config.d_model, bias=not gpt)
        self.out = Linear(config.d_model, config.d_model, bias=not gpt)
        self.qk_norm = RMSNorm(config.d_head, eps=1e-6) if gpt else nn.Identity()

    def forward(
        self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor] | None, past: Past | None = None
    ) -> Tensor:
        q_BTHK, k_BTHK, v_BTHK = self.queries_keys_values(x_BTD, rotation)
        if past is not None:
            k_BTHK, v_BTHK = past.extended(k_BTHK, v_BTHK)
        # To attention, which has no weights, several models are a larger batch.
        q, k, v = (x.flatten(0, -4).transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))
        seen = None if past is None else past.seen_B1TS
        y_BHTK = F.scaled_dot_product_attention(q, k, v, seen, is_causal=past is None)
        return self.out(y_BHTK.transpose(1, 2).reshape(x_BTD.shape))

    def queries_keys_values(
        self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v (each _BTHK) of every head, normed and turned where the preset does so."""
        qkv_BT3HK = self.qkv(x_BTD).unflatten(-1, (3, self.n_heads, -1))
        if rotation is None:
            q_BTHK, k_BTHK, v_BTHK = qkv_BT3HK.unbind(-3)
            return q_BTHK, k_BTHK, v_BTHK
        # Norm and rotation in float32, also under autocast.
        qk_BT2HK, v_BT1HK = qkv_BT3HK.split((2, 1), dim=-3)
        qk_BT2HK = _rotate(self.qk_norm(qk_BT2HK.to(rotation[0].dtype)), *rotation)
        q_BTHK, k_BTHK = qk_BT2HK.unbind(-3)
        return q_BTHK, k_BTHK, v_BT1HK.squeeze(-3)


class MLP(nn.Module):
    """Two matrices with ReLU, ReLU² (So et al. 2021, Primer) or GELU between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.preset == "vaswani"
        self.activation = config.activation
        self.up = Linear(config.d_model, config.d_ff, bias=bias)
        self.down = Linear(config.d_ff, config.d_model, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = self.up(x_BTD)
        h_BTF = F.gelu(h_BTF) if self.activation == "gelu" else F.relu(h_BTF)
        return self.down(h_BTF.square() if self.activation == "relu2" else h_BTF)


def _rotations_TK(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles (Su et al. 2021, RoFormer), base 10,000."""
    half = config.d_head // 2
    rate_K = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle_TK = torch.arange(config.seq_len, dtype=torch.float64)[:, None] * rate_K
    angle_TK = torch.cat((angle_TK, angle_TK), dim=1)
    dtype = torch.get_default_dtype()
    return angle_TK.cos().to(dtype), angle_TK.sin().to(dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the channel pairs of x (..., K) by angles that broadcast to it."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def _sinusoids_TD(config: ModelConfig) -> Tensor:
    """sin and cos of pos/10000^(2i/d) in even and odd channels (Vaswani et al. 2017, §3.5)."""
    i = torch.arange(config.d_model, dtype=torch.float64)
    rate_D = 10_000.0 ** (-2 * (i // 2) / config.d_model)
    angle_TD = torch.arange(config.seq_len, dtype=torch.float64)[:, None] * rate_D
    return torch.where(i.long() % 2 == 0, angle_TD.sin(), angle_TD.cos()).to(
        torch.get_default_dtype()
    )
