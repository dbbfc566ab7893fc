"""Training: it learns, it resumes and extends bit for bit, it says when it diverged."""

import itertools
import math
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from minigpt import checkpoint, loop
from minigpt.config import LearningRates, ModelConfig, ScheduleConfig, TrainConfig
from minigpt.data import Corpus
from minigpt.evaluate import evaluate
from minigpt.event import Evaluation, Progress, Result
from minigpt.loss import next_token_loss
from minigpt.model import MiniGPT
from minigpt.schedule import horizon
from minigpt.state import RECENT_STEPS, Job
from minigpt.tokenizer import BYTES

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
        "eval_every_tokens": 15 * BATCH,  # steps 30 and 60 are looked at anyway
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
    events = list(loop.train(job, at, weights))
    assert isinstance(events[0], Progress)
    assert isinstance(events[-1], Result)
    curve = [e for e in events if isinstance(e, Evaluation)]
    model = checkpoint.load(weights)["model"] if weights.exists() else {}
    return events[-1], curve, model


TIMES = ("seconds", "cpu_seconds", "eval_seconds")


def timeless(event: Result | Evaluation) -> dict:
    """What an event says, without the times it took."""
    return {key: value for key, value in asdict(event).items() if key not in TIMES}


def assert_identical(one, two) -> None:
    """Results equal to the last bit, but for their times, and so are curves and weights."""
    assert timeless(one[0]) == timeless(two[0])
    assert list(map(timeless, one[1])) == list(map(timeless, two[1]))
    assert one[2].keys() == two[2].keys()
    assert all(torch.equal(one[2][name], two[2][name]) for name in one[2])


@pytest.fixture
def losses(monkeypatch) -> list[torch.Tensor]:
    """Every step's loss, caught on its way."""
    found = []

    def caught(*arguments):
        found.append(next_token_loss(*arguments))
        return found[-1]

    monkeypatch.setattr("minigpt.model.next_token_loss", caught)
    return found


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


def looked_at(values: list[float], step: int) -> float | None:
    """The last loss looked at by `step`: every ten steps, at evaluations, at the end."""
    looks = [s for s in range(1, step + 1) if s % 10 == 0 or s % 15 == 0 or s == len(values)]
    return values[looks[-1] - 1] if looks else None


@pytest.mark.parametrize("steps", [50, 7])
def test_a_sign_of_life_follows_every_step_and_its_evaluation(job, losses, steps):
    events = list(loop.train(job, horizon(SCHEDULE, steps * BATCH, BATCH), job.folder / "w.pt"))
    assert isinstance(events.pop(), Result)
    expected = [(Progress, 0)]
    for step in range(1, steps + 1):
        expected += [(Evaluation, step)] * (step in (15, 30, 45)) + [(Progress, step)]
    assert [(type(e), e.step) for e in events] == expected
    values = [loss.item() for loss in losses]
    assert len(values) == steps
    for event in events:
        if isinstance(event, Progress):
            assert event.train_loss == looked_at(values, event.step)


def test_loss_is_unknown_until_it_is_looked_at_also_after_a_resume(job):
    close_at(job, SHORT, lambda e: isinstance(e, Progress) and e.step == 21)
    events = loop.train(job, SHORT, job.folder / "w.pt")
    progress = [e for e in itertools.islice(events, 12) if isinstance(e, Progress)]
    events.close()
    assert [e.step for e in progress] == list(range(21, 32))
    assert [e.train_loss is None for e in progress] == [True] * 9 + [False] * 2


def test_training_loss_is_the_mean_since_the_last_point(job, losses):
    _, curve, _ = run(job, SHORT)
    values = [loss.item() for loss in losses]
    assert len(values) == 50
    for evaluation, part in zip(curve, (values[:15], values[15:30], values[30:45]), strict=True):
        assert evaluation.train_loss == pytest.approx(np.mean(part), rel=1e-6)


@pytest.mark.parametrize("closed", [(), (4, 20, 49, 50, 51, 63, 77)], ids=["whole", "closed"])
@pytest.mark.parametrize("steps", [7, 50, 51, 80, 101])
def test_final_training_loss_is_the_mean_over_the_last_steps(job, losses, steps, closed):
    """Fewer than fifty, exactly fifty, and more: once and twice around."""
    at = horizon(SCHEDULE, steps * BATCH, BATCH)
    for step in closed:
        if step < steps:
            close_at(job, at, lambda e, step=step: isinstance(e, Progress) and e.step == step)
    result, *_ = run(job, at)
    values = [loss.item() for loss in losses]
    assert len(values) == steps  # none was trained twice
    assert RECENT_STEPS == 50
    assert result.train_loss == pytest.approx(np.mean(values[-50:]), rel=1e-6)


def test_times_cover_the_run_and_what_it_evaluated(direct):
    for result, curve, _ in direct.values():
        assert 0 < result.eval_seconds < result.seconds
        assert result.cpu_seconds > 0
        seconds = [0.0, *(evaluation.seconds for evaluation in curve), result.seconds]
        assert seconds == sorted(seconds)
        assert len(set(seconds)) == len(seconds)


def test_weights_carry_their_config(direct, job):
    run(job, SHORT)
    stored = checkpoint.load(job.folder / "50.pt")
    model = MiniGPT(ModelConfig.model_validate_json(stored["config"]))
    model.load_state_dict(stored["model"])
    mean, *_ = evaluate(model, job.corpus, job.data.eval_tokens, job.device, job.train.dtype)
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
        generator = loop.train(job, at, weights)
        for _, event in zip(range(after), generator, strict=False):
            if isinstance(event, Evaluation):
                curve.append(event)
            if isinstance(event, Result):
                return event, curve, checkpoint.load(weights)["model"]
        generator.close()
    raise AssertionError("never came to an end")


@pytest.mark.parametrize("after", [2, 3, 4, 5, 6, 8, 10, 11])
def test_closed_and_resumed_is_bit_identical(job, direct, after):
    """Result, curve and weights, wherever it was closed: at 2 after every step, on every point."""
    result, curve, weights = interrupted(job, LONG, after)
    assert_identical((result, curve, weights), direct[LONG])
    seconds = [evaluation.seconds for evaluation in curve]
    assert seconds == sorted(seconds)
    assert seconds[-1] < result.seconds


def test_final_training_loss_does_not_depend_on_where_it_was_closed(fresh):
    one, two = (fresh(train=training(eval_every_tokens=30 * BATCH)) for _ in range(2))
    for step in (30, 31, 47):
        close_at(two, SHORT, lambda e, step=step: isinstance(e, Progress) and e.step == step)
    assert run(two, SHORT)[0].train_loss == run(one, SHORT)[0].train_loss


def close_at(job: Job, at, wanted) -> None:
    """Close the generator on the first event that is `wanted`."""
    generator = loop.train(job, at, job.folder / f"{at.stop}.pt")
    assert any(wanted(event) for event in generator)
    generator.close()


def start_of(job: Job, at) -> int:
    """The step that training to `at` would start from."""
    generator = loop.train(job, at, job.folder / f"{at.stop}.pt")
    step = next(generator).step
    generator.close()
    return step


def test_killed_and_resumed_is_bit_identical(fresh, direct):
    """A copy of the folder, taken while it trains, is what a kill leaves behind."""
    job = fresh(checkpoint_seconds=0.0)  # after every step
    folders = []
    for event in loop.train(job, LONG, job.folder / "80.pt"):
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


@pytest.mark.parametrize("kind", [Progress, Evaluation])
def test_close_saves_where_it_stands(job, kind):
    """At any step, and between a step's point and its sign of life."""
    steps = (0, 1, 13, 15, 40, 60, 64, 65, 79) if kind is Progress else (15, 60, 75)
    for step in steps:
        close_at(job, LONG, lambda e, step=step: isinstance(e, kind) and e.step == step)
        assert checkpoint.load(job.folder / "latest.pt")["step"] == step
        assert start_of(job, LONG) == step


def relabel(path: Path, **changes) -> None:
    """Write the checkpoint anew with some other values."""
    checkpoint.save(path, checkpoint.load(path) | changes)


def test_times_of_earlier_processes_count(job):
    close_at(job, LONG, lambda e: isinstance(e, Progress) and e.step == 70)
    latest = job.folder / "latest.pt"
    stored = checkpoint.load(latest)
    assert stored["seconds"] > 0
    assert stored["cpu_seconds"] > 0
    before = time.monotonic(), time.process_time()
    result, curve, _ = run(job, LONG)
    spent = time.monotonic() - before[0], time.process_time() - before[1]
    assert result.from_step == 0
    assert stored["seconds"] <= curve[0].seconds < result.seconds <= stored["seconds"] + spent[0]
    assert stored["cpu_seconds"] <= result.cpu_seconds <= stored["cpu_seconds"] + spent[1]
    # Far more than this process can take, so that it is seen.
    relabel(latest, seconds=1e6, cpu_seconds=2e6)
    result, curve, _ = run(job, LONG)
    assert 1e6 <= curve[0].seconds < result.seconds < 1.1e6
    assert 2e6 <= result.cpu_seconds < 2.1e6


def test_times_on_the_way_to_another_horizon_do_not_count(job):
    """They are the other's: only the steps from there on are this one's own."""
    close_at(job, LONG, lambda e: isinstance(e, Progress) and e.step == 30)
    relabel(job.folder / "latest.pt", seconds=1e6, cpu_seconds=1e6)
    result, curve, _ = run(job, SHORT)
    assert result.from_step == 30
    assert max(result.seconds, result.cpu_seconds, curve[0].seconds) < 1e5


def test_times_survive_many_closings(job):
    for step in (10, 33, 66):
        close_at(job, LONG, lambda e, step=step: isinstance(e, Progress) and e.step == step)
        stored = checkpoint.load(job.folder / "latest.pt")
        assert stored["from_step"] == 0
        assert stored["on_way_to"] == LONG.stop
        assert stored["seconds"] // 1e6 == (step > 10) + (step > 33)
        relabel(job.folder / "latest.pt", seconds=stored["seconds"] + 1e6)
    assert 3e6 <= run(job, LONG)[0].seconds < 3.1e6


@pytest.mark.parametrize("name", ["latest.pt", f"trunk-{LONG.start:08d}.pt"])
def test_damaged_checkpoint_is_an_error_that_names_it(job, name):
    """Not a silent start from nothing."""
    close_at(job, LONG, lambda e: isinstance(e, Progress) and e.step == 70)
    path = job.folder / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(checkpoint.CheckpointError, match=f"{name}: damaged"):
        next(loop.train(job, LONG, job.folder / "80.pt"))


def test_stopped_before_the_result_trains_nothing_again(job, direct):
    close_at(job, SHORT, lambda e: isinstance(e, Progress) and e.step == SHORT.stop)
    assert start_of(job, SHORT) == SHORT.stop
    assert_identical(run(job, SHORT), (direct[SHORT][0], [], direct[SHORT][2]))


# Extending


def part_of(whole, start: int) -> tuple[Result, list[Evaluation], dict]:
    """What a run from a branch point at `start` gives: its own part of an uninterrupted one."""
    result, curve, weights = whole
    left = [evaluation for evaluation in curve if evaluation.step > start]
    return replace(result, from_step=start), left, weights


def test_uninterrupted_runs_are_their_own_from_the_start(direct):
    assert [direct[at][0].from_step for at in (SHORT, LONG)] == [0, 0]


def test_own_part_begins_where_the_trunk_was_left_also_when_closed(job, direct):
    run(job, SHORT)
    assert_identical(interrupted(job, LONG, 9), part_of(direct[LONG], SHORT.start))


def test_again_from_its_own_branch_point_is_the_same_run(job, direct):
    run(job, SHORT)
    assert start_of(job, SHORT) == SHORT.start
    (job.folder / "latest.pt").unlink()
    relabel(job.folder / f"trunk-{SHORT.start:08d}.pt", seconds=1e6)
    result, curve, weights = run(job, SHORT)
    left = [evaluation for evaluation in direct[SHORT][1] if evaluation.step > SHORT.start]
    assert_identical((result, curve, weights), (direct[SHORT][0], left, direct[SHORT][2]))
    assert 1e6 <= result.seconds < 1.1e6


def test_longer_after_shorter_continues_the_trunk(job, direct):
    assert_identical(run(job, SHORT), direct[SHORT])
    assert start_of(job, LONG) == SHORT.start
    assert_identical(run(job, LONG), part_of(direct[LONG], SHORT.start))


def test_shorter_after_longer_equals_a_direct_run(job, direct):
    assert_identical(run(job, LONG), direct[LONG])
    assert_identical(run(job, SHORT), direct[SHORT])


def test_middle_horizon_starts_from_the_nearest_branch_point(job, fresh):
    middle = horizon(SCHEDULE, 65 * BATCH, BATCH)
    run(job, LONG)
    run(job, SHORT)
    assert start_of(job, middle) == SHORT.start
    assert_identical(run(job, middle), part_of(run(fresh(), middle), SHORT.start))


def test_half_a_branch_does_not_leak_into_another_horizon(job, direct):
    close_at(job, SHORT, lambda e: isinstance(e, Evaluation) and e.branch)
    assert checkpoint.load(job.folder / "latest.pt")["branch"] == SHORT.stop
    assert_identical(run(job, LONG), part_of(direct[LONG], SHORT.start))


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
    assert result.from_step == 0
    assert result.seconds > 0
    assert result.cpu_seconds > 0


@pytest.fixture
def spoil(monkeypatch):
    """`spoil({step: factor})` multiplies the training losses of some steps (1-based)."""

    def install(factors: dict[int, float]) -> None:
        calls = itertools.count(1)

        def spoilt(*arguments):
            return next_token_loss(*arguments) * factors.get(next(calls), 1.0)

        monkeypatch.setattr("minigpt.model.next_token_loss", spoilt)

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


def test_divergence_at_the_last_step_is_not_forgotten_when_closed(job, spoil):
    spoil({SHORT.stop: 10.0})
    close_at(job, SHORT, lambda e: isinstance(e, Result) and e.status == "diverged")
    assert run(job, SHORT)[0].status == "diverged"


def test_diverged_run_says_where_its_own_part_began(job, spoil):
    run(job, SHORT)
    spoil({5: math.nan})
    result, *_ = run(job, LONG)
    assert (result.status, result.from_step) == ("diverged", SHORT.start)
    assert f"by step {SHORT.start + 5} " in result.reason  # seen by the evaluation, at 45


def test_divergence_on_the_branch_is_not_the_trunks(job, spoil):
    spoil({SHORT.start + 1: math.inf})
    result, *_ = run(job, SHORT)
    assert (result.status, result.on_trunk) == ("diverged", False)


def test_held_out_loss_that_is_no_number_is_divergence(job, monkeypatch):
    monkeypatch.setattr("minigpt.member.evaluate", lambda *a: (math.nan, math.nan, math.nan, 0))
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
        n_bytes += sum(int(token) != BYTES.end_of_text for token in text[1:])
    mean_B = np.mean(nats, axis=1)
    if tokens == 4_000:
        assert n_bytes < count * SEQ_LEN  # ends of text are among the targets

    mean, se, bpb, n_tokens = evaluate(model, job.corpus, tokens, job.device, job.train.dtype)
    assert n_tokens == count * SEQ_LEN
    assert mean == pytest.approx(np.mean(nats), rel=1e-5)
    assert bpb == pytest.approx(np.sum(nats) / math.log(2) / n_bytes, rel=1e-5)
    if count == 1:
        assert se is None
    else:
        assert se == pytest.approx(np.std(mean_B, ddof=1) / math.sqrt(count), rel=1e-4)


def test_evaluation_leaves_training_mode_and_gradients_alone(job):
    model = MiniGPT(MODEL)
    evaluate(model, job.corpus, 64, job.device, job.train.dtype)
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
