"""The `vaswani` preset against a literal implementation written here from the papers.

Vaswani et al. 2017 §3 (decoder without cross-attention) and §5.4 (dropout, of the same entries in
both), Kingma & Ba 2015 algorithm 1; plain tensors, one head at a time.

Shapes: B batch, T sequence, D width, K channels of a head, F feed-forward width, V vocabulary.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minigpt import optim
from minigpt.config import LearningRates, ModelConfig, ScheduleConfig, TrainConfig
from minigpt.counts import parameter_counts
from minigpt.loss import cross_entropy
from minigpt.model import MiniGPT

Weights = dict[str, Tensor]
RTOL = 1e-6


pytestmark = pytest.mark.usefixtures("float64")


# The reference


def layer_norm(x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    mean = x.sum(dim=-1, keepdim=True) / x.shape[-1]
    variance = ((x - mean) ** 2).sum(dim=-1, keepdim=True) / x.shape[-1]
    return (x - mean) / torch.sqrt(variance + 1e-5) * gain + offset


def softmax(x: Tensor) -> Tensor:
    e = torch.exp(x - x.max(dim=-1, keepdim=True).values)
    return e / e.sum(dim=-1, keepdim=True)


def multi_head_attention(x_BTD: Tensor, w: Weights, layer: str, n_heads: int) -> Tensor:
    T, D = x_BTD.shape[1:]
    K = D // n_heads
    q_BTD = x_BTD @ w[layer + "W_Q"] + w[layer + "b_Q"]
    k_BTD = x_BTD @ w[layer + "W_K"] + w[layer + "b_K"]
    v_BTD = x_BTD @ w[layer + "W_V"] + w[layer + "b_V"]
    mask_TT = torch.zeros(T, T)
    for query in range(T):
        for key in range(query + 1, T):
            mask_TT[query, key] = -math.inf
    heads = []
    for h in range(n_heads):
        own = slice(h * K, (h + 1) * K)
        scores_BTT = q_BTD[..., own] @ k_BTD[..., own].transpose(1, 2) / math.sqrt(K) + mask_TT
        heads.append(softmax(scores_BTT) @ v_BTD[..., own])
    return torch.cat(heads, dim=-1) @ w[layer + "W_O"] + w[layer + "b_O"]


def feed_forward(x_BTD: Tensor, w: Weights, layer: str) -> Tensor:
    h_BTF = x_BTD @ w[layer + "W_1"] + w[layer + "b_1"]
    h_BTF = torch.where(h_BTF > 0, h_BTF, torch.zeros_like(h_BTF))
    return h_BTF @ w[layer + "W_2"] + w[layer + "b_2"]


def drawn_masks(shape: tuple[int, ...], n_layers: int, p: float, seed: int) -> list[Tensor]:
    """1 / (1 − p) where an entry is kept: of the first input, then of every sublayer's output."""
    draw = torch.Generator().manual_seed(seed)
    kept = [torch.empty(shape).bernoulli_(1 - p, generator=draw) for _ in range(1 + 2 * n_layers)]
    return [torch.where(mask == 1, 1 / (1 - p), 0.0) for mask in kept]


def reference_logits(
    tokens_BT: Tensor, w: Weights, n_layers: int, n_heads: int, masks: list[Tensor] | None = None
) -> Tensor:
    T, D = tokens_BT.shape[1], w["E"].shape[1]
    masks = [torch.ones(())] * (1 + 2 * n_layers) if masks is None else masks
    x_BTD = masks[0] * (w["E"][tokens_BT] * math.sqrt(D) + w["P"][:T])
    for i in range(n_layers):
        layer = f"{i}."
        attended = masks[1 + 2 * i] * multi_head_attention(x_BTD, w, layer, n_heads)
        x_BTD = layer_norm(x_BTD + attended, w[layer + "g_1"], w[layer + "o_1"])
        passed = masks[2 + 2 * i] * feed_forward(x_BTD, w, layer)
        x_BTD = layer_norm(x_BTD + passed, w[layer + "g_2"], w[layer + "o_2"])
    return x_BTD @ w["W_H"] + w["b_H"]


def reference_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """−(1/BT) Σ log P(x_t | x_<t)."""
    total = torch.zeros(())
    log_z_BT = torch.log(torch.exp(logits_BTV).sum(dim=-1))
    for b in range(targets_BT.shape[0]):
        for t in range(targets_BT.shape[1]):
            total = total + log_z_BT[b, t] - logits_BTV[b, t, targets_BT[b, t]]
    return total / targets_BT.numel()


class ReferenceAdam:
    """Kingma & Ba 2015, algorithm 1."""

    def __init__(self, weights: Weights, rate=1e-3, beta1=0.9, beta2=0.999, eps=1e-8):
        self.weights, self.rate, self.eps = weights, rate, eps
        self.beta1, self.beta2, self.t = beta1, beta2, 0
        self.m = {name: torch.zeros_like(p) for name, p in weights.items()}
        self.v = {name: torch.zeros_like(p) for name, p in weights.items()}

    def step(self, gradients: Weights) -> None:
        self.t += 1
        for name, g in gradients.items():
            self.m[name] = self.beta1 * self.m[name] + (1 - self.beta1) * g
            self.v[name] = self.beta2 * self.v[name] + (1 - self.beta2) * g * g
            m_hat = self.m[name] / (1 - self.beta1**self.t)
            v_hat = self.v[name] / (1 - self.beta2**self.t)
            self.weights[name] = self.weights[name] - self.rate * m_hat / (
                torch.sqrt(v_hat) + self.eps
            )


def sinusoids(T: int, D: int) -> Tensor:
    position_TD = torch.zeros(T, D)
    for pos in range(T):
        for channel in range(D):
            angle = pos / 10_000 ** (2 * (channel // 2) / D)
            position_TD[pos, channel] = math.cos(angle) if channel % 2 else math.sin(angle)
    return position_TD


# From MiniGPT's names to the paper's


def to_reference(values: Weights, config: ModelConfig) -> Weights:
    """Weights or gradients under the paper's names: the fused projection split, matrices as x·W."""
    w = {
        "E": values["embedding.weight"],
        "W_H": values["head.weight"].T,
        "b_H": values["head.bias"],
    }
    if config.positions == "learned":
        w["P"] = values["position"]
    D = config.d_model
    for i in range(config.n_layers):
        own, layer = f"blocks.{i}.", f"{i}."
        for j, name in enumerate("QKV"):
            rows = slice(j * D, (j + 1) * D)
            w[layer + "W_" + name] = values[own + "attention.qkv.weight"][rows].T
            w[layer + "b_" + name] = values[own + "attention.qkv.bias"][rows]
        for theirs, ours in (("O", "attention.out"), ("1", "mlp.up"), ("2", "mlp.down")):
            w[layer + "W_" + theirs] = values[own + ours + ".weight"].T
            w[layer + "b_" + theirs] = values[own + ours + ".bias"]
        for theirs, ours in (("1", "norm1"), ("2", "norm2")):
            w[layer + "g_" + theirs] = values[own + ours + ".weight"]
            w[layer + "o_" + theirs] = values[own + ours + ".bias"]
    return w


def copied(model: MiniGPT) -> Weights:
    """The model's weights, in no way connected with it any more."""
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {name: v.clone().contiguous() for name, v in to_reference(values, model.config).items()}


def reference_step(
    w: Weights, tokens_BT: Tensor, targets_BT: Tensor, config: ModelConfig, seed: int = 0
) -> tuple[Tensor, Tensor, Weights]:
    """Logits, loss and gradients of the reference; `seed` is that of what is dropped."""
    leaves = {name: p.clone().requires_grad_() for name, p in w.items()}
    fixed = {} if "P" in w else {"P": sinusoids(config.seq_len, config.d_model)}
    shape = (*tokens_BT.shape, config.d_model)
    masks = drawn_masks(shape, config.n_layers, config.dropout, seed) if config.dropout else None
    logits_BTV = reference_logits(tokens_BT, leaves | fixed, config.n_layers, config.n_heads, masks)
    loss = reference_loss(logits_BTV, targets_BT)
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return logits_BTV.detach(), loss.detach(), dict(zip(leaves, gradients, strict=True))


def build(config: ModelConfig, seed: int) -> MiniGPT:
    """A model whose zero and one initial values (positions, norms) are random too."""
    model, draw = MiniGPT(config, seed=seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name == "position" or "norm" in name:
                p += 0.5 * torch.randn(p.shape, generator=draw)
    return model


def random_text(config: ModelConfig, B: int, T: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    text = torch.randint(config.vocab_size, (B, T + 1), generator=draw)
    return text[:, :-1], text[:, 1:]


def assert_same(own: Tensor, reference: Tensor) -> None:
    """Equal at RTOL, entries near zero on the scale of the largest."""
    scale = reference.abs().max().item()
    torch.testing.assert_close(own, reference, rtol=RTOL, atol=RTOL * 1e-3 * scale)


@settings(max_examples=25)
@given(data=st.data())
def test_forward_loss_and_gradients_equal_the_reference(data):
    n_heads = data.draw(st.integers(1, 4), label="n_heads")
    config = ModelConfig(
        preset="vaswani",
        positions=data.draw(st.sampled_from(["learned", "sinusoidal"]), label="positions"),
        d_model=n_heads * data.draw(st.integers(4, 8), label="d_head"),
        n_heads=n_heads,
        n_layers=data.draw(st.integers(1, 3), label="n_layers"),
        d_ff=data.draw(st.integers(1, 40), label="d_ff"),
        vocab_size=data.draw(st.integers(2, 60), label="vocab_size"),
        seq_len=data.draw(st.integers(1, 12), label="seq_len"),
        dropout=data.draw(st.sampled_from([0.0, 0.1, 0.6]), label="dropout"),
    )
    B = data.draw(st.integers(1, 3), label="B")
    T = data.draw(st.integers(1, config.seq_len), label="T")
    seed = data.draw(st.integers(0, 10_000), label="seed")
    model = build(config, seed)
    model.dropout.draw = torch.Generator().manual_seed(seed)
    tokens_BT, targets_BT = random_text(config, B, T, seed)

    logits_BTV = model(tokens_BT)
    loss = cross_entropy(logits_BTV, targets_BT)
    loss.backward()
    expected_BTV, expected_loss, expected = reference_step(
        copied(model), tokens_BT, targets_BT, config, seed
    )
    assert_same(logits_BTV.detach(), expected_BTV)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=RTOL)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    own = to_reference(gradients, config)
    assert own.keys() == expected.keys()
    largest = max(g.abs().max().item() for g in expected.values())
    for name, gradient in own.items():
        # Exact zeros (b_K never matters) are rounding noise in both: hence the absolute term.
        torch.testing.assert_close(
            gradient, expected[name], rtol=RTOL, atol=1e-10 * largest, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_ten_adam_steps_and_the_greedy_sequence_equal_the_reference(positions, dropout):
    """The default sizes (vocabulary 1000, d_model 128, 2 layers, 4 heads) and initial weights."""
    config = ModelConfig(preset="vaswani", positions=positions, seq_len=24, dropout=dropout)
    model = MiniGPT(config, seed=1)
    model.dropout.draw = torch.Generator()
    tokens_BT, targets_BT = random_text(config, 4, config.seq_len, seed=1)
    weights = copied(model)

    training = TrainConfig(
        optimizer="adam",
        lr=LearningRates(hidden=1e-3, embedding=1e-3, head=1e-3, vector=1e-3),
        schedule=ScheduleConfig(),
        batch_tokens=tokens_BT.numel(),
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        grad_clip=None,
    )
    adam, losses = optim.optimizer(model, training), []
    for step in range(10):
        model.dropout.draw.manual_seed(step)
        loss = cross_entropy(model(tokens_BT), targets_BT)
        loss.backward()
        optim.clip(model, training.grad_clip)
        adam.step()
        adam.zero_grad(set_to_none=True)
        losses.append(loss.item())

    reference_adam, expected = ReferenceAdam(weights), []
    for step in range(10):
        _, loss, gradients = reference_step(weights, tokens_BT, targets_BT, config, seed=step)
        expected.append(loss.item())
        reference_adam.step(gradients)

    assert losses == pytest.approx(expected, rel=RTOL)
    assert losses[-1] < losses[0] - 1  # ten steps that taught nothing would prove nothing

    own, reference = [42], [42]
    model.eval()  # nothing is dropped
    fixed = {} if "P" in weights else {"P": sinusoids(config.seq_len, config.d_model)}
    with torch.no_grad():
        while len(own) < config.seq_len:
            own.append(int(model(torch.tensor([own]))[0, -1].argmax()))
            logits_BTV = reference_logits(
                torch.tensor([reference]), weights | fixed, config.n_layers, config.n_heads
            )
            reference.append(int(logits_BTV[0, -1].argmax()))
    assert own == reference
    assert len(set(own)) > 3  # more than one token over and over


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_parameter_count_is_the_closed_form(positions):
    config = ModelConfig(preset="vaswani", positions=positions, seq_len=64)
    V, D, F, T, layers = 1000, 128, 512, 64, 2
    attention = 4 * (D * D + D)
    feed_forward = (D * F + F) + (F * D + D)
    norms = 2 * (D + D)
    expected = V * D + layers * (attention + feed_forward + norms) + (D * V + V)
    expected += T * D if positions == "learned" else 0
    model = MiniGPT(config)
    assert expected == (661_736 if positions == "learned" else 653_544)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert parameter_counts(config).total == expected
    assert sum(v.numel() for v in copied(model).values()) == expected
