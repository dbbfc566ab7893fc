"""Heads over size and training: onset, ablation, structure, figures, damaged files."""

import numpy as np
import pytest
from inside import circuits_frame, write_circuits
from synthetic import Plan, results_frame, write_parquet

from analysis import circuitplots, circuits, circuittables
from analysis.circuits import Circuits, select
from analysis.read import CIRCUIT_COLUMNS, DataError

HORIZONS = (1e6, 2e6, 4e6)
PLAN = Plan(sizes=(24e3, 70e3, 240e3), horizons=HORIZONS, cheap=1, repeats=3, holdout=())
# First horizon above the threshold by (N, seed); seeds of the smallest size differ.
EMERGES = {(24e3, 0): 2e6, (24e3, 1): 4e6, (24e3, 2): 2e6, (70e3, 0): 1e6, (240e3, 0): np.inf}


@pytest.fixture(scope="module")
def runs():
    return results_frame(PLAN)


def above(model):
    return (
        model["run_id"] is not None and model["tokens"] >= EMERGES[model["n_total"], model["seed"]]
    )


def induction(model):
    return {"induction": 0.8 if above(model) else 0.1, "previous_token": 0.9}


def whole(model):
    drop = 3.0 if above(model) else 0.05
    if not above(model):
        return {"repeat_loss_drop": drop, "icl": 0.0}
    left = {"ablated": 0.3, "control": 2.7, "previous": 0.6}
    parts = {f"repeat_loss_drop_{kind}": value for kind, value in left.items()}
    return {"repeat_loss_drop": drop, "icl": -0.5, **parts}


@pytest.fixture(scope="module")
def found(runs):
    return select(circuits_frame(runs, induction, whole), runs)


def only(runs, scores, **kind) -> Circuits:
    return select(circuits_frame(runs, scores, **kind), runs)


# The onset of induction


def test_the_onset_lies_between_the_horizons_of_all_seeds(found):
    small, middle, large = circuits.onsets(found)
    assert (small.N, small.seeds, small.emerged) == (24e3, 3, 3)
    assert (small.D.low, small.D.high) == (1e6, 4e6)  # (1M, 2M] of two seeds, (2M, 4M] of one
    assert (middle.D.low, middle.D.high) == (None, 1e6)  # above at the first horizon already
    assert (large.emerged, large.D.low, large.D.high) == (0, 4e6, None)
    assert (large.best, small.best) == pytest.approx((0.1, 0.8))
    assert (large.heads, small.heads) == (0, 1)
    body = circuittables.onsets(found).body
    assert [row[3] for row in body] == ["1M to 4M", "by 1M", "not within D = 4M"]


def test_a_seed_without_induction_leaves_the_interval_open(runs):
    frame = circuits_frame(runs, induction)
    late = (frame["n_total"] == 24e3) & (frame["seed"] == 1) & (frame["metric"] == "induction")
    frame.loc[late, "value"] = 0.1
    small = circuits.onsets(select(frame, runs))[0]
    assert (small.emerged, small.D.low, small.D.high) == (2, 1e6, None)
    assert circuittables.onset(small) == "after 1M; in 2 of 3 seeds within D = 4M"


def test_where_nothing_emerges_it_says_within_which_budget(runs):
    flat = only(runs, lambda model: {"induction": 0.05})
    assert circuittables.sentences(flat) == [
        "Induction heads (score above 0.3) emerge in 0 of 3 sizes, in 3 not within D = 4M."
    ]
    assert circuittables.ablations(flat) is None


def test_one_layer_cannot_and_the_report_says_why(runs):
    single = only(runs, lambda model: {"induction": 0.05}, layers=1)
    (sentence,) = circuittables.sentences(single)
    assert "emerge in 0 of 3 sizes; 3 cannot have them, with one layer" in sentence
    assert "Olsson et al. 2022" in sentence
    assert {row[3] for row in circuittables.onsets(single).body} == {"not within D = 4M: one layer"}


# Ablation


def test_ablation_tells_the_shares_and_the_previous_token_heads_apart(found):
    small, middle = circuits.ablations(found)  # the largest size has no induction head to ablate
    assert (small.N, small.D, middle.N) == (24e3, 4e6, 70e3)
    for size in (small, middle):
        assert size.whole == pytest.approx(3.0)
        assert size.left == pytest.approx({"ablated": 0.3, "control": 2.7, "previous": 0.6})
        assert size.share == pytest.approx({"ablated": 0.9, "control": 0.1, "previous": 0.8})
    table = circuittables.ablations(found)
    assert table.head[3:] == (
        "without induction heads", "without as many others", "without previous-token heads",
    )  # fmt: skip
    cells = [cell.replace("\u00a0", " ") for cell in table.body[0]]
    assert cells == [
        "24k", "4M", "3.000", "0.3000 (takes 90 %)", "2.700 (takes 10 %)", "0.6000 (takes 80 %)",
    ]  # fmt: skip


def test_heads_that_not_every_seed_has_are_compared_with_nothing(runs):
    frame = circuits_frame(runs, induction, whole)
    some = (frame["seed"] == 2) & (frame["metric"] == "repeat_loss_drop_control")
    small = circuits.ablations(select(frame[~some], runs))[0]
    assert (small.left["control"], small.share["control"]) == (None, None)
    assert small.share["ablated"] == pytest.approx(0.9)


def test_no_share_is_told_of_a_drop_that_may_be_none(runs):
    frame = circuits_frame(runs, induction, whole)
    frame.loc[frame["metric"] == "repeat_loss_drop", "low"] = -0.01
    small = circuits.ablations(select(frame, runs))[0]
    assert set(small.share.values()) == {None}
    assert circuittables.ablations(select(frame, runs)).body[0][3] == "0.3000"


# Structure


def structure(model):
    """One relation emerges, one is no better than an offset, one than an untrained model."""
    trained = model["run_id"] is not None
    return {
        "structure_bracket": 0.6 if trained else 0.1,
        "structure_statement": 0.21 if trained else 0.1,  # its low end is below the offset's 0.2
        "structure_parent": 0.6 if trained else 0.59,
        "structure_unheard_of": 0.5,
    }


def test_a_relation_emerges_above_offset_and_untrained_model_alone(runs):
    heads = only(runs, structure)
    N, D, relations = circuits.relations(heads)
    assert (N, D) == (240e3, 4e6)
    assert {r.name: r.emerges for r in relations} == {
        "matching bracket": True,
        "start of the statement": False,
        "parent node": False,
        "unheard_of": False,
    }
    bracket = relations[0]
    assert (bracket.head, bracket.share, bracket.baseline) == ("1.1", 0.6, 0.2)
    assert bracket.untrained == pytest.approx(0.1)
    (sentence,) = circuittables.sentences(heads)
    assert "1 of 4 relations of the text emerges: matching bracket; not: start of" in sentence


@pytest.mark.parametrize("lacks", ["interval", "over_offset", "over_untrained"])
def test_without_something_to_judge_by_nothing_is_said_to_emerge(runs, lacks):
    frame = circuits_frame(runs, structure)
    if lacks == "interval":
        frame["low"] = np.nan
    else:
        frame = frame[~frame["metric"].str.startswith(lacks)]
    heads = select(frame, runs)
    assert {r.emerges for r in circuits.relations(heads)[2]} == {None}
    assert {row[-1] for row in circuittables.relations(heads).body} == {"not decided"}


# What is read


def test_only_finished_runs_of_the_main_recipe_are_compared(runs):
    other = runs.copy()
    other.loc[other["tokens"] == 4e6, "arm"] = "lr*2"
    other.loc[other["tokens"] == 2e6, ["status", "reason"]] = ["unplanned", "no longer planned"]
    heads = select(circuits_frame(runs, induction), other)
    assert set(heads.trained["tokens"]) == {1e6}
    assert heads.notes == ()


def test_runs_of_another_sweep_are_counted_and_left_out(runs):
    frame = circuits_frame(runs, induction)
    frame["run_id"] = frame["run_id"].replace({"t0s0h0": "x", "t0s0h1": "y"})
    heads = select(frame, runs)
    assert not set(heads.trained["run_id"]) & {"x", "y"}
    assert circuittables.sentences(heads)[-1] == (
        "2 of the 15 runs in circuits.parquet are not in results.parquet and are left out."
    )
    frame["run_id"] = "z"
    empty = select(frame, runs)
    assert circuittables.onsets(empty) is None
    assert [draw(empty) for _, draw in circuitplots.FIGURES] == [None, None]
    assert "1 of the 1 runs" in circuittables.sentences(empty)[0]


def test_without_a_file_there_is_nothing(tmp_path):
    assert circuits.read(tmp_path) is None


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("text", "not a parquet file"),
        ("schema", "schema is 'curves/1', this version reads 'circuits/1'"),
        ("column", "lacks columns metric, value"),
        ("unit", "column tokens has unit 'bytes', this version reads 'tokens'"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_message(tmp_path, runs, damage, told):
    file = tmp_path / "circuits.parquet"
    frame = circuits_frame(runs, induction)
    if damage == "text":
        file.write_text("not a table")
    elif damage == "schema":
        write_parquet(frame, file, "curves/1")
    elif damage == "column":
        write_parquet(frame.drop(columns=["metric", "value"]), file, "circuits/1")
    else:
        write_parquet(frame, file, "circuits/1", units={"tokens": "bytes"})
    with pytest.raises(DataError) as error:
        circuits.read(tmp_path)
    assert str(error.value).startswith(f"{file}: {told}")
    assert f"make it again with `python -m experiments.circuits {tmp_path}`" in str(error.value)


def test_what_is_written_is_read(tmp_path, runs):
    frame = circuits_frame(runs, induction, whole)
    write_circuits(tmp_path, frame)
    assert list(circuits.read(tmp_path).columns) == [*CIRCUIT_COLUMNS]
    assert len(circuits.read(tmp_path)) == len(frame)


# Figures


@pytest.fixture(scope="module")
def figure(found):
    return circuitplots.circuits(found)


def panel(figure, title):
    return next(axes for axes in figure.axes if axes.get_title(loc="left") == title)


def lines(axes, marker="o"):
    return [
        line for line in axes.lines if line.get_marker() == marker and len(line.get_xdata()) > 1
    ]


def test_a_line_per_size_over_the_horizons_with_null_level_and_control(figure):
    axes = panel(figure, "induction")
    drawn = lines(axes)
    assert len(drawn) == 3
    for line in drawn:
        assert list(line.get_xdata()) == [*HORIZONS]
    assert list(drawn[0].get_ydata()) == pytest.approx([0.1, (0.8 + 0.8 + 0.1) / 3, 0.8])
    controls = [line for line in axes.lines if list(line.get_xdata()) == [axes.get_xticks()[0]]]
    assert [float(line.get_ydata()[0]) for line in controls] == pytest.approx([0.1] * 3)
    assert axes.get_xticklabels()[0].get_text() == "0"
    levels = {line.get_label(): line.get_ydata()[0] for line in axes.lines}
    assert levels["null level"] == 0.014
    assert levels["induction head: above 0.3"] == 0.3
    assert axes.collections  # the range of the seeds of the smallest size
    counts = panel(figure, "heads with induction > 0.3")
    assert list(lines(counts)[1].get_ydata()) == [1, 1, 1]


def test_panels_are_those_whose_scores_are_there(runs, found, figure):
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [
        "induction", "heads with induction > 0.3", "onset of induction", "previous token",
        "repeat-loss drop", "in-context learning score",
    ]  # fmt: skip
    flat = circuitplots.circuits(only(runs, lambda model: {"induction": 0.05}))
    assert len(flat.axes) == 2  # no onset where nothing emerges
    assert circuitplots.structure(found) is None
    heads = circuitplots.structure(only(runs, structure))
    assert [axes.get_title(loc="left") for axes in heads.axes] == [
        "matching bracket", "start of the statement", "parent node",
    ]  # fmt: skip
    assert circuitplots.circuits(only(runs, structure)) is None


def test_the_onset_panel_has_the_reported_intervals(figure):
    axes = panel(figure, "onset of induction")
    bars = {line.get_xdata()[0]: list(line.get_ydata()) for line in axes.lines
            if len(line.get_xdata()) == 2}  # fmt: skip
    assert bars[24e3] == [1e6, 4e6]
    assert bars[70e3][1] == 1e6
    assert bars[240e3][0] == 4e6
    assert axes.get_ylim()[0] < 1e6 < 4e6 < axes.get_ylim()[1]


def test_one_horizon_and_one_size_are_drawn_too():
    runs = results_frame(Plan(sizes=(24e3,), horizons=(1e6,), cheap=0, holdout=()))
    heads = select(circuits_frame(runs, lambda model: {"induction": 0.5}), runs)
    assert len(circuitplots.circuits(heads).axes) == 3
    assert circuits.onsets(heads)[0].D.high == 1e6


def test_many_sizes_have_a_legend_that_can_be_read():
    plan = Plan(sizes=tuple(np.geomspace(1e4, 1e7, 20)), horizons=(1e6,), cheap=0, holdout=())
    runs = results_frame(plan)
    figure = circuitplots.circuits(
        select(circuits_frame(runs, lambda model: {"induction": 0.5}), runs)
    )
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(named) == 10  # eight sizes and two levels
    assert named[0] == "10k"
    assert len(panel(figure, "induction").get_legend_handles_labels()[1]) == 10
