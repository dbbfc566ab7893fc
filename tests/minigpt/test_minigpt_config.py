"""Configs are checked, whole and frozen; every refusal names the value and the rule."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from minigpt.config import (
    DataConfig,
    LearningRates,
    ModelConfig,
    ScheduleConfig,
    TrainConfig,
    steps_of,
)
from minigpt.model import MiniGPT

GPT = {"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 257, "seq_len": 16}
VASWANI = {"preset": "vaswani", "seq_len": 16}
RATES = {"hidden": 0.01, "embedding": 0.01, "head": 0.01, "vector": 0.01}
TOKENS = {"source": "tokens", "path": "a", "val_path": "b", "vocab_size": 100}
TRAIN = {"lr": RATES, "schedule": {}, "batch_tokens": 128}


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"n_heads": 5}, ["n_heads = 5", "d_model = 32", "1, 2, 4, 8, 16, 32"]),
        ({"d_model": 12, "n_heads": 4}, ["rotary", "3 must be even"]),
        ({"positions": "learned"}, ["positions = 'learned'", "'vaswani'", "'rotary'"]),
        ({"positions": "sinusoidal"}, ["positions = 'sinusoidal'", "'vaswani'", "'rotary'"]),
        (VASWANI | {"positions": "rotary"}, ["'rotary'", "'gpt'", "'learned' or 'sinusoidal'"]),
        (VASWANI | {"activation": "gelu"}, ["activation = 'gelu'", "'relu'"]),
        ({"dmodel": 32}, ["dmodel", "Extra inputs are not permitted"]),
        ({"preset": "llama"}, ["'gpt' or 'vaswani'", "llama"]),
        ({"activation": "swish"}, ["'relu', 'relu2' or 'gelu'", "swish"]),
        ({"n_layers": True}, ["n_layers", "valid integer", "True"]),
        ({"n_layers": "2"}, ["n_layers", "valid integer", "'2'"]),
        ({"n_layers": 2.5}, ["n_layers", "valid integer", "2.5"]),
        ({"n_layers": math.inf}, ["n_layers", "valid integer", "inf"]),
        ({"n_layers": math.nan}, ["n_layers", "valid integer", "nan"]),
        ({"n_layers": 0}, ["n_layers", "greater than 0", "0"]),
        ({"seq_len": -8}, ["seq_len", "greater than 0", "-8"]),
        ({"vocab_size": None}, ["vocab_size", "valid integer", "None"]),
    ],
)
def test_bad_model_is_refused_with_value_and_rule(changes, texts):
    with pytest.raises(ValidationError) as refusal:
        ModelConfig.model_validate(GPT | changes)
    for text in texts:
        assert text in str(refusal.value)


@pytest.mark.parametrize("key", sorted(GPT))
def test_gpt_has_no_default_sizes(key):
    with pytest.raises(ValidationError, match=f"{key}\n  Field required"):
        ModelConfig.model_validate({k: v for k, v in GPT.items() if k != key})


def test_defaults_of_each_preset():
    gpt = ModelConfig.model_validate(GPT)
    assert (gpt.preset, gpt.activation, gpt.positions) == ("gpt", "relu2", "rotary")
    assert (gpt.d_ff, gpt.d_head) == (128, 8)
    reference = ModelConfig.model_validate(VASWANI)
    assert (reference.activation, reference.positions) == ("relu", "learned")
    assert (reference.vocab_size, reference.d_model, reference.d_ff) == (1000, 128, 512)
    assert (reference.n_layers, reference.n_heads) == (2, 4)


def test_given_values_win_over_the_presets_defaults():
    changed = ModelConfig.model_validate(
        VASWANI | {"d_model": 64, "d_ff": 100, "positions": "sinusoidal", "vocab_size": 257}
    )
    assert (changed.d_model, changed.d_ff, changed.vocab_size) == (64, 100, 257)
    assert changed.positions == "sinusoidal"


def test_whole_floats_are_integers():
    assert DataConfig(eval_tokens=2e6).eval_tokens == 2_000_000
    config = TrainConfig.model_validate(TRAIN | {"eval_every_tokens": 1e5, "seed": 3.0})
    assert (config.eval_every_tokens, config.seed) == (100_000, 3)
    assert type(config.eval_every_tokens) is int
    assert ScheduleConfig(warmup_tokens=2e6).warmup_tokens == 2_000_000


def test_whole_float_width_still_decides_the_feed_forward_width():
    assert ModelConfig.model_validate(GPT | {"d_model": 64.0}).d_ff == 256


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ({"source": "text"}, ["source = 'text' needs path"]),
        ({"source": "text", "path": []}, ["source = 'text' needs path"]),
        ({"source": "text", "path": ""}, ["source = 'text' needs path"]),
        ({"source": "text", "path": [""]}, ["path holds an empty string", "'.' is the current"]),
        ({"source": "text", "path": ["a", ""]}, ["path holds an empty string"]),
        ({"source": "stdlib", "path": "books"}, ["path belongs to source = 'text'"]),
        ({"source": "libraries", "path": "books"}, ["path belongs to source = 'text'"]),
        ({"column": "text"}, ["column belongs to source = 'text'", "remove column"]),
        ({"source": "text", "path": "a", "column": ""}, ["column", "at least 1 character"]),
        ({"source": "text", "path": "a", "vocab_size": 9}, ["vocab_size belongs to", "'tokens'"]),
        ({"source": "text", "path": "a", "val_path": "b"}, ["val_path belongs to", "'tokens'"]),
        ({"source": "text", "path": "a", "end_of_text": 0}, ["end_of_text belongs", "'tokens'"]),
        ({"source": "tokens"}, ["source = 'tokens' needs path", ".bin file"]),
        ({"source": "tokens", "path": "a"}, ["source = 'tokens' needs val_path", "held-out"]),
        (
            {"source": "tokens", "path": "a", "val_path": "b"},
            ["source = 'tokens' needs vocab_size", "the tokenizer has"],
        ),
        (TOKENS | {"val_path": ["b", ""]}, ["val_path holds an empty string"]),
        (TOKENS | {"column": "text"}, ["column belongs to source = 'text'"]),
        (TOKENS | {"val_fraction": 0.2}, ["val_fraction belongs to text", "remove val_fraction"]),
        (TOKENS | {"vocab_size": 65_537}, ["vocab_size = 65,537", "65,536 ids of uint16"]),
        (TOKENS | {"vocab_size": 0}, ["vocab_size", "greater than 0"]),
        (TOKENS | {"end_of_text": 100}, ["end_of_text = 100", "below vocab_size = 100"]),
        ({"curve_eval_tokens": 9, "eval_tokens": 8}, ["curve_eval_tokens = 9", "eval_tokens = 8"]),
        ({"source": "web"}, ["'stdlib', 'libraries', 'text' or 'tokens'", "web"]),
        ({"val_fraction": 0.0}, ["val_fraction", "greater than 0"]),
        ({"val_fraction": 1.0}, ["val_fraction", "less than 1"]),
        ({"val_fraction": math.nan}, ["val_fraction", "nan"]),
        ({"max_epochs": 0.0}, ["max_epochs", "greater than 0"]),
        ({"eval_tokens": "many"}, ["eval_tokens", "valid integer", "many"]),
    ],
)
def test_bad_data_is_refused_with_value_and_rule(values, texts):
    with pytest.raises(ValidationError) as refusal:
        DataConfig.model_validate(values)
    for text in texts:
        assert text in str(refusal.value)


def test_data_path_takes_one_or_a_list():
    assert DataConfig(source="text", path="a").path == "a"
    assert DataConfig.model_validate({"source": "text", "path": ["a", "b"]}).path == ("a", "b")


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ({"trunk": "power"}, ["power_tokens", "give both"]),
        ({"power_tokens": 1000}, ["power_tokens", "give both"]),
        ({"trunk": "power", "power_tokens": 10, "power": 1.5}, ["power", "1.5"]),
        ({"cooldown_fraction": 0.0}, ["cooldown_fraction", "greater than 0"]),
        ({"cooldown_fraction": 1.0}, ["cooldown_fraction", "less than 1"]),
        ({"final_fraction": 1.0}, ["final_fraction", "less than 1"]),
        ({"warmup_tokens": -1}, ["warmup_tokens", "greater than or equal to 0"]),
        ({"kind": "wsd2"}, ["'wsd' or 'cosine'", "wsd2"]),
    ],
)
def test_bad_schedule_is_refused_with_value_and_rule(values, texts):
    with pytest.raises(ValidationError) as refusal:
        ScheduleConfig.model_validate(values)
    for text in texts:
        assert text in str(refusal.value)


FOREIGN = {
    "cosine": {
        "trunk": "power",
        "power": 0.25,
        "power_tokens": 1000,
        "cooldown": "linear",
        "cooldown_fraction": 0.1,
    },
    "wsd": {"final_fraction": 0.1},
}


@pytest.mark.parametrize(
    ("kind", "key"), [(kind, key) for kind, values in FOREIGN.items() for key in values]
)
def test_setting_of_the_other_kind_is_refused(kind, key):
    other = "wsd" if kind == "cosine" else "cosine"
    with pytest.raises(ValidationError) as refusal:
        ScheduleConfig.model_validate({"kind": kind, key: FOREIGN[kind][key]})
    assert f"{key} belongs to kind = '{other}', not to '{kind}'; remove it" in str(refusal.value)


@pytest.mark.parametrize("kind", sorted(FOREIGN))
def test_setting_of_the_other_kind_may_stand_at_its_default(kind):
    """So a stored config, which is whole, can be read again."""
    defaults = {key: ScheduleConfig.model_fields[key].default for key in FOREIGN[kind]}
    assert ScheduleConfig.model_validate({"kind": kind} | defaults) == ScheduleConfig(kind=kind)


@pytest.mark.parametrize("kind", sorted(FOREIGN))
def test_every_setting_belongs_to_both_kinds_or_to_one(kind):
    other = "wsd" if kind == "cosine" else "cosine"
    assert ScheduleConfig.model_validate({"kind": other} | FOREIGN[kind]).kind == other
    both = set(ScheduleConfig.model_fields) - {key for values in FOREIGN.values() for key in values}
    assert both == {"kind", "warmup_tokens"}


@pytest.mark.parametrize(
    ("changes", "texts"),
    [
        ({"optimizer": "adam", "weight_decay": 0.1}, ["weight_decay = 0.1", "'adamw'"]),
        ({"optimizer": "sgd"}, ["'adamw' or 'adam'", "sgd"]),
        ({"lr": RATES | {"head": 0.0}}, ["lr.head", "greater than 0"]),
        ({"lr": RATES | {"head": math.inf}}, ["lr.head", "finite"]),
        ({"lr": RATES | {"head": "1e-3"}}, ["lr.head", "valid number", "1e-3"]),
        ({"lr": RATES | {"head": True}}, ["lr.head", "valid number", "True"]),
        ({"lr": RATES | {"bias": 0.1}}, ["lr.bias", "Extra inputs are not permitted"]),
        ({"beta2": 1.0}, ["beta2", "less than 1"]),
        ({"eps": 0.0}, ["eps", "greater than 0"]),
        ({"grad_clip": 0.0}, ["grad_clip", "greater than 0"]),
        ({"batch_tokens": 0}, ["batch_tokens", "greater than 0"]),
        ({"seed": -1}, ["seed", "greater than or equal to 0"]),
        ({"seed": 2**63}, ["seed", "less than", str(2**63)]),
        ({"seed": 2.0**63}, ["seed", "less than"]),
        ({"seed": 10**30}, ["seed", "less than", str(10**30)]),
    ],
)
def test_bad_training_is_refused_with_value_and_rule(changes, texts):
    with pytest.raises(ValidationError) as refusal:
        TrainConfig.model_validate(TRAIN | changes)
    for text in texts:
        assert text in str(refusal.value)


def test_the_largest_seed_is_one_that_a_model_can_be_drawn_from():
    seed = TrainConfig.model_validate(TRAIN | {"seed": 2**63 - 1}).seed
    assert seed == 2**63 - 1
    MiniGPT(ModelConfig.model_validate(GPT), seed=seed)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    ("config", "values", "field"),
    [
        (config, values, field)
        for config, values in (
            (ModelConfig, GPT),
            (DataConfig, {}),
            (ScheduleConfig, {}),
            (LearningRates, RATES),
            (TrainConfig, TRAIN),
        )
        for field in config.model_fields
    ],
)
def test_no_field_takes_an_infinite_number_or_none_at_all(config, values, field, value):
    with pytest.raises(ValidationError) as refusal:
        config.model_validate(values | {field: value})
    found = {error["loc"][0]: error["type"] for error in refusal.value.errors()}
    assert field in found
    if re.search(r"\bfloat\b", str(config.model_fields[field].annotation)):
        assert found[field] == "finite_number"


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig.model_validate(GPT),
        DataConfig(),
        ScheduleConfig(),
        ScheduleConfig(kind="cosine", final_fraction=0.1),
        ScheduleConfig(trunk="power", power_tokens=1000, cooldown="linear"),
        LearningRates.model_validate(RATES),
        TrainConfig.model_validate(TRAIN),
    ],
    ids=lambda config: type(config).__name__,
)
def test_configs_are_frozen_and_survive_json(config):
    field = next(iter(type(config).model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, field, getattr(config, field))
    assert type(config).model_validate_json(config.model_dump_json()) == config


@settings(max_examples=100)
@given(tokens=st.integers(1, 10**12), batch_tokens=st.integers(1, 10**7))
def test_steps_are_the_nearest_whole_number(tokens, batch_tokens):
    steps = steps_of(tokens, batch_tokens)
    assert steps >= 1
    assert steps == 1 or abs(steps * batch_tokens - tokens) * 2 <= batch_tokens
