"""MiniGPT, in two presets that share one code path where they agree.

Shapes: B batch, T sequence, D width (d_model), H heads, K channels of a head, F feed-forward width,
V vocabulary.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt.config import ModelConfig
from minigpt.counts import parameter_counts

IGNORED = -100  # a target that does not enter the loss


class MiniGPT(nn.Module):
    """A decoder-only transformer; `forward` maps tokens_BT to logits_BTV.

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
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.positions == "learned":
            self.position = nn.Parameter(torch.zeros(config.seq_len, config.d_model))
        elif config.positions == "sinusoidal":
            self.register_buffer("position", _sinusoids_TD(config), persistent=False)
        else:
            cos_TK, sin_TK = _rotations_TK(config)
            self.register_buffer("cos_TK", cos_TK, persistent=False)
            self.register_buffer("sin_TK", sin_TK, persistent=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = nn.RMSNorm(config.d_model, eps=1e-6) if gpt else nn.Identity()
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=not gpt)
        if gpt:
            self._init_gpt()

    def _init_gpt(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for name, parameter in self.named_parameters():
            if name.endswith(("attention.out.weight", "mlp.down.weight", "head.weight")):
                nn.init.zeros_(parameter)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits_BTV of the next token after each position; T at most `seq_len`."""
        T = tokens_BT.shape[1]
        x_BTD = self.embedding(tokens_BT)
        rotation = None
        if self.config.preset == "vaswani":
            x_BTD = x_BTD * math.sqrt(self.config.d_model) + self.position[:T]
        else:
            rotation = (self.cos_TK[:T], self.sin_TK[:T])
        for block in self.blocks:
            x_BTD = block(x_BTD, rotation)
        return self.head(self.final_norm(x_BTD))


class Block(nn.Module):
    """Attention and MLP with residuals, norms before (`gpt`) or after (`vaswani`)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pre_norm = config.preset == "gpt"
        norm = nn.RMSNorm if self.pre_norm else nn.LayerNorm
        eps = 1e-6 if self.pre_norm else 1e-5
        self.attention = Attention(config)
        self.mlp = MLP(config)
        self.norm1 = norm(config.d_model, eps=eps)
        self.norm2 = norm(config.d_model, eps=eps)

    def forward(self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        if self.pre_norm:
            x_BTD = x_BTD + self.attention(self.norm1(x_BTD), rotation)
            return x_BTD + self.mlp(self.norm2(x_BTD))
        x_BTD = self.norm1(x_BTD + self.attention(x_BTD, rotation))
        return self.norm2(x_BTD + self.mlp(x_BTD))


class Attention(nn.Module):
    """Causal softmax(QKᵀ/√d_k)V over H heads, with one fused projection to Q, K and V.

    The fused matrix has the initial distribution of three separate ones: torch's bound depends on
    fan_in only.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        gpt = config.preset == "gpt"
        self.n_heads = config.n_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=not gpt)
        self.out = nn.Linear(config.d_model, config.d_model, bias=not gpt)
        self.qk_norm = nn.RMSNorm(config.d_head, eps=1e-6) if gpt else nn.Identity()

    def forward(self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor] | None) -> Tensor:
        B, T, D = x_BTD.shape
        qkv_3BHTK = self.qkv(x_BTD).view(B, T, 3, self.n_heads, D // self.n_heads)
        qkv_3BHTK = qkv_3BHTK.permute(2, 0, 3, 1, 4)
        qk_2BHTK, v_BHTK = qkv_3BHTK[:2], qkv_3BHTK[2]
        if rotation is not None:  # norm and rotation in float32, also under autocast
            qk_2BHTK = _rotate(self.qk_norm(qk_2BHTK.to(rotation[0].dtype)), *rotation)
        q_BHTK, k_BHTK = qk_2BHTK.unbind(0)
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        return self.out(y_BHTK.transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    """Two matrices with ReLU, ReLU² (So et al. 2021, Primer) or GELU between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.preset == "vaswani"
        self.activation = config.activation
        self.up = nn.Linear(config.d_model, config.d_ff, bias=bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = self.up(x_BTD)
        h_BTF = F.gelu(h_BTF) if self.activation == "gelu" else F.relu(h_BTF)
        return self.down(h_BTF.square() if self.activation == "relu2" else h_BTF)


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean −log P(target), a scalar in nats per token, over targets that are not IGNORED."""
    logits_BTV = logits_BTV.float() if logits_BTV.dtype == torch.bfloat16 else logits_BTV
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=IGNORED)


def _rotations_TK(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles (Su et al. 2021, RoFormer), base 10,000."""
    half = config.d_head // 2
    rate_K = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle_TK = torch.arange(config.seq_len, dtype=torch.float64)[:, None] * rate_K
    angle_TK = torch.cat((angle_TK, angle_TK), dim=1)
    dtype = torch.get_default_dtype()
    return angle_TK.cos().to(dtype), angle_TK.sin().to(dtype)


def _rotate(x_TK: Tensor, cos_TK: Tensor, sin_TK: Tensor) -> Tensor:
    """Turn the channel pairs of x (..., T, K) by their position's angles."""
    a, b = x_TK.chunk(2, dim=-1)
    return x_TK * cos_TK + torch.cat((-b, a), dim=-1) * sin_TK


def _sinusoids_TD(config: ModelConfig) -> Tensor:
    """sin and cos of pos/10000^(2i/d) in even and odd channels (Vaswani et al. 2017, §3.5)."""
    i = torch.arange(config.d_model, dtype=torch.float64)
    rate_D = 10_000.0 ** (-2 * (i // 2) / config.d_model)
    angle_TD = torch.arange(config.seq_len, dtype=torch.float64)[:, None] * rate_D
    return torch.where(i.long() % 2 == 0, angle_TD.sin(), angle_TD.cos()).to(
        torch.get_default_dtype()
    )
