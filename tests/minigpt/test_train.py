"""Training: it learns, it resumes and extends bit for bit, it says when it diverged."""

import itertools
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minigpt import checkpoint, train
from minigpt.config import LearningRates, ModelConfig, ScheduleConfig, TrainConfig
from minigpt.data import END_OF_TEXT, Corpus
from minigpt.model import MiniGPT, cross_entropy
from minigpt.schedule import horizon
from minigpt.train import Evaluation, Job, Progress, Result

SEQ_LEN, BATCH = 16, 64
MODEL = ModelConfig(d_model=16, n_layers=1, n_heads=2, d_ff=32, vocab_size=257, seq_len=SEQ_LEN)
SCHEDULE = ScheduleConfig(warmup_tokens=5 * BATCH)
SHORT, LONG = (horizon(SCHEDULE, steps * BATCH, BATCH) for steps in (50, 80))


def rates(rate: float) -> LearningRates:
    return LearningRates(hidden=rate, embedding=rate, head=rate, vector=rate)


def training(**changes) -> TrainConfig:
    values = {
        "lr": rates(0.01),
        "schedule": SCHEDULE,
        "batch_tokens": BATCH,
        "weight_decay": 0.01,
        "eval_every_tokens": 15 * BATCH,  # also steps 30 and 60, when progress is reported
    }
    return TrainConfig.model_validate(values | changes)


@pytest.fixture
def job(tmp_path, corpus, text_config) -> Job:
    return job_in(tmp_path / "trunk", corpus, text_config)


def job_in(folder: Path, corpus: Corpus, text_config, **changes) -> Job:
    folder.mkdir()
    values = {"checkpoint_seconds": 1e9, "train": training(), "model": MODEL} | changes
    return Job(data=text_config, corpus=corpus, folder=folder, **values)


@pytest.fixture
def fresh(tmp_path, corpus, text_config):
    """Jobs in new folders, as many as a test needs."""
    made = []

    def make(**changes) -> Job:
        made.append(None)
        return job_in(tmp_path / f"fresh{len(made)}", corpus, text_config, **changes)

    return make


def run(job: Job, at) -> tuple[Result, list[Evaluation], dict]:
    """Train to the end: result, curve, weights."""
    weights = job.folder / f"{at.stop}.pt"
    events = list(train.train(job, at, weights))
    assert isinstance(events[0], Progress)
    assert isinstance(events[-1], Result)
    curve = [e for e in events if isinstance(e, Evaluation)]
    model = checkpoint.load(weights)["model"] if weights.exists() else {}
    return events[-1], curve, model


def timeless(value):
    """An event without the seconds it took."""
    return (
        replace(value, eval_seconds=None)
        if isinstance(value, Result)
        else replace(value, seconds=0.0)
    )


def assert_identical(one, two) -> None:
    """Results equal to the last bit, and so are curves and weights."""
    assert timeless(one[0]) == timeless(two[0])
    assert list(map(timeless, one[1])) == list(map(timeless, two[1]))
    assert one[2].keys() == two[2].keys()
    assert all(torch.equal(one[2][name], two[2][name]) for name in one[2])


@pytest.fixture(scope="module")
def direct(tmp_path_factory, corpus, text_config):
    """Uninterrupted runs of both horizons, each in a folder of its own."""
    return {
        at: run(job_in(tmp_path_factory.mktemp("d") / "trunk", corpus, text_config), at)
        for at in (SHORT, LONG)
    }


# Learning


@pytest.mark.parametrize("preset", ["gpt", "vaswani"])
def test_loss_falls_below_a_uniform_guess(fresh, preset):
    model = ModelConfig.model_validate(
        MODEL.model_dump(exclude={"activation", "positions"}) | {"preset": preset}
    )
    result, curve, _ = run(fresh(model=model), LONG)
    assert result.status == "ok"
    assert result.val_loss < 0.8 * math.log(257)
    assert curve[-1].val_loss < curve[0].val_loss
    assert abs(result.train_loss - result.val_loss) < 0.5


def test_events_tell_steps_rates_and_branches(direct):
    _, curve, _ = direct[LONG]
    assert [e.step for e in curve] == [15, 30, 45, 60, 75]
    assert [e.branch for e in curve] == [False, False, False, False, True]
    assert LONG.start == 64
    assert [e.lr for e in curve[:4]] == [0.01] * 4
    # The rate that step 75, the 11th of 16 on the branch, was made with.
    assert curve[4].lr == pytest.approx(0.01 * (1 - math.sqrt(10 / 16)))


def test_progress_is_reported_from_the_first_step_to_the_last(job):
    events = [e for e in train.train(job, SHORT, job.folder / "w.pt") if isinstance(e, Progress)]
    assert events[0] == Progress(step=0, train_loss=None)
    assert [e.step for e in events] == [0, 10, 20, 30, 40, 50]
    assert all(e.train_loss > 0 for e in events[1:])


def test_training_loss_is_the_mean_since_the_last_point(job, monkeypatch):
    """Every step's loss, caught on its way."""
    losses = []

    def caught(*arguments):
        losses.append(cross_entropy(*arguments))
        return losses[-1]

    monkeypatch.setattr(train, "cross_entropy", caught)
    result, curve, _ = run(job, SHORT)
    values = [loss.item() for loss in losses]
    assert len(values) == 50
    for evaluation, part in zip(curve, (values[:15], values[15:30], values[30:45]), strict=True):
        assert evaluation.train_loss == pytest.approx(np.mean(part), rel=1e-6)
    assert result.train_loss == pytest.approx(np.mean(values[45:]), rel=1e-6)


def test_weights_carry_their_config(direct, job):
    run(job, SHORT)
    stored = checkpoint.load(job.folder / "50.pt")
    model = MiniGPT(ModelConfig.model_validate_json(stored["config"]))
    model.load_state_dict(stored["model"])
    mean, *_ = train.evaluate(model, job, job.data.eval_tokens)
    assert mean == direct[SHORT][0].val_loss


def test_seed_decides(fresh, direct):
    again, other = fresh(), fresh(train=training(seed=1))
    assert_identical(run(again, SHORT), direct[SHORT])
    assert run(other, SHORT)[0].val_loss != direct[SHORT][0].val_loss


# Resuming


def interrupted(job: Job, at, after: int) -> tuple[Result, list[Evaluation], dict]:
    """Close the generator after every `after` events and call again until there is a result."""
    curve, weights = [], job.folder / f"{at.stop}.pt"
    for _ in range(200):
        generator = train.train(job, at, weights)
        for _, event in zip(range(after), generator, strict=False):
            if isinstance(event, Evaluation):
                curve.append(event)
            if isinstance(event, Result):
                return event, curve, checkpoint.load(weights)["model"]
        generator.close()
    raise AssertionError("never came to an end")


@pytest.mark.parametrize("after", [2, 3, 5, 8, 11])
def test_closed_and_resumed_is_bit_identical(job, direct, after):
    """Held-out losses and weights, wherever it was closed."""
    result, _, weights = interrupted(job, LONG, after)
    expected, _, expected_weights = direct[LONG]
    assert (result.val_loss, result.val_loss_se) == (expected.val_loss, expected.val_loss_se)
    assert all(torch.equal(weights[name], expected_weights[name]) for name in expected_weights)


@pytest.mark.parametrize("after", [2, 3, 4, 6, 10])
def test_closed_and_resumed_has_the_same_curve(job, direct, after):
    """Also where it was closed on the step of a point."""
    assert_identical(interrupted(job, LONG, after), direct[LONG])


def test_final_training_loss_does_not_depend_on_where_it_was_closed(fresh):
    one, two = (fresh(train=training(eval_every_tokens=30 * BATCH)) for _ in range(2))
    close_at(two, SHORT, lambda e: isinstance(e, Progress) and e.step == 30)
    assert run(two, SHORT)[0].train_loss == run(one, SHORT)[0].train_loss


def close_at(job: Job, at, wanted) -> None:
    """Close the generator on the first event that is `wanted`."""
    generator = train.train(job, at, job.folder / f"{at.stop}.pt")
    assert any(wanted(event) for event in generator)
    generator.close()


def start_of(job: Job, at) -> int:
    """The step that training to `at` would start from."""
    generator = train.train(job, at, job.folder / f"{at.stop}.pt")
    step = next(generator).step
    generator.close()
    return step


def test_killed_and_resumed_is_bit_identical(fresh, direct):
    """A copy of the folder, taken while it trains, is what a kill leaves behind."""
    job = fresh(checkpoint_seconds=0.0)  # after every step
    folders = []
    for event in train.train(job, LONG, job.folder / "80.pt"):
        if isinstance(event, Progress) and event.step in (0, 20, 40, 70, 80):
            folders.append(job.folder.with_name(f"killed{event.step}"))
            shutil.copytree(job.folder, folders[-1])
            (folders[-1] / ".latest.pt.part").write_bytes(b"half a checkpoint")
    starts = []
    for folder in folders:
        killed = replace(job, folder=folder, checkpoint_seconds=1e9)
        starts.append(start_of(killed, LONG))
        result, _, weights = run(killed, LONG)
        assert_identical((result, [], weights), (direct[LONG][0], [], direct[LONG][2]))
    assert starts == [0, 19, 39, 69, 79]  # the last saved, not the start


def test_close_saves_where_it_stands(job):
    close_at(job, LONG, lambda e: isinstance(e, Progress) and e.step == 40)
    assert start_of(job, LONG) == 40


def test_stopped_before_the_result_trains_nothing_again(job, direct):
    close_at(job, SHORT, lambda e: isinstance(e, Progress) and e.step == SHORT.stop)
    assert start_of(job, SHORT) == SHORT.stop
    assert_identical(run(job, SHORT), (direct[SHORT][0], [], direct[SHORT][2]))


# Extending


def test_longer_after_shorter_continues_the_trunk(job, direct):
    assert_identical(run(job, SHORT), direct[SHORT])
    assert start_of(job, LONG) == SHORT.start
    result, curve, weights = direct[LONG]
    left = [evaluation for evaluation in curve if evaluation.step > SHORT.start]
    assert_identical(run(job, LONG), (result, left, weights))


def test_shorter_after_longer_equals_a_direct_run(job, direct):
    assert_identical(run(job, LONG), direct[LONG])
    assert_identical(run(job, SHORT), direct[SHORT])


def test_middle_horizon_starts_from_the_nearest_branch_point(job, fresh):
    middle = horizon(SCHEDULE, 65 * BATCH, BATCH)
    run(job, LONG)
    run(job, SHORT)
    assert start_of(job, middle) == SHORT.start
    result, curve, weights = run(fresh(), middle)
    left = [evaluation for evaluation in curve if evaluation.step > SHORT.start]
    assert_identical(run(job, middle), (result, left, weights))


def test_half_a_branch_does_not_leak_into_another_horizon(job, direct):
    close_at(job, SHORT, lambda e: isinstance(e, Evaluation) and e.branch)
    assert checkpoint.load(job.folder / "latest.pt")["branch"] == SHORT.stop
    result, curve, weights = direct[LONG]
    left = [evaluation for evaluation in curve if evaluation.step > SHORT.start]
    assert_identical(run(job, LONG), (result, left, weights))


def test_cosine_resumes_too_and_has_no_trunk(fresh):
    schedule = ScheduleConfig(kind="cosine", warmup_tokens=5 * BATCH)
    at = horizon(schedule, 50 * BATCH, BATCH)
    one, two = (fresh(train=training(schedule=schedule)) for _ in range(2))
    direct = run(one, at)
    assert_identical(interrupted(two, at, 7), direct)
    assert all(evaluation.branch for evaluation in direct[1])
    assert not list(two.folder.glob("trunk-*.pt"))


# Divergence


def test_divergence_is_a_result_with_a_reason(fresh):
    job = fresh(train=training(lr=rates(1e3)))
    result, _, weights = run(job, LONG)
    assert (result.status, result.on_trunk, result.val_loss) == ("diverged", True, None)
    assert result.reason.startswith("training loss ")
    assert f"limit 3 ln V = {3 * math.log(257):.2f}" in result.reason
    assert not weights


@pytest.fixture
def spoil(monkeypatch):
    """`spoil({step: factor})` multiplies the training losses of some steps (1-based)."""

    def install(factors: dict[int, float]) -> None:
        calls = itertools.count(1)

        def spoilt(*arguments):
            return cross_entropy(*arguments) * factors.get(next(calls), 1.0)

        monkeypatch.setattr(train, "cross_entropy", spoilt)

    return install


@pytest.mark.parametrize("factor", [math.nan, math.inf, 10.0])
@pytest.mark.parametrize("step", [20, 23])
def test_a_single_bad_loss_is_divergence(job, spoil, step, factor):
    """Also one that the next look at the loss no longer shows."""
    spoil({step: factor})
    result, _, weights = run(job, LONG)
    assert (result.status, result.on_trunk) == ("diverged", True)
    assert f"by step {-(-step // 10) * 10} " in result.reason
    assert not weights


def test_a_loss_below_the_limit_is_not_divergence(job, spoil):
    spoil({41: 2.9 * math.log(257) / 2.65})  # about 2.9 ln V at that loss
    assert run(job, LONG)[0].status == "ok"


def test_divergence_is_not_forgotten_when_closed(job, spoil):
    spoil({23: 10.0})
    close_at(job, LONG, lambda e: isinstance(e, Result) and e.status == "diverged")
    assert run(job, LONG)[0].status == "diverged"


def test_divergence_on_the_branch_is_not_the_trunks(job, spoil):
    spoil({SHORT.start + 1: math.inf})
    result, *_ = run(job, SHORT)
    assert (result.status, result.on_trunk) == ("diverged", False)


def test_held_out_loss_that_is_no_number_is_divergence(job, monkeypatch):
    monkeypatch.setattr(train, "evaluate", lambda *a: (math.nan, math.nan, math.nan, 0))
    result, *_ = run(job, SHORT)
    assert result.status == "diverged"
    assert "held-out loss nan after the last step" in result.reason


# Evaluation


@pytest.mark.parametrize("tokens", [16, 1_000, 4_000])
def test_evaluation_by_hand(job, tokens):
    draw = torch.Generator().manual_seed(0)
    model = MiniGPT(MODEL, seed=1)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn(p.shape, generator=draw)
    count, nats, n_bytes = tokens // SEQ_LEN, [], 0
    for i in range(count):
        text = torch.from_numpy(job.corpus.val[i * SEQ_LEN : (i + 1) * SEQ_LEN + 1].astype("i8"))
        with torch.no_grad():
            log_p_TV = model(text[None, :-1])[0].double().log_softmax(dim=-1)
        nats.append([-log_p_TV[t, text[t + 1]].item() for t in range(SEQ_LEN)])
        n_bytes += sum(int(token) != END_OF_TEXT for token in text[1:])
    mean_B = np.mean(nats, axis=1)
    if tokens == 4_000:
        assert n_bytes < count * SEQ_LEN  # ends of text are among the targets

    mean, se, bpb, n_tokens = train.evaluate(model, job, tokens)
    assert n_tokens == count * SEQ_LEN
    assert mean == pytest.approx(np.mean(nats), rel=1e-5)
    assert bpb == pytest.approx(np.sum(nats) / math.log(2) / n_bytes, rel=1e-5)
    if count == 1:
        assert math.isnan(se)
    else:
        assert se == pytest.approx(np.std(mean_B, ddof=1) / math.sqrt(count), rel=1e-4)


def test_evaluation_leaves_training_mode_and_gradients_alone(job):
    model = MiniGPT(MODEL)
    train.evaluate(model, job, 64)
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_results_measure_the_tokens_asked_for(direct, text_config):
    result, curve, _ = direct[SHORT]
    assert result.eval_tokens == text_config.eval_tokens // SEQ_LEN * SEQ_LEN
    # The curve has fewer sequences, hence wider errors.
    assert 0 < result.val_loss_se < curve[-1].val_loss_se
    assert result.val_bpb == pytest.approx(result.val_loss / math.log(2), rel=0.01)


# Precision


def test_bfloat16_trains_and_is_another_number(fresh, direct):
    result, _, weights = run(fresh(train=training(dtype="bfloat16")), SHORT)
    assert result.status == "ok"
    assert result.val_loss == pytest.approx(direct[SHORT][0].val_loss, rel=0.02)
    assert result.val_loss != direct[SHORT][0].val_loss
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
