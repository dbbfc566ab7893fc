"""Models side by side: each is trained as if it were alone."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from minigpt import checkpoint, data
from minigpt.config import LearningRates, ModelConfig, ScheduleConfig, TrainConfig
from minigpt.event import Evaluation, Progress, Result
from minigpt.feed import tokens_at, training_shard
from minigpt.loop import train, train_all
from minigpt.member import Member
from minigpt.schedule import Horizon, horizon
from minigpt.stack import Stack
from minigpt.state import Job, fresh
from minigpt.step import Single

SEQ_LEN, BATCH = 16, 64
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SCHEDULE = ScheduleConfig(warmup_tokens=5 * BATCH)


def model(preset: str, **changes) -> ModelConfig:
    values = {"preset": preset, "d_model": 16, "n_layers": 2, "n_heads": 2}
    return ModelConfig.model_validate(values | {"vocab_size": 257, "seq_len": SEQ_LEN} | changes)


def training(seed: int = 0, rate: float = 0.01, **changes) -> TrainConfig:
    """Rates of the groups that all differ."""
    lr = LearningRates(hidden=rate, embedding=2 * rate, head=rate / 2, vector=rate / 3)
    values = {
        "lr": lr,
        "schedule": SCHEDULE,
        "batch_tokens": BATCH,
        "weight_decay": 0.1,
        "seed": seed,
        "eval_every_tokens": 15 * BATCH,
    }
    return TrainConfig.model_validate(values | changes)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])
def device(request):
    return request.param


@pytest.fixture
def fresh_job(tmp_path, corpus, text_config, device):
    """Jobs in new folders on `device`; what a model alone does, it does on the CPU."""
    made = []

    def make(config: TrainConfig, preset: str = "gpt", **changes) -> Job:
        made.append(None)
        folder = tmp_path / f"job{len(made)}"
        folder.mkdir()
        return Job(
            model=model(preset, **changes),
            data=text_config,
            train=config,
            corpus=corpus,
            folder=folder,
            device=device,
            checkpoint_seconds=1e9,
        )

    return make


def on_cpu(job: Job) -> Job:
    return replace(job, device="cpu")


def losses(engine: Single | Stack, states, steps: int, factors) -> np.ndarray:
    found = []
    for step in range(steps):
        found.append(engine.step([f(step) for f in factors]).tolist())
        for state in states:
            state.step += 1
    return np.array(found)


# One step


@pytest.mark.parametrize("members", [1, 2, 5])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_steps_equal_those_of_each_model_alone(float64, fresh_job, positions, members):
    """To rounding of doubles: data, clip, rates of groups and members, decay, moments."""
    preset = "gpt" if positions == "rotary" else "vaswani"
    configs = [training(seed=i, rate=0.01 * (i + 1), grad_clip=0.3) for i in range(members)]
    jobs = [fresh_job(config, preset, positions=positions) for config in configs]
    factors = [lambda step, i=i: 1 / (1 + i + step) for i in range(members)]
    states = [fresh(job) for job in jobs]
    together = losses(Stack(jobs, states), states, 12, factors)
    for i, job in enumerate(jobs):
        state = fresh(on_cpu(job))
        alone = losses(Single(on_cpu(job), state), [state], 12, factors[i : i + 1])
        np.testing.assert_allclose(together[:, i], alone[:, 0], rtol=1e-10)
        for name, value in state.model.state_dict().items():
            torch.testing.assert_close(
                states[i].model.state_dict()[name].cpu(), value, rtol=1e-8, atol=1e-10
            )


@pytest.mark.parametrize("changes", [{"grad_clip": None}, {"optimizer": "adam", "weight_decay": 0}])
def test_without_clip_and_without_decay(float64, fresh_job, changes):
    jobs = [fresh_job(training(seed=i, **changes)) for i in range(3)]
    states = [fresh(job) for job in jobs]
    together = losses(Stack(jobs, states), states, 8, [lambda _: 1.0] * 3)
    state = fresh(on_cpu(jobs[2]))
    alone = losses(Single(on_cpu(jobs[2]), state), [state], 8, [lambda _: 1.0])
    np.testing.assert_allclose(together[:, 2], alone[:, 0], rtol=1e-10)


@pytest.mark.parametrize("members", [1, 3])
def test_bfloat16_differs_from_a_model_alone_by_its_rounding(fresh_job, device, members):
    """Two kinds of device add in other orders."""
    jobs = [fresh_job(training(seed=i, dtype="bfloat16")) for i in range(members)]
    states = [fresh(job) for job in jobs]
    together = losses(Stack(jobs, states), states, 40, [lambda _: 1.0] * members)
    state = fresh(on_cpu(jobs[0]))
    alone = losses(Single(on_cpu(jobs[0]), state), [state], 40, [lambda _: 1.0])
    rtol = 2e-3 if device == "cpu" else 1e-2
    np.testing.assert_allclose(together[:, 0], alone[:, 0], rtol=rtol)
    assert together[-1, 0] < 0.8 * together[0, 0]


@pytest.mark.parametrize("passes", [2, 3, 4])
@pytest.mark.parametrize("members", [1, 3])
def test_a_batch_in_several_passes_is_the_same_batch(float64, fresh_job, members, passes):
    """Of four sequences; three passes are of 2, 1 and 1."""
    jobs = [fresh_job(training(seed=i)) for i in range(members)]
    split = [replace(job, passes=passes) for job in jobs]
    found = []
    for each in (jobs, split):
        states = [fresh(job) for job in each]
        found.append(losses(Stack(each, states), states, 10, [lambda _: 1.0] * members))
    state = fresh(on_cpu(split[0]))
    found.append(losses(Single(on_cpu(split[0]), state), [state], 10, [lambda _: 1.0]))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-10)
    np.testing.assert_allclose(found[2][:, 0], found[0][:, 0], rtol=1e-10)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("members", [1, 3])
def test_a_compiled_model_is_the_same_model(fresh_job, members):
    jobs = [fresh_job(training(seed=i)) for i in range(members)]
    found = []
    for compiled in (False, True):
        states = [fresh(job) for job in jobs]
        stack = Stack([replace(job, compiled=compiled) for job in jobs], states)
        found.append(losses(stack, states, 10, [lambda _: 1.0] * members))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)


def test_batches_are_those_of_the_data(fresh_job):
    """Also beyond the steps that are looked up together, and over an epoch's end."""
    job = fresh_job(training(seed=3))
    state = fresh(job)
    stack = Stack([job], [state])
    B = BATCH // SEQ_LEN
    for step in (0, 1, 63, 64, 65, 700, 5000, 5001):
        state.step = step
        stack.feed.next([1.0])
        inputs, targets = data.batch(job.corpus, seed=3, step=step, batch_size=B, seq_len=SEQ_LEN)
        starts = (stack.feed.windows_MB[0] * SEQ_LEN)[:, None]
        chunk = tokens_at(stack.shard, starts + stack.offsets_T)
        assert np.array_equal(chunk[:, :-1].cpu().numpy(), inputs)
        assert np.array_equal(chunk[:, 1:].cpu().numpy(), targets)


def test_token_ids_use_all_sixteen_bits():
    ids = np.array([0, 1, 32767, 32768, 65535], "<u2")
    shard = training_shard(data.Corpus(None, ids, ids), torch.device("cpu"))
    assert tokens_at(shard, torch.arange(5)).tolist() == ids.tolist()


# Whole runs


def member(job: Job, at: Horizon, **changes) -> Member:
    values = {"weights": job.folder / f"{at.stop}.pt", "marks": (at.start,)} | changes
    return Member(job=job, at=at, **values)


def run_all(members: list[Member]) -> tuple[dict[int, Result], dict[int, list[Evaluation]]]:
    """Train to the end: results and curves of each."""
    results, curves = {}, {i: [] for i in range(len(members))}
    for i, event in train_all(members):
        if isinstance(event, Result):
            results[i] = event
        elif isinstance(event, Evaluation):
            curves[i].append(event)
    return results, curves


def alone(job: Job, at: Horizon) -> tuple[Result, list[Evaluation]]:
    events = list(train(on_cpu(job), at, job.folder / f"{at.stop}.pt"))
    assert isinstance(events[-1], Result)
    return events[-1], [e for e in events if isinstance(e, Evaluation)]


def assert_alike(one: Result, two: Result) -> None:
    assert (one.status, one.step, one.on_trunk) == (two.status, two.step, two.on_trunk)
    for name in ("val_loss", "val_loss_se", "train_loss", "val_bpb"):
        assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-6), name


def test_seeds_rates_and_horizons_side_by_side(float64, fresh_job):
    """Each has the result and the curve that it has alone, though some end long before others."""
    plans = [(0, 0.01, 40), (1, 0.02, 40), (2, 0.01, 73), (3, 0.005, 21)]
    configs = [(training(seed=s, rate=r), horizon(SCHEDULE, n * BATCH, BATCH)) for s, r, n in plans]
    members = [member(fresh_job(config), at) for config, at in configs]
    results, curves = run_all(members)
    for i, (config, at) in enumerate(configs):
        result, curve = alone(fresh_job(config), at)
        assert_alike(results[i], result)
        assert [(e.step, e.branch, e.lr) for e in curves[i]] == [
            (e.step, e.branch, e.lr) for e in curve
        ]
        for mine, theirs in zip(curves[i], curve, strict=True):
            assert mine.val_loss == pytest.approx(theirs.val_loss, rel=1e-6)
            assert mine.train_loss == pytest.approx(theirs.train_loss, rel=1e-6)
        weights = checkpoint.load(members[i].weights)["model"]
        assert sum(value.numel() for value in weights.values()) > 0


def test_a_trunk_alone_saves_its_branch_points_and_branches_follow(float64, fresh_job):
    at = [horizon(SCHEDULE, n * BATCH, BATCH) for n in (20, 40, 80)]
    jobs = [fresh_job(training(seed=i)) for i in range(2)]
    starts = tuple(h.start for h in at)
    trunk = Horizon(start=starts[-1], stop=starts[-1])
    assert run_all([member(job, trunk, marks=starts) for job in jobs])[0] == {}
    for job in jobs:
        found = sorted(path.name for path in job.folder.glob("trunk-*.pt"))
        assert found == [f"trunk-{start:08d}.pt" for start in starts]
    branches = [
        member(job, h, latest=f"latest-{h.stop:08d}.pt") for job in jobs for h in reversed(at)
    ]
    results, _ = run_all(branches)
    for i, each in enumerate(branches):
        assert results[i].from_step == each.at.start
        assert_alike(results[i], replace(alone(fresh_job(each.job.train), each.at)[0]))


@pytest.mark.parametrize("first", ["together", "alone"])
def test_a_checkpoint_does_not_know_how_it_was_trained(float64, fresh_job, first):
    """Closed and gone on with: in a stack what was alone, and the other way round."""
    at = horizon(SCHEDULE, 60 * BATCH, BATCH)
    configs = [training(seed=i) for i in range(3)]
    jobs = [fresh_job(config) for config in configs]
    for closed in (17, 50):  # on the trunk, on the branch
        if first == "together":
            for i, event in (events := train_all([member(job, at) for job in jobs])):
                if isinstance(event, Progress) and i == 0 and event.step == closed:
                    break
            events.close()
        else:
            for job in jobs:
                for event in (events := train(on_cpu(job), at, job.folder / "60.pt")):
                    if isinstance(event, Progress) and event.step == closed:
                        break
                events.close()
        for job in jobs:
            assert checkpoint.load(job.folder / "latest.pt")["step"] == closed
    if first == "together":
        found = {i: alone(job, at)[0] for i, job in enumerate(jobs)}
    else:
        found, _ = run_all([member(job, at) for job in jobs])
    for i, config in enumerate(configs):
        assert_alike(found[i], alone(fresh_job(config), at)[0])


def test_a_checkpoint_of_one_member_is_as_small_as_one_model(fresh_job):
    at = horizon(SCHEDULE, 20 * BATCH, BATCH)
    jobs = [fresh_job(training(seed=i)) for i in range(6)]
    run_all([member(job, at) for job in jobs])
    single = fresh_job(training())
    alone(single, at)
    name = f"trunk-{at.start:08d}.pt"
    sizes = [(job.folder / name).stat().st_size for job in (jobs[0], single)]
    assert sizes[0] < 1.5 * sizes[1]


def test_one_that_diverges_leaves_the_others_alone(float64, fresh_job):
    at = horizon(SCHEDULE, 40 * BATCH, BATCH)
    configs = [training(seed=0), training(seed=1, rate=1e6), training(seed=2)]
    results, _ = run_all([member(fresh_job(config), at) for config in configs])
    assert [results[i].status for i in range(3)] == ["ok", "diverged", "ok"]
    assert results[1].on_trunk
    assert "limit 3 ln V" in str(results[1].reason)
    for i in (0, 2):
        assert_alike(results[i], alone(fresh_job(configs[i]), at)[0])


def test_a_member_without_a_number_left_leaves_the_others_alone(fresh_job):
    """NaN in every weight of one: batched products and clips do not mix members."""
    jobs = [fresh_job(training(seed=i)) for i in range(3)]
    states = [fresh(job) for job in jobs]
    with torch.no_grad():
        for parameter in states[1].model.parameters():
            parameter.fill_(math.nan)
    together = losses(Stack(jobs, states), states, 10, [lambda _: 1.0] * 3)
    assert np.isnan(together[:, 1]).all()
    for i in (0, 2):
        state = fresh(on_cpu(jobs[i]))
        expected = losses(Single(on_cpu(jobs[i]), state), [state], 10, [lambda _: 1.0])
        np.testing.assert_allclose(together[:, i], expected[:, 0], rtol=1e-5)
