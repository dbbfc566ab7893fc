"""Units that look wrong are said and flagged, never corrected and never refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic import Plan, results_frame, write_sweep

from analysis.load import Columns, load

DATA = Path(__file__).parents[2] / "../shared/data"
QUICK = Path(__file__).parents[1] / "data/quick"
COLUMNS = Columns(n="n", d="d", loss="loss", flops="flops")
NDL = Columns(n="n", d="d", loss="loss")


def grid(**changes):
    """6 sizes from 1e7, 5 horizons from 4e8, losses in nats per token, C = 6ND."""
    n, d = np.meshgrid(1e7 * 2.0 ** np.arange(6), 4e8 * 2.0 ** np.arange(5))
    frame = pd.DataFrame({"n": n.T.ravel(), "d": d.T.ravel()})
    frame["loss"] = 1.7 + 400 / frame["n"] ** 0.34 + 410 / frame["d"] ** 0.28
    frame["flops"] = 6.2 * frame["n"] * frame["d"]
    return frame.assign(**changes)


def read(folder, frame, columns=COLUMNS):
    frame.to_csv(folder / "t.csv", index=False)
    return load(folder / "t.csv", columns)


def suspects(study):
    return {f["row"]: f["reason"] for f in study.flagged if f["flag"] == "suspect_units"}


def test_plain_numbers_raise_no_doubt(tmp_path):
    study = read(tmp_path, grid())
    assert not study.flagged
    assert study.loss_unit == "nats/token"
    assert study.units["L"] == "nats/token, not stated (loss)"


@pytest.mark.parametrize(("power", "word"), [(3, "thousands"), (6, "millions"), (9, "billions")])
@pytest.mark.parametrize("column", ["n", "d", "flops"])
def test_a_column_in_another_unit_shows_in_compute_with_its_factor(tmp_path, column, power, word):
    study = read(tmp_path, grid(**{column: lambda f: f[column] / 10.0**power}))
    why = suspects(study)["columns n, d, flops"]
    assert f"(a factor of 1e{power}: {word})?" in why
    assert f"columns n, d, flops {why}" in study.notes
    assert len(study.rows) == 30
    assert study.rows.N[0] == (1e7 / 10**power if column == "n" else 1e7)


@pytest.mark.parametrize(
    ("factor", "text"),
    [
        (8.64e19, "(C in petaflop/s-days, 8.64e19 FLOP?)"),
        (1e12, "(a factor of 1e12: trillions)"),
        (1e18, "(a factor of 1e18: exa)"),
        (3e7, "C/(6ND) = 10^-7.5"),
    ],
)
def test_compute_in_another_unit_names_the_usual_one(tmp_path, factor, text):
    study = read(tmp_path, grid(flops=lambda f: f["flops"] / factor))
    assert text in suspects(study)["columns n, d, flops"]


def test_conventions_of_compute_are_no_unit(tmp_path):
    for factor in (0.15, 8):
        assert not read(tmp_path, grid(flops=lambda f, k=factor: f["flops"] * k)).flagged


@pytest.mark.parametrize("power", [6, 9])
def test_without_compute_sizes_and_tokens_speak_for_themselves(tmp_path, power):
    by = 10.0**power
    study = read(tmp_path, grid(n=lambda f: f["n"] / by), NDL)
    assert "fewer than 1,000 parameters" in suspects(study)["column n"]
    study = read(tmp_path, grid(d=lambda f: f["d"] / by), NDL)
    assert (
        "10^-" in str(suspects(study)) or "fewer than 1,000 tokens" in suspects(study)["column d"]
    )
    study = read(tmp_path, grid(n=lambda f: f["n"] * by), NDL)
    assert "tokens per parameter in the median row" in suspects(study)["columns n, d"]
    study = read(tmp_path, grid(n=lambda f: f["n"] / by, d=lambda f: f["d"] / by), NDL)
    assert set(suspects(study)) == {"column n", "column d"}


@pytest.mark.parametrize("column", ["n", "d", "flops"])
@pytest.mark.parametrize("factor", [1e-9, 1e-6, 1e6, 1e9])
def test_single_rows_in_another_unit_are_flagged_by_name(tmp_path, column, factor):
    frame = grid()
    frame.loc[[4, 11], column] *= factor
    study = read(tmp_path, frame)
    assert list(suspects(study)) == ["row 5", "row 12"]
    assert all(why.endswith("another unit?") for why in suspects(study).values())
    note = "2 of 30 rows look given in another unit than the rest, and are used; first row 5: "
    assert any(n.startswith(note) for n in study.notes)
    assert len(study.rows) == 30


def test_extreme_values_are_answered_without_overflow(tmp_path):
    frame = grid()
    frame.loc[0, "n"], frame.loc[1, "d"], frame.loc[2, "flops"] = 1e300, 1e-300, 1e300
    frame.loc[3, ["n", "d"]] = 1e300
    study = read(tmp_path, frame)
    assert set(suspects(study)) == {"row 1", "row 2", "row 3", "row 4"}
    assert len(read(tmp_path, frame, NDL).rows) == 28  # C = 6ND of rows 1 and 4 is not finite


@pytest.mark.parametrize(
    "name", ["val_bpb", "bits_per_byte", "bitsPerToken", "loss (bits)", "BPC", "eval/bpb", "log2_L"]
)
def test_losses_that_are_bits_by_their_name_are_said_to_be(tmp_path, name):
    frame = grid().rename(columns={"loss": name})
    study = read(tmp_path, frame, Columns(n="n", d="d", loss=name))
    assert study.loss_unit == "bits"
    assert suspects(study) == {
        f"column {name}": "looks like bits: E and the population prior are in nats per token"
    }
    assert study.units["L"] == f"bits ({name})"


@pytest.mark.parametrize(
    "name", ["orbit_loss", "arbitrary", "loss_8bit", "loss_32_bit", "access", "habit"]
)
def test_names_that_only_contain_such_letters_are_not(tmp_path, name):
    frame = grid().rename(columns={"loss": name})
    assert read(tmp_path, frame, Columns(n="n", d="d", loss=name)).loss_unit == "nats/token"


def test_bits_per_byte_of_a_sweep_are_known_by_their_unit():
    study = load(QUICK, Columns(loss="val_bpb"))
    assert study.loss_unit == "bits"
    assert study.units["L"] == "bits/byte (val_bpb)"
    assert load(QUICK).loss_unit == "nats/token"
    assert not suspects(load(QUICK))


def test_units_in_the_metadata_of_a_foreign_parquet_are_read(tmp_path):
    table = pa.Table.from_pandas(grid(), preserve_index=False)
    units = {"n": "million parameters", "d": "Tokens", "loss": "nats/character", "flops": "FLOP"}
    fields = [f.with_metadata({"unit": units[f.name]}) for f in table.schema]
    pq.write_table(table.cast(pa.schema(fields)), tmp_path / "t.parquet")
    study = load(tmp_path / "t.parquet", COLUMNS)
    assert suspects(study) == {
        "column n": "has unit 'million parameters', the law needs parameters",
        "column loss": "has unit 'nats/character': E is in that unit",
    }
    assert study.loss_unit == "unknown"


def test_perplexities_accuracies_and_scores_are_no_losses(tmp_path):
    study = read(tmp_path, grid(loss=lambda f: np.exp(f["loss"])), COLUMNS)
    assert study.loss_unit == "unknown"
    assert "perplexities? Their logarithm is the loss" in suspects(study)["column loss"]
    study = read(tmp_path, grid(loss=lambda f: np.exp(-f["loss"])))
    assert (
        "rises with N and D (rank correlation 0.99): accuracies?" in suspects(study)["column loss"]
    )
    assert study.loss_unit == "unknown"
    study = read(tmp_path, grid(loss=lambda f: 100 * np.exp(-f["loss"])))
    assert "accuracies or other scores? A loss falls" in suspects(study)["column loss"]
    frame = (
        grid()
        .rename(columns={"loss": "val_ppl"})
        .assign(val_ppl=lambda f: np.exp(f["val_ppl"]) / 5)
    )
    study = read(tmp_path, frame, Columns(n="n", d="d", loss="val_ppl"))
    assert suspects(study)["column val_ppl"] == "is by its name no loss in nats per token"
    assert len(study.rows) == 30


def test_a_single_loss_above_that_of_a_uniform_guess_is_flagged(tmp_path):
    frame = grid()
    frame.loc[6, "loss"] = 54.2
    reason = "loss = 54.2 is more than a uniform guess loses: another unit?"
    assert suspects(read(tmp_path, frame)) == {"row 7": reason}


def test_losses_below_one_are_said_to_be_too_low_for_tokens_of_text(tmp_path):
    study = read(tmp_path, grid(loss=lambda f: f["loss"] / 6))
    assert study.loss_unit == "unknown"
    assert (
        "nats per character or byte, or a source of low entropy" in suspects(study)["column loss"]
    )
    frame = results_frame(Plan()).assign(val_loss=lambda f: f["val_loss"] / 5)
    study = load(write_sweep(tmp_path / "s", frame=frame))  # a source of low entropy, unit stated
    assert study.loss_unit == "nats/token"
    assert not suspects(study)


def test_one_isoflop_curve_has_no_trend_to_judge(tmp_path):
    n = np.geomspace(1e7, 1e9, 9)
    frame = pd.DataFrame({"n": n, "d": 1e18 / n * (1 + 0.001 * np.arange(9)), "loss": 3 + n / 1e9})
    assert read(tmp_path, frame, NDL).loss_unit == "nats/token"


PUBLIC = {
    "epoch_chinchilla/svg_extracted_data.csv": Columns("Model Size", None, "loss", "Training FLOP"),
    "datablations/runs.csv": Columns(n="N", d="D", loss="loss", unique="U"),
    "gadre/models_flat.csv": Columns(n="N", d="D", loss="loss_c4_val"),
    "misfitting/scaling_results.csv": Columns(n="N_no_emb", d="D", loss="loss", flops="C"),
    "porian/isoflop_points.csv": Columns(n="N", d="D", loss="loss", flops="flops"),
    "steplaw/moe_lr_bs_loss.csv": Columns(n="N", d="D", loss="loss"),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_public_observations_in_plain_units_raise_no_doubt(name):
    if not (DATA / name).exists():
        pytest.skip(f"no {name}")
    study = load(DATA / name, PUBLIC[name])
    assert not suspects(study)
    assert study.loss_unit == "nats/token"


@pytest.mark.parametrize(
    ("name", "columns", "suspected"),
    [
        (
            "datablations/runs_182_fit_set.csv",
            Columns(n="N_billion", d="D_billion", loss="loss", unique="U_billion"),
            {"column N_billion", "column D_billion"},
        ),
        (
            "llama3_isoflop/isoflops_points.csv",
            Columns(d="training_tokens", flops="compute_budget", loss="validation_loss"),
            {"column validation_loss"},  # nats per character
        ),
    ],
)
def test_public_observations_in_other_units_do(name, columns, suspected):
    if not (DATA / name).exists():
        pytest.skip(f"no {name}")
    assert set(suspects(load(DATA / name, columns))) == suspected
