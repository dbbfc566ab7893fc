"""Both presets: causality, normalisation, initial distributions, determinism."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from minigpt.config import ModelConfig
from minigpt.loss import IGNORED, cross_entropy
from minigpt.model import MiniGPT, _rotate

PRESETS = [("gpt", "rotary"), ("vaswani", "learned"), ("vaswani", "sinusoidal")]
both = pytest.mark.parametrize(("preset", "positions"), PRESETS)


pytestmark = pytest.mark.usefixtures("float64")


def config(preset: str, positions: str, **changes: int) -> ModelConfig:
    shape = {"d_model": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 31, "seq_len": 12}
    return ModelConfig.model_validate(shape | {"preset": preset, "positions": positions} | changes)


def perturbed(config: ModelConfig, seed: int = 0) -> MiniGPT:
    """A model none of whose weights is zero or one."""
    model, draw = MiniGPT(config, seed=seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.3 * torch.randn(p.shape, generator=draw)
    return model


@settings(max_examples=60)
@given(data=st.data())
def test_logits_before_a_changed_token_stay(data):
    preset, positions = data.draw(st.sampled_from(PRESETS))
    n_heads = data.draw(st.integers(1, 3))
    made = config(
        preset,
        positions,
        d_model=n_heads * 2 * data.draw(st.integers(1, 4)),
        n_heads=n_heads,
        n_layers=data.draw(st.integers(1, 3)),
        vocab_size=data.draw(st.integers(2, 20)),
        seq_len=data.draw(st.integers(1, 16)),
    )
    B, T = data.draw(st.integers(1, 3)), data.draw(st.integers(1, made.seq_len))
    t, seed = data.draw(st.integers(0, T - 1)), data.draw(st.integers(0, 1000))
    model = perturbed(made, seed)
    draw = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(made.vocab_size, (B, T), generator=draw)
    changed_BT = tokens_BT.clone()
    changed_BT[:, t] = (changed_BT[:, t] + 1) % made.vocab_size
    with torch.no_grad():
        one_BTV, two_BTV = model(tokens_BT), model(changed_BT)
    torch.testing.assert_close(one_BTV[:, :t], two_BTV[:, :t], rtol=1e-12, atol=1e-12)


@both
def test_every_later_position_sees_an_earlier_token(preset, positions):
    model = perturbed(config(preset, positions))
    one_BT = torch.arange(12)[None]
    two_BT = one_BT.clone()
    two_BT[0, 0] = 30
    difference_T = (model(one_BT) - model(two_BT)).abs().amax(dim=(0, 2))
    assert (difference_T > 1e-6).all()


@both
def test_order_of_earlier_tokens_matters(preset, positions):
    made = config(preset, positions, n_layers=1)  # a single layer needs positions to see order
    model = perturbed(made)
    one_V, two_V = model(torch.tensor([[3, 7, 11, 5], [7, 3, 11, 5]]))[:, -1]
    assert (one_V - two_V).abs().max() > 1e-6


@both
def test_probabilities_of_all_sequences_sum_to_one(preset, positions):
    V, T = 5, 4
    model = perturbed(config(preset, positions, vocab_size=V, seq_len=T))
    sequences_BT = torch.tensor(list(itertools.product(range(V), repeat=T)))
    start_B1 = torch.full((V**T, 1), 2)
    inputs_BT = torch.cat((start_B1, sequences_BT[:, :-1]), dim=1)
    log_p_BTV = model(inputs_BT).log_softmax(dim=-1)
    log_p_B = log_p_BTV.gather(2, sequences_BT[:, :, None]).sum(dim=(1, 2))
    assert log_p_B.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert log_p_B.std() > 0.1  # a uniform model would say nothing


@both
def test_shorter_contexts_are_prefixes_of_the_whole(preset, positions):
    model = perturbed(config(preset, positions))
    tokens_BT = torch.arange(24).view(2, 12)
    for T in (1, 5, 12):
        torch.testing.assert_close(model(tokens_BT[:, :T]), model(tokens_BT)[:, :T])


def test_gpt_positions_act_on_queries_and_keys_only():
    """Attention over equal tokens averages equal values, wherever they stand."""
    model = perturbed(config("gpt", "rotary", seq_len=40))
    whole_TV = model(torch.full((1, 40), 4))[0]
    torch.testing.assert_close(whole_TV, whole_TV[:1].expand(40, -1))


def test_rotary_scores_are_relative():
    model = perturbed(config("gpt", "rotary", seq_len=40))
    draw = torch.Generator().manual_seed(1)
    q_K, k_K = torch.randn(2, 8, generator=draw)
    q_TK = _rotate(q_K.expand(40, 8), model.cos_TK, model.sin_TK)
    k_TK = _rotate(k_K.expand(40, 8), model.cos_TK, model.sin_TK)
    score_TT = q_TK @ k_TK.T
    for distance in (0, 1, 7):
        diagonal = score_TT.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert (score_TT[:, 0] - score_TT[0, 0]).abs()[1:].max() > 0.1


# The first weights


@pytest.mark.parametrize("activation", ["relu2", "gelu", "relu"])
@pytest.mark.parametrize("vocab_size", [2, 257, 1000])
def test_gpt_starts_at_ln_v_exactly(vocab_size, activation):
    made = ModelConfig(
        d_model=16, n_layers=2, n_heads=2, vocab_size=vocab_size, seq_len=8, activation=activation
    )
    tokens_BT = torch.randint(vocab_size, (4, 8))
    logits_BTV = MiniGPT(made)(tokens_BT)
    assert (logits_BTV == 0).all()
    loss = cross_entropy(logits_BTV, tokens_BT)
    assert loss.item() == pytest.approx(math.log(vocab_size), rel=1e-15)


@pytest.fixture(scope="module")
def wide():
    """Wide enough for the spread of each matrix to be known to a percent."""
    return ModelConfig(d_model=96, n_layers=2, n_heads=2, vocab_size=400, seq_len=8)


def test_gpt_initial_spreads(wide):
    state = dict(MiniGPT(wide, seed=3).named_parameters())
    for name, p in state.items():
        if name.endswith(("attention.out.weight", "mlp.down.weight", "head.weight")):
            assert (p == 0).all(), name
        elif "norm" in name:
            assert (p == 1).all(), name
        else:
            std = 1.0 if name == "embedding.weight" else p.shape[1] ** -0.5
            assert p.std().item() == pytest.approx(std, rel=0.03), name
            assert abs(p.mean().item()) < 0.03 * std, name
            assert p.abs().max().item() > 3 * std, name  # normal, not uniform
    zero = [name for name, p in state.items() if (p == 0).all()]
    assert len(zero) == 2 * 2 + 1


def test_gpt_has_no_biases(wide):
    assert not [name for name, _ in MiniGPT(wide).named_parameters() if "bias" in name]


def test_vaswani_starts_with_torchs_distributions():
    made = ModelConfig(preset="vaswani", d_model=96, n_heads=2, vocab_size=400, seq_len=8)
    model = MiniGPT(made, seed=3)
    torch.manual_seed(0)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            fresh = nn.Linear(module.in_features, module.out_features)
            bound = module.in_features**-0.5
            for own, other in ((module.weight, fresh.weight), (module.bias, fresh.bias)):
                assert own.abs().max() <= bound
                assert own.abs().max() > 0.9 * bound, name
                tolerance = 3 / math.sqrt(own.numel())  # of a uniform's spread, generously
                assert own.std().item() == pytest.approx(bound / math.sqrt(3), rel=tolerance)
                assert own.std().item() == pytest.approx(other.std().item(), rel=2 * tolerance)
        elif isinstance(module, nn.Embedding):
            fresh = nn.Embedding(module.num_embeddings, module.embedding_dim)
            assert module.weight.std().item() == pytest.approx(1, rel=0.02)
            assert module.weight.std().item() == pytest.approx(fresh.weight.std().item(), rel=0.03)
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
            assert module.eps == 1e-5
    assert isinstance(model.position, nn.Parameter)
    assert (model.position == 0).all()


def test_sinusoidal_positions_are_a_formula_not_a_parameter():
    model = MiniGPT(config("vaswani", "sinusoidal", d_model=6, n_heads=1))
    assert "position" not in dict(model.named_parameters())
    for pos in range(12):
        for i in range(3):
            angle = pos / 10_000 ** (2 * i / 6)
            assert model.position[pos, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-14)
            assert model.position[pos, 2 * i + 1].item() == pytest.approx(
                math.cos(angle), abs=1e-14
            )


@both
def test_head_is_not_tied_to_the_embedding(preset, positions):
    model = MiniGPT(config(preset, positions))
    assert model.head.weight.data_ptr() != model.embedding.weight.data_ptr()


@both
def test_same_seed_same_weights(preset, positions):
    made = config(preset, positions)
    torch.manual_seed(1)
    one = MiniGPT(made, seed=5).state_dict()
    torch.manual_seed(2)  # the state of the global generator does not matter
    two, other = MiniGPT(made, seed=5).state_dict(), MiniGPT(made, seed=6).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["embedding.weight"], other["embedding.weight"])


@both
def test_construction_leaves_the_global_generator_alone(preset, positions):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    MiniGPT(config(preset, positions), seed=5)
    assert torch.equal(torch.get_rng_state(), before)


def test_construction_seeds_no_device(monkeypatch):
    """`torch.manual_seed` would seed every GPU, and nothing would put that back."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    MiniGPT(config("gpt", "rotary"), seed=5)
    assert not seeded


# The loss


def test_loss_is_the_mean_over_targets_that_count():
    draw = torch.Generator().manual_seed(0)
    logits_BTV = torch.randn(2, 3, 5, generator=draw)
    targets_BT = torch.tensor([[0, IGNORED, 4], [2, 2, IGNORED]])
    p_BTV = logits_BTV.exp() / logits_BTV.exp().sum(dim=-1, keepdim=True)
    kept = [p_BTV[b, t, targets_BT[b, t]] for b, t in ((0, 0), (0, 2), (1, 0), (1, 1))]
    expected = -sum(math.log(p.item()) for p in kept) / 4
    assert cross_entropy(logits_BTV, targets_BT).item() == pytest.approx(expected, rel=1e-14)


def test_loss_of_bfloat16_logits_is_taken_in_float32():
    draw = torch.Generator().manual_seed(0)
    logits_BTV = torch.randn(2, 3, 5, generator=draw).bfloat16()
    targets_BT = torch.zeros(2, 3, dtype=torch.long)
    loss = cross_entropy(logits_BTV, targets_BT)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, cross_entropy(logits_BTV.float(), targets_BT))


@pytest.mark.parametrize(
    ("activation", "formula"),
    [
        ("relu", lambda h: h.clamp(min=0)),
        ("relu2", lambda h: h.clamp(min=0) ** 2),
        ("gelu", lambda h: h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))),
    ],
)
def test_activations_by_formula(activation, formula):
    made = ModelConfig(
        d_model=8, n_layers=1, n_heads=1, vocab_size=5, seq_len=4, activation=activation
    )
    mlp = perturbed(made).blocks[0].mlp
    x_BTD = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    expected = formula(x_BTD @ mlp.up.weight.T) @ mlp.down.weight.T
    torch.testing.assert_close(mlp(x_BTD), expected, rtol=1e-12, atol=1e-12)


def test_gpt_forward_by_formula():
    """The whole `gpt` preset once more, one head and one position at a time."""
    made = config("gpt", "rotary", seq_len=6, n_heads=2, d_model=12)
    model, K = perturbed(made), 6
    w = model.state_dict()
    tokens_T = torch.tensor([3, 1, 4, 1, 5, 9])

    def rms(x, gain):
        return x / torch.sqrt((x * x).mean(dim=-1, keepdim=True) + 1e-6) * gain

    def turned(x_TK):
        out = torch.empty_like(x_TK)
        for t in range(6):
            for i in range(K // 2):
                angle = t * 10_000 ** (-2 * i / K)
                a, b = x_TK[t, i], x_TK[t, i + K // 2]
                out[t, i] = a * math.cos(angle) - b * math.sin(angle)
                out[t, i + K // 2] = a * math.sin(angle) + b * math.cos(angle)
        return out

    x_TD = w["embedding.weight"][tokens_T]
    for layer in range(made.n_layers):
        own = {k.removeprefix(f"blocks.{layer}."): v for k, v in w.items()}
        q_TD, k_TD, v_TD = (rms(x_TD, own["norm1.weight"]) @ own["attention.qkv.weight"].T).chunk(
            3, dim=-1
        )
        heads = []
        for head in range(2):
            part = slice(head * K, (head + 1) * K)
            q_TK = turned(rms(q_TD[:, part], own["attention.qk_norm.weight"]))
            k_TK = turned(rms(k_TD[:, part], own["attention.qk_norm.weight"]))
            rows = []
            for t in range(6):
                weight = torch.exp(k_TK[: t + 1] @ q_TK[t] / math.sqrt(K))
                rows.append(weight @ v_TD[: t + 1, part] / weight.sum())
            heads.append(torch.stack(rows))
        x_TD = x_TD + torch.cat(heads, dim=-1) @ own["attention.out.weight"].T
        h_TF = rms(x_TD, own["norm2.weight"]) @ own["mlp.up.weight"].T
        x_TD = x_TD + h_TF.clamp(min=0) ** 2 @ own["mlp.down.weight"].T
    expected = rms(x_TD, w["final_norm.weight"]) @ w["head.weight"].T
    torch.testing.assert_close(model(tokens_T[None])[0], expected, rtol=1e-10, atol=1e-12)
