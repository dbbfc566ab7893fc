"""Every mistake in a config is one message with file, key, value, rule and remedy."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.config import ConfigError, load, parse


def test_overrides_reach_nested_keys(micro: Path) -> None:
    config = load(
        micro, ["grid.seeds=[3, 4]", "name=other", "train.lr.value=1e-2", "data.eval_tokens=2e3"]
    )
    assert config.grid.seeds == (3, 4)
    assert config.folder.name == "other"
    assert config.train.lr.model_dump()["value"] == 0.01
    assert config.data.eval_tokens == 2000


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trian.lr=3", "unknown key 'trian'; did you mean 'train'?"),
        ("train.optimiser=adam", "unknown key 'optimiser' in [train]; did you mean 'optimizer'?"),
        ("train.lr.valeu=3", "unknown key 'valeu' in [train.lr]; did you mean 'value'?"),
        ("model.d_modle=3", "unknown key 'd_modle'; did you mean 'd_model'?"),
        ("grid.sizes=[{ d_modle = 8 }]", "unknown key 'd_modle'; did you mean 'd_model'?"),
        ("grid.holdout=[{ d_modle = 8 }]", "unknown key 'd_modle'; did you mean 'd_model'?"),
        ("grid.tokens=[1.5]", "grid.tokens[0] = 1.5: input should be a valid integer"),
        ("grid.tokens=['many']", "grid.tokens[0] = 'many': input should be a valid integer"),
        ("grid.seeds=[true]", "grid.seeds[0] = True: input should be a valid integer"),
        ("grid.seeds=[-1]", "grid.seeds[0] = -1: input should be greater than or equal to 0"),
        ("grid.tokens_per_param=[20]", "exactly one of tokens = [...], tokens_per_param = [...]"),
        ("grid.flops=[1e9]", "and flops = [...]; here: tokens and flops"),
        ("grid.tokens=[]", "exactly one of tokens = [...], tokens_per_param = [...] and flops ="),
        ("grid.flops=[1e9, 1_000_000_000]", "flops holds 1000000000.0 twice"),
        ("grid.flops=[-1e9]", "grid.flops[0] = -1000000000.0: input should be greater than 0"),
        ("grid.flops=['many']", "grid.flops[0] = 'many': input should be a valid number"),
        ("grid.flop=[1e9]", "unknown key 'flop' in [grid]; did you mean 'flops'?"),
        ("grid.runs=[{ d_model = 8 }]", "grid.runs[0]: a run needs a horizon: give exactly one of"),
        ("grid.runs=[{ d_model = 8, tokens = 640, flops = 1e9 }]", "one of tokens and flops"),
        ("grid.runs=[{ d_model = 8, flop = 1e9 }]", "unknown key 'flop'; did you mean 'flops'?"),
        ("grid.holdout=[{ flop = 1e9 }]", "holdout: unknown key 'flop'; did you mean 'flops'?"),
        ("grid.sizes=[]", "the grid is empty"),
        ("train.batch={ rule = 'constnat' }", "'constant', 'step-law'"),
        ("data.val_fraction=1.0", "data.val_fraction = 1.0: input should be less than 1"),
        ("data.source='stdlib'", "path belongs to source = 'text'"),
        ("name='a b'", "name = 'a b'"),
        ("name='data'", "'data' is the folder of the token shards"),
        ("grid.seeds=[0, 0]", "seeds holds 0 twice"),
        ("grid.holdout=[{}]", "matches every run"),
        ("grid.sizes=[{ d_model = 8, seed = [1] }]", "unknown key 'seed'; did you mean 'seeds'?"),
        ("train.lr=0.1", "train.lr = 0.1: input should be a table such as { rule = 'constant'"),
        ("train.weight_decay=inf", "train.weight_decay = inf: input should be a finite number"),
        ("train.grad_clip='no'", "input should be a valid number, or input should be 'off'"),
        ("grid.seeds=[9223372036854775808]", "9223372036854775808: input should be"),
        ("schedule.power_tokens=5", "power_tokens belongs to trunk = 'power'"),
        ("schedule.final_fraction=0.1", "final_fraction belongs to kind = 'cosine'"),
        ("grid", "override 'grid': write KEY=VALUE"),
        ("name.x=1", "'name' is no table of settings"),
    ],
)
def test_mistakes_are_named(micro: Path, override: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(micro, [override])
    assert told in str(error.value)


def test_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(
        ConfigError, match=r"quik\.toml: no such config file; did you mean configs/quick.toml"
    ):
        load(Path("configs/quik.toml"))
    bad = tmp_path / "bad.toml"
    bad.write_text("name = ")
    with pytest.raises(ConfigError, match=r"bad\.toml: not valid TOML"):
        load(bad)


def test_shipped_configs_are_valid() -> None:
    shipped = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
    assert {path.stem for path in shipped} >= {"quick", "tiny", "minigpt", "isoflop"}
    for path in shipped:
        config = load(path)
        assert config.name == path.stem
        # As sweep.json and the plan hold it; TOML knows no null.
        resolved = without_nulls(json.loads(config.model_dump_json()))
        assert parse(resolved, where="sweep.json") == config


def without_nulls(values: Any) -> Any:
    if isinstance(values, dict):
        return {k: without_nulls(v) for k, v in values.items() if v is not None}
    return [without_nulls(v) for v in values] if isinstance(values, list) else values
