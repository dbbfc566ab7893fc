"""Dropout: what it drops, when, and that what is dropped is a matter of seed and step alone.

Where the `vaswani` preset has it is in test_reference.py.

Shapes: B batch, T sequence, D width.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from minigpt import checkpoint, loop
from minigpt.config import LearningRates, ModelConfig, ScheduleConfig, TrainConfig
from minigpt.event import Progress
from minigpt.layers import Dropout
from minigpt.model import MiniGPT
from minigpt.schedule import horizon
from minigpt.stack import Stack
from minigpt.state import Job, fresh
from minigpt.step import Single, mask_seed

SEQ_LEN, BATCH = 16, 64
SCHEDULE = ScheduleConfig(warmup_tokens=5 * BATCH)
LONG = horizon(SCHEDULE, 40 * BATCH, BATCH)


def model(preset: str = "gpt", **changes) -> ModelConfig:
    values = {"preset": preset, "d_model": 16, "n_layers": 2, "n_heads": 2, "vocab_size": 257}
    return ModelConfig.model_validate(values | {"seq_len": SEQ_LEN, "dropout": 0.1} | changes)


@pytest.fixture
def fresh_job(tmp_path, corpus, text_config):
    """Jobs in new folders."""
    made = []

    def make(config: ModelConfig, **changes) -> Job:
        made.append(None)
        folder = tmp_path / f"job{len(made)}"
        folder.mkdir()
        train = TrainConfig(
            lr=LearningRates(hidden=0.01, embedding=0.02, head=0.01, vector=0.01),
            schedule=SCHEDULE,
            batch_tokens=BATCH,
            eval_every_tokens=15 * BATCH,
        )
        values = {"model": config, "train": train, "data": text_config, "corpus": corpus}
        return Job(**values | {"folder": folder, "checkpoint_seconds": 1e9} | changes)

    return make


def weights(job: Job) -> dict[str, Tensor]:
    return checkpoint.load(job.folder / "w.pt")["model"]


def run(job: Job) -> dict[str, Tensor]:
    """Weights after training to the end."""
    list(loop.train(job, LONG, job.folder / "w.pt"))
    return weights(job)


def assert_same(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


# What is dropped


@settings(max_examples=25)
@given(p=st.floats(0.01, 0.95), seed=st.integers(0, 1000))
def test_an_entry_is_zero_or_its_expectation_is_itself(p, seed):
    """Of 20,000 entries the mean is within six standard errors, and so is the share of zeros."""
    layer, n = Dropout(p), 20_000
    layer.draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed)).double()
    found = layer(x)
    kept = found != 0
    torch.testing.assert_close(found[kept], x[kept] / (1 - p))
    assert abs(kept.double().mean().item() - (1 - p)) < 6 * math.sqrt(p * (1 - p) / n)
    off = (found - x).mean().item()
    assert abs(off) < 6 * math.sqrt(p / (1 - p) * x.square().mean().item() / n)


def test_the_gradient_goes_where_the_value_went():
    layer = Dropout(0.5)
    x = torch.ones(100, requires_grad=True)
    found = layer(x)
    (own,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(own, found.detach())
    assert set(own.tolist()) == {0.0, 2.0}


def test_in_half_precision_what_is_kept_is_scaled_before_it_is_rounded():
    layer, x = Dropout(0.1), torch.linspace(1, 2, 1000).bfloat16()
    found = layer(x)
    kept = found != 0
    assert torch.equal(found[kept], (x[kept].float() / (1 - 0.1)).bfloat16())


def test_gpt_drops_embeddings_and_the_outputs_of_sublayers(float64):
    """By formula, with the masks drawn beside it; attention weights and MLPs inside are whole."""
    made = MiniGPT(model(dropout=0.3), seed=1)
    with torch.no_grad():
        for p in made.parameters():
            p += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    made.dropout.draw = torch.Generator().manual_seed(5)
    tokens_BT = torch.randint(257, (3, SEQ_LEN), generator=torch.Generator().manual_seed(2))
    found = made(tokens_BT)

    draw = torch.Generator().manual_seed(5)

    def dropped(x_BTD: Tensor) -> Tensor:
        return x_BTD * torch.empty(x_BTD.shape).bernoulli_(0.7, generator=draw) / 0.7

    rotation = (made.cos_TK[:, None, None], made.sin_TK[:, None, None])
    x_BTD = dropped(made.embedding(tokens_BT))
    for block in made.blocks:
        x_BTD = x_BTD + dropped(block.attention(block.norm1(x_BTD), rotation))
        x_BTD = x_BTD + dropped(block.mlp(block.norm2(x_BTD)))
    torch.testing.assert_close(found, made.head(made.final_norm(x_BTD)))


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5])
def test_a_probability_below_one(p):
    with pytest.raises(ValidationError, match="dropout"):
        model(dropout=p)


# When


@pytest.mark.parametrize("preset", ["gpt", "vaswani"])
def test_in_evaluation_a_model_is_what_it_is_without(preset):
    tokens_BT = torch.randint(257, (2, SEQ_LEN), generator=torch.Generator().manual_seed(0))
    with_, without = (MiniGPT(model(preset, dropout=p), seed=3) for p in (0.5, 0.0))
    for made in (with_, without):  # gpt's residual outputs are zero at first
        for p in made.parameters():
            torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(4))
    assert not torch.equal(with_(tokens_BT), without(tokens_BT))
    before = torch.get_rng_state()
    assert torch.equal(with_.eval()(tokens_BT), without(tokens_BT))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_it_dumps_are_those_of_before():
    """Ids and specs are hashes of dumps."""
    assert "dropout" not in model(dropout=0.0).model_dump()
    assert "dropout" not in model(dropout=0.0).model_dump_json()
    assert model(dropout=0.0) == ModelConfig.model_validate(model(dropout=0.0).model_dump())
    for p in (0.1, 0.0):
        assert ModelConfig.model_validate_json(model(dropout=p).model_dump_json()).dropout == p


# Masks are of seed, step, part of a batch and rank


def test_masks_depend_on_all_that_they_are_of():
    seeds = {mask_seed(*key) for key in ((0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0))}
    assert len(seeds | {mask_seed(0, 0, 0, 1)}) == 5
    assert mask_seed(7, 8, 1, 2) == mask_seed(7, 8, 1, 2)


def test_every_step_drops_something_else(fresh_job, corpus):
    """And every sequence, and every part of a batch."""
    job = fresh_job(model(), passes=2)
    state, masks = fresh(job), []

    def caught(_, args, output):
        masks.append((output == 0) & (args[0] != 0))

    state.model.dropout.register_forward_hook(caught)
    engine = Single(job, state)
    for _ in range(2):
        engine.step([1.0])
        state.step += 1
    first = masks[:: 1 + 2 * 2]  # of the embeddings
    assert len(first) == 4
    assert len({bytes(mask.numpy().tobytes()) for mask in first}) == 4
    assert not torch.equal(first[0][0], first[0][1])


@pytest.mark.parametrize("preset", ["gpt", "vaswani"])
def test_interrupted_is_uninterrupted_to_the_last_bit(fresh_job, preset):
    whole = run(fresh_job(model(preset)))
    parts = fresh_job(model(preset))
    for stop in (3, 17, 33, 38):
        events = loop.train(parts, LONG, parts.folder / "w.pt")
        assert any(isinstance(event, Progress) and event.step == stop for event in events)
        events.close()
        torch.rand(100)  # whatever else the process draws
    assert_same(run(parts), whole)
    without = run(fresh_job(model(preset, dropout=0.0)))
    assert not torch.equal(without["head.weight"], whole["head.weight"])


def test_training_leaves_the_global_generator_alone(fresh_job):
    before = torch.get_rng_state()
    run(fresh_job(model()))
    assert torch.equal(torch.get_rng_state(), before)


# One by one


def test_models_with_it_are_not_trained_side_by_side(fresh_job):
    jobs = [fresh_job(model()) for _ in range(2)]
    with pytest.raises(ValueError, match=r"dropout = 0\.1: .*one by one"):
        Stack(jobs, [fresh(job) for job in jobs])
    without = [replace(job, model=model(dropout=0.0)) for job in jobs]
    Stack(without, [fresh(job) for job in without])
