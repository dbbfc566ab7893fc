"""The plain loop that benchmarks compare with: the textbook's model, trained the textbook's way.

The model is that of preset `vaswani`, written down literally: separate projections to Q, K and V,
an explicit masked softmax, heads batched by view. Training is torch.optim.Adam with its defaults,
float32 on a CPU and bfloat16 autocast on a GPU, the loss fetched at every step.

Shapes: B batch, T sequence, D width (d_model), H heads, K channels of a head, V vocabulary.
"""

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minigpt import data
from minigpt.config import ModelConfig


class ReferenceModel(nn.Module):
    """Decoder-only transformer of Vaswani et al. 2017 (§3), post-norm, with learned positions.

    Of `config` only shapes are used, whatever its preset. Initial weights are torch's defaults.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.scale = math.sqrt(config.d_model)
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position = nn.Parameter(torch.zeros(config.seq_len, config.d_model))
        self.blocks = nn.ModuleList(ReferenceBlock(config) for _ in range(config.n_layers))
        self.head = nn.Linear(config.d_model, config.vocab_size)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits_BTV of the next token after each position."""
        x_BTD = self.embedding(tokens_BT) * self.scale + self.position
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(x_BTD)


class ReferenceBlock(nn.Module):
    """x = LayerNorm(x + MHA(x)), then x = LayerNorm(x + FFN(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D, T = config.d_model, config.seq_len
        self.n_heads, self.d_head = config.n_heads, config.d_head
        self.q, self.k, self.v, self.out = (nn.Linear(D, D) for _ in range(4))
        self.up, self.down = nn.Linear(D, config.d_ff), nn.Linear(config.d_ff, D)
        self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.future_TT: Tensor
        self.register_buffer("future_TT", torch.ones(T, T, dtype=torch.bool).triu(1))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = self.norm1(x_BTD + self._attention(x_BTD))
        return self.norm2(x_BTD + self.down(F.relu(self.up(x_BTD))))

    def _attention(self, x_BTD: Tensor) -> Tensor:
        """softmax(QKᵀ/√d_k)V (eq. 1), no position attending to a later one."""
        B, T, D = x_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = (
            project(x_BTD).view(B, T, self.n_heads, self.d_head).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        scores_BHTT = q_BHTK @ k_BHTK.transpose(-2, -1) / math.sqrt(self.d_head)
        weights_BHTT = scores_BHTT.masked_fill(self.future_TT, -math.inf).softmax(dim=-1)
        return self.out((weights_BHTT @ v_BHTK).transpose(1, 2).reshape(B, T, D))


class ReferenceLoop:
    """The model, its optimiser and its data; `step` trains it by the next batch."""

    def __init__(
        self,
        config: ModelConfig,
        corpus: data.Corpus,
        *,
        batch_tokens: int,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.model = ReferenceModel(config).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters())
        self.corpus, self.seed, self.device = corpus, seed, device
        self.seq_len, self.batch_size = config.seq_len, batch_tokens // config.seq_len
        self.done = 0

    def step(self) -> float:
        """One optimiser step; the loss before it, in nats per token."""
        inputs, targets = data.batch(
            self.corpus,
            seed=self.seed,
            step=self.done,
            batch_size=self.batch_size,
            seq_len=self.seq_len,
        )
        tokens_BT = torch.from_numpy(inputs).to(self.device)
        targets_BT = torch.from_numpy(targets).to(self.device)
        half = self.device.startswith("cuda")
        with torch.autocast("cuda", dtype=torch.bfloat16) if half else nullcontext():
            logits_BTV = self.model(tokens_BT)
            loss = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.done += 1
        return loss.item()
