"""`tokens = { doublings = n }`: horizons that follow from how much text there is."""

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.gridfile import extended
from experiments.config import ConfigError, SweepConfig, load, parse
from experiments.corpora import Corpora
from experiments.plan import expand, warnings
from experiments.spec import TrunkSpec
from minigpt.data import CorpusInfo

ROOT = Path(__file__).parents[2]
QUICK = json.loads((ROOT / "tests/data/quick/sweep.json").read_text())
CORPUS = CorpusInfo(**QUICK["corpus"] | {"skipped": ()})
Expand = Callable[..., list[TrunkSpec]]

GIVEN = "grid.tokens.doublings"


def doublings(count: int) -> str:
    return f"grid.tokens={{ doublings = {count} }}"


def horizons(trunk: TrunkSpec) -> list[int]:
    return [run.tokens for run in trunk.runs]


def of(count: int, max_epochs: float = 1.0, seq_lens: tuple[int, ...] = (128,)) -> SweepConfig:
    """A grid of one size for each context length, a sequence of the longest in a step."""
    values = {
        "name": "some",
        "model": {"n_layers": 1, "d_head": 16, "d_model": 16},
        "data": {"max_epochs": max_epochs},
        "train": {"batch": {"rule": "constant", "tokens": max(seq_lens)}},
        "grid": {
            "sizes": [{"seq_len": seq_len} for seq_len in seq_lens],
            "tokens": {"doublings": count},
        },
    }
    return parse(values, where="test")


@given(
    count=st.integers(1, 6),
    train_tokens=st.integers(2**13 + 200, 10**12) | st.integers(14, 40).map(lambda k: 2**k),
    max_epochs=st.sampled_from([0.5, 1.0, 1.5, 4.0]),
    seq_lens=st.sampled_from([(128,), (32,), (128, 64), (16, 128)]),
)
def test_they_end_at_the_largest_power_of_two_that_every_size_can_train(
    count: int, train_tokens: int, max_epochs: float, seq_lens: tuple[int, ...]
) -> None:
    corpus = replace(CORPUS, train_tokens=train_tokens)
    trunks = expand(of(count, max_epochs, seq_lens), Corpora({None: corpus}))
    assert len(trunks) == len(seq_lens)
    found = horizons(trunks[0])
    assert all(horizons(trunk) == found for trunk in trunks)
    assert len(found) == count
    assert all(b == 2 * a for a, b in itertools.pairwise(found))
    largest = found[-1]
    assert largest & (largest - 1) == 0
    # A window's last target is the next one's first input: whole windows end before the text does.
    whole = min((train_tokens - 1) // seq_len * seq_len for seq_len in seq_lens) * max_epochs
    assert largest <= whole < 2 * largest


def test_they_are_the_runs_of_the_same_numbers_in_a_list(plan: Expand) -> None:
    by_doublings = plan(doublings(3))
    tokens = horizons(by_doublings[0])
    assert by_doublings == plan(f"grid.tokens={tokens}")
    assert all(horizons(trunk) == tokens for trunk in by_doublings)
    more = plan(doublings(5))
    assert {run.run_id for t in by_doublings for run in t.runs} < {
        r.run_id for t in more for r in t.runs
    }
    assert max(tokens) == max(horizons(more[0]))


def test_other_axes_and_explicit_runs_stand_beside_them(plan: Expand) -> None:
    tokens = horizons(plan(doublings(2))[0])
    trunks = plan(
        doublings(2),
        "grid.sizes=[{ d_model = 8, seeds = [0, 1] }, { d_model = 16 }]",
        "grid.lr_multipliers=[1, 0.5]",
        f"grid.holdout=[{{ tokens = {tokens[-1]} }}]",
        "grid.runs=[{ d_model = 16, tokens = 6400 }]",
    )
    found = {(t.model.d_model, t.train.seed, t.arm): horizons(t) for t in trunks}
    assert len(found) == 6
    assert found.pop((16, 0, "main")) == [6400, *tokens]
    assert all(each == tokens for each in found.values())
    held = {run.tokens for trunk in trunks for run in trunk.runs if run.holdout}
    assert held == {tokens[-1]}
    with pytest.raises(ConfigError, match=r"runs\[0\]: .* asked for twice"):
        plan(doublings(2), f"grid.runs=[{{ d_model = 16, tokens = {tokens[0]} }}]")
    (only,) = plan(doublings(2), "grid.sizes=[]", "grid.runs=[{ d_model = 16, tokens = 6400 }]")
    assert horizons(only) == [6400]


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        ("{ doublings = 0 }", "grid.tokens.doublings = 0: input should be greater than 0"),
        ("{ doublings = 1.5 }", "grid.tokens.doublings = 1.5: input should be a valid integer"),
        ("{ doublings = true }", "grid.tokens.doublings = True: input should be a valid integer"),
        (
            "{ doubling = 3 }",
            "unknown key 'doubling' in [grid.tokens]; did you mean 'doublings'?",
        ),
        (
            "{ doublings = 3, from = 9 }",
            "unknown key 'from' in [grid.tokens]; known keys: doublings",
        ),
        ("{}", "missing key 'grid.tokens.doublings'"),
        ("5", "grid.tokens = 5: input should be a list"),
    ],
)
def test_mistakes_are_named_once(micro: Path, tokens: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(micro, [f"grid.tokens={tokens}"])
    assert told in str(error.value)
    assert "list[" not in str(error.value)
    assert ", or input" not in str(error.value)


def test_they_are_one_way_to_give_horizons(micro: Path) -> None:
    with pytest.raises(ConfigError, match="here: tokens and flops"):
        load(micro, [doublings(2), "grid.flops=[1e9]"])


@pytest.mark.parametrize("kind", ["wsd", "cosine"])
@pytest.mark.parametrize(
    ("warmup", "count", "rule"),
    [
        (128, 10, "horizon of 128 tokens at {} is not longer than schedule.warmup_tokens = 128; "),
        (
            0,
            12,
            "horizon of 32 tokens at {} is shorter than one step of 64 tokens; lower the batch",
        ),
        (240, 9, "horizon of 256 tokens at {}: its cooldown starts at 192 tokens, inside "),
    ],
)
def test_what_is_too_short_is_refused_with_the_number_that_is_not(
    plan: Expand, kind: str, warmup: int, count: int, rule: str
) -> None:
    words = (f"schedule.kind={kind}", f"schedule.warmup_tokens={warmup}")
    if kind == "cosine" and warmup == 240:  # there is no cooldown: the next one is too short
        count, rule = 10, "horizon of 128 tokens at {} is not longer than "
    with pytest.raises(ConfigError) as error:
        plan(doublings(count), *words)
    told = f"grid.tokens.doublings = {count}: {rule.format('d_model = 8, seed = 0')}"
    assert str(error.value).startswith(told)
    assert str(error.value).endswith(f", or ask for fewer: {GIVEN}={count - 1}")
    trunks = plan(doublings(count - 1), *words)
    assert sum(len(trunk.runs) for trunk in trunks) == 2 * (count - 1)


def test_less_than_a_token_is_refused_whatever_the_number(plan: Expand) -> None:
    largest = horizons(plan(doublings(1))[0])[0]
    most = largest.bit_length()
    for count in (most + 1, 10**15):
        with pytest.raises(ConfigError, match=rf"D_max = {largest:,} tokens; use {most} or fewer"):
            plan(doublings(count))


def test_no_doubling_fits_a_text_shorter_than_a_step() -> None:
    corpus = replace(CORPUS, train_tokens=130)
    with pytest.raises(ConfigError, match=r"shorter than one step of 128 tokens; lower the batch$"):
        expand(of(1, max_epochs=0.5), Corpora({None: corpus}))


def test_plan_and_run_tell_the_largest(sweep, micro: Path) -> None:
    words = (micro, doublings(2), "grid.sizes=[{ d_model = 8 }]")
    code, out, err = sweep("plan", *words)
    assert code == 0, err
    told = r"^D_max = 65,536 tokens, the largest power of two within {}([\d,]+) training tokens"
    (epoch,) = re.findall(told.format(""), out, re.MULTILINE)
    assert re.search(r"of held-out 3-line windows also stand in training\n", out)
    assert int(epoch.replace(",", "")) < 2 * 65_536
    out = sweep("plan", *words, "data.max_epochs=2.5")[1]
    twice = told.replace("65,536", "131,072").format("2.5 epochs of ")
    assert re.findall(twice, out, re.MULTILINE) == [epoch]
    assert "D_max" not in sweep("plan", micro)[1]
    code, out, err = sweep(
        "run", micro, "grid.sizes=[]", words[1], "grid.runs=[{ d_model = 8, tokens = 640 }]"
    )
    assert code == 0, err
    assert "D_max" not in out  # there is no horizon to tell of


def test_a_started_sweep_is_extended_in_doublings(sweep, micro: Path) -> None:
    size = "grid.sizes=[{ d_model = 8 }]"
    code, out, err = sweep("run", micro, size, doublings(1))
    assert code == 0, err
    assert "D_max = 65,536 tokens" in out
    folder = micro.parent / "runs/micro"
    stored = json.loads((folder / "sweep.json").read_text())
    assert stored["config"]["grid"]["tokens"] == {"doublings": 1}
    code, out, err = sweep("run", micro, size, doublings(3))
    assert code == 0, err
    assert "3 runs, 1 finished before" in out
    code, out, err = sweep("run", micro, size, "grid.tokens=[16_384, 32_768, 65_536]")
    assert code == 0, err
    assert "3 runs, 3 finished before, 0 trunks to train" in out
    frame = pd.read_parquet(folder / "results.parquet")
    assert sorted(frame["tokens"]) == [16_384, 32_768, 65_536]
    assert set(frame["status"]) == {"ok"}
    assert set(frame["epochs"] <= 1) == {True}


def test_the_files_that_repeat_a_config_keep_them(sweep, micro: Path, tmp_path: Path) -> None:
    """The exported plan, and the config with further runs that `analysis.design` writes."""
    file = tmp_path / "plan.json"
    code, _, err = sweep("plan", micro, doublings(2), "--json", file)
    assert code == 0, err
    written = json.loads(file.read_text())
    assert written["config"]["grid"]["tokens"] == {"doublings": 2}
    assert {run["tokens"] for run in written["runs"]} == {32_768, 65_536}
    more = tmp_path / "more.toml"
    more.write_text(extended(written["config"], [{"d_model": 24, "tokens": 6400}], "more"))
    before, after = load(micro, [doublings(2)]), load(more)
    assert after.grid.tokens == before.grid.tokens
    assert len(after.grid.runs) == 1
    assert after.model_copy(update={"grid": before.grid}) == before


def test_the_shipped_gpu_ladder_is_a_grid_without_objections() -> None:
    config = load(ROOT / "configs/gpu.toml")
    assert (config.data.source, config.launch.device, config.launch.slots) == (
        "libraries",
        "cuda",
        5,
    )
    trunks = expand(config, Corpora({None: replace(CORPUS, train_tokens=100_000_000)}))
    assert warnings(config, trunks) == []
    assert {tuple(horizons(t)) for t in trunks} == {tuple(2**k for k in range(21, 27))}
    assert len(trunks) == 10
    sizes = sorted({trunk.n_total for trunk in trunks})
    assert len(sizes) == 5
    assert sizes[0] == pytest.approx(0.2e6, rel=0.2)
    assert sizes[-1] == pytest.approx(6.3e6, rel=0.05)
    assert {(t.model.n_layers, t.model.d_head) for t in trunks} == {(4, 32)}
