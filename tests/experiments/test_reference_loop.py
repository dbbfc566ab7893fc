"""The plain loop of the benchmarks is the same model as preset `vaswani`, trained the same way."""

from pathlib import Path

import pytest
import torch

from experiments.reference import ReferenceLoop, ReferenceModel
from experiments.trial import RATE, chain, vaswani
from minigpt.config import DataConfig, LearningRates, ScheduleConfig, TrainConfig
from minigpt.counts import parameter_counts
from minigpt.data import Corpus, batch
from minigpt.model import MiniGPT
from minigpt.state import Job, fresh
from minigpt.step import Single

CONFIG = vaswani(d_model=24, n_layers=2, n_heads=3, seq_len=16, vocab_size=50)
BATCH, SEED, STEPS = 64, 3, 6


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return chain(CONFIG.vocab_size)


def copy_weights(ours: MiniGPT, reference: ReferenceModel) -> None:
    """Split the fused projection; every other tensor has its counterpart."""
    values = {}
    for name, tensor in ours.state_dict().items():
        own = name.replace("mlp.", "").replace("attention.", "")
        if "qkv" in name:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                values[own.replace("qkv", part)] = third
        else:
            values[own] = tensor
    future = {k: v for k, v in reference.state_dict().items() if k.endswith("future_TT")}
    reference.load_state_dict(values | future)


def test_same_parameters() -> None:
    own = sum(p.numel() for p in ReferenceModel(CONFIG).parameters())
    assert own == parameter_counts(CONFIG).total


def test_same_logits(corpus: Corpus) -> None:
    ours, reference = MiniGPT(CONFIG, seed=SEED), ReferenceModel(CONFIG)
    torch.nn.init.normal_(ours.position)  # type: ignore[arg-type]  # zeros would hide them
    copy_weights(ours, reference)
    tokens_BT = torch.from_numpy(batch(corpus, seed=0, step=0, batch_size=4, seq_len=16)[0])
    torch.testing.assert_close(reference(tokens_BT), ours(tokens_BT), rtol=1e-5, atol=1e-5)


def test_same_losses_and_weights_after_steps_of_adam(corpus: Corpus) -> None:
    train = TrainConfig(
        optimizer="adam",
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        lr=LearningRates(**dict.fromkeys(LearningRates.model_fields, RATE)),
        schedule=ScheduleConfig(),
        batch_tokens=BATCH,
        grad_clip=None,
        seed=SEED,
    )
    job = Job(model=CONFIG, data=DataConfig(), train=train, corpus=corpus, folder=Path())
    state = fresh(job)
    loop = ReferenceLoop(CONFIG, corpus, batch_tokens=BATCH, seed=SEED)
    copy_weights(state.model, loop.model)
    engine, ours = Single(job, state), []
    for _ in range(STEPS):
        ours.append(engine.step([1.0]).item())
        state.step += 1
    theirs = [loop.step() for _ in range(STEPS)]
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours[-1] < ours[0]
    # A key's offset shifts all scores of a query alike, so its gradient is zero but for rounding,
    # and Adam makes steps of it: its values differ, and nothing depends on them.
    expected = ReferenceModel(CONFIG)
    copy_weights(state.model, expected)
    after = dict(loop.model.named_parameters())
    for name, parameter in expected.named_parameters():
        if not name.endswith("k.bias"):
            torch.testing.assert_close(after[name], parameter, rtol=1e-4, atol=1e-5)


def test_initial_weights_are_drawn_from_the_seed_alone(corpus: Corpus) -> None:
    before = torch.get_rng_state()
    loops = [
        ReferenceLoop(CONFIG, corpus, batch_tokens=BATCH, seed=seed) for seed in (SEED, SEED, 1)
    ]
    heads = [loop.model.head.weight for loop in loops]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert torch.equal(before, torch.get_rng_state())
