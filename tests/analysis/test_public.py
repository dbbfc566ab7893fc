"""The public sets have the rows, columns and published answers that their sources state."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares, nnls

from analysis import public
from analysis.load import Rows
from analysis.read import DataError

DATA = Path(__file__).parents[2] / "../shared/data"
# Rows in all, and fitted / held out where C <= C_max/k at k = 10 and 30.
CELLS = {
    "epoch": (240, (221, 19), (184, 56)),
    "epoch_all": (245, (226, 19), (189, 56)),
    "llama3": (133, (121, 12), (97, 36)),
    "misfitting": (261, (240, 21), (216, 45)),
    "misfitting_best": (81, (73, 8), (65, 16)),
    "gadre_c4": (34, (32, 2), (30, 4)),
    "gadre_rpj": (35, (33, 2), (31, 4)),
    "gadre_rw": (35, (32, 3), (30, 5)),
    "gemstones_hot": (220, (140, 80), (88, 132)),
    "gemstones_hot_100b+": (770, (500, 270), (328, 442)),
    "gemstones_hot_100b+_512x": (175, (17, 158), (5, 170)),
    "gemstones_hot_120b+_only": (528, (297, 231), (171, 357)),
    "gemstones_cool_begin": (199, (117, 82), (73, 126)),
    "gemstones_cool_end": (199, (118, 81), (73, 126)),
    "gemstones_lr_ablation_hot": (200, (119, 81), (74, 126)),
    "gemstones_hot_sampled_like_chinchilla": (24, (16, 8), (12, 12)),
    "gemstones_slim_chinchilla": (28, (21, 7), (15, 13)),
    "porian_rw_tuned": (121, (91, 30), (81, 40)),
    "porian_owt2_tuned": (116, (86, 30), (76, 40)),
    "porian_rw_cosine": (88, (62, 26), (54, 34)),
    "datablations": (296, (195, 101), (153, 143)),
    "datablations_182": (182, (156, 26), (132, 50)),
    "datablations_once": (41, (30, 11), (23, 18)),
    "steplaw": (17, (7, 10), (2, 15)),
}
# Mean error in per cent of the plain five-parameter fit on the held-out rows, k = 10 and 30.
PLAIN_ERRORS = {
    "epoch": (0.95, 1.05),
    "misfitting_best": (0.51, 0.90),
    "gadre_c4": (2.65, 1.96),
    "gadre_rpj": (1.18, 1.00),
    "gadre_rw": (1.51, 1.54),
    "gemstones_cool_end": (2.70, 2.33),
    "gemstones_hot": (3.23, 2.52),
    "porian_rw_tuned": (9.5, 10.1),
    "porian_owt2_tuned": (10.9, 10.7),
    "porian_rw_cosine": (2.94, 3.19),
    "datablations_once": (2.03, 3.99),
}
TRUNKS = {
    "gemstones_hot": 22,
    "gemstones_cool_end": 20,
    "gemstones_hot_100b+_512x": 5,
    "gemstones_hot_sampled_like_chinchilla": 5,
    "gemstones_slim_chinchilla": 28,
    "porian_rw_tuned": 16,
    "porian_rw_cosine": 88,
    "epoch": 240,
}


@pytest.fixture(scope="module")
def data() -> Path:
    if not DATA.is_dir():
        pytest.skip("the public data is not here: ../shared/data")
    return DATA


def csv_rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def huber_sum(residual: np.ndarray, delta: float) -> float:
    size = np.abs(residual)
    return float(np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum())


def chinchilla_objective(rows: Rows, law: dict[str, float], delta: float) -> float:
    loss = law["E"] + law["A"] * rows.N ** -law["alpha"] + law["B"] * rows.D ** -law["beta"]
    return huber_sum(np.log(loss / rows.L), delta)


def split(rows: Rows, k: float) -> tuple[Rows, Rows]:
    """The rows up to a k-th of the largest compute, and the rest."""
    train = rows.C.max() / k >= rows.C
    return rows.take(train), rows.take(~train)


# ---- what is read


def test_every_set_is_named_and_grouped(data: Path) -> None:
    assert set(public.SETS) == set(CELLS) | {n for n in public.SETS if "no_embeds" in n}
    groups = {public.read(name, data).group for name in public.SETS}
    laboratories = "massivetext llama3 misfitting gadre gemstones porian datablations steplaw"
    assert groups == set(laboratories.split())


@pytest.mark.parametrize("name", CELLS)
def test_counts_of_rows_and_of_hold_outs_in_compute(name: str, data: Path) -> None:
    rows = public.read(name, data).rows
    cells = [tuple(len(part) for part in split(rows, k)) for k in (10, 30)]
    assert (len(rows), *cells) == CELLS[name]


@pytest.mark.parametrize("name", public.SETS)
def test_rows_are_complete_and_compute_is_6nd(name: str, data: Path) -> None:
    found = public.read(name, data)
    rows = found.rows
    for values in (rows.N, rows.D, rows.C, rows.L):
        assert values.dtype == np.float64
        assert len(values) == len(rows.trunk)
        assert (np.isfinite(values) & (values > 0)).all()
    np.testing.assert_allclose(rows.C, 6 * rows.N * rows.D, rtol=1e-8)
    trunks = TRUNKS.get(name, len(set(rows.trunk)))
    assert sorted(set(rows.trunk)) == list(range(trunks))
    assert (found.rows.U is not None) == name.startswith("datablations")
    assert found.note
    assert "\n" not in found.note


def test_epoch_tokens_are_compute_over_6n_without_the_five_highest_losses(data: Path) -> None:
    source = csv_rows(data / "epoch_chinchilla/svg_extracted_data.csv")
    losses = sorted(float(row["loss"]) for row in source)
    kept = [row for row in source if float(row["loss"]) <= losses[-6]]
    rows = public.read("epoch", data).rows
    expected = [float(r["Training FLOP"]) / 6 / float(r["Model Size"]) for r in kept]
    np.testing.assert_allclose(rows.D, expected, rtol=1e-13)
    np.testing.assert_allclose(rows.L, [float(r["loss"]) for r in kept], rtol=1e-13)


def test_gadre_tokens_are_twenty_per_parameter_times_the_multiplier(data: Path) -> None:
    source = csv_rows(data / "gadre/models_flat.csv")
    for name, corpus in {"gadre_c4": "c4_original", "gadre_rw": "rw_original"}.items():
        rows = public.read(name, data).rows
        multiplier = [float(r["chinchilla_multiplier"]) for r in source if r["dataset"] == corpus]
        np.testing.assert_allclose(rows.D, 20 * np.array(multiplier) * rows.N, rtol=1e-12)


def test_misfitting_best_keeps_the_lowest_loss_of_each_cell(data: Path) -> None:
    best = public.read("misfitting_best", data).rows
    lowest: dict[tuple[float, float], float] = {}
    for N, D, L in zip(*every(public.read("misfitting", data).rows), strict=True):
        lowest[N, D] = min(L, lowest.get((N, D), np.inf))
    assert {(N, D): L for N, D, L in zip(*every(best), strict=True)} == lowest


def every(rows: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return rows.N, rows.D, rows.L


def test_datablations_once_has_no_repeated_token(data: Path) -> None:
    found = public.read("datablations_once", data)
    assert found.rows.U is not None
    assert (found.rows.U - found.rows.D >= 0).all()
    fit = public.read("datablations_182", data)
    assert fit.rows.U is not None
    assert (fit.rows.U.min(), fit.rows.U.max()) == (1e8, 178e9)


def test_llama3_and_porian_lie_on_budgets(data: Path) -> None:
    assert len(np.unique(public.read("llama3", data).rows.C)) == 10
    assert len(np.unique(public.read("porian_rw_tuned", data).rows.C)) == 12


# ---- what was published of them


@pytest.mark.parametrize("name", [n for n in public.SETS if n.startswith("gemstones")])
@pytest.mark.parametrize("delta", ["1e-3", "1e-4"])
def test_gemstones_objective_at_the_published_point(name: str, delta: str, data: Path) -> None:
    found = public.read(name, data)
    ending = f"@{delta}"
    law = {k.removesuffix(ending): v for k, v in found.published.items() if k.endswith(ending)}
    here = chinchilla_objective(found.rows, law, float(delta))
    assert here == pytest.approx(law["objective"], abs=5.1e-11)  # printed to 10 decimals


def test_gemstones_table_of_the_readme(data: Path) -> None:
    readme = (data / "gemstones/README.md").read_text(encoding="utf-8")
    table = [line.split("|")[1:-1] for line in readme.splitlines() if "| 1e-" in line]
    assert len(table) == 9
    for cells in table:
        name, n, delta, objective, _, exponents, _ = (cell.strip() for cell in cells)
        found = public.read(f"gemstones_{name}", data)
        assert len(found.rows) == int(n)
        assert found.published[f"objective@{delta}"] == float(objective)
        alpha, beta = (float(e) for e in exponents.split(","))
        assert found.published[f"alpha@{delta}"] == pytest.approx(alpha, abs=5.1e-6)
        assert found.published[f"beta@{delta}"] == pytest.approx(beta, abs=5.1e-6)


def test_epoch_objective_at_the_minimum_and_at_the_published_point(data: Path) -> None:
    found = public.read("epoch", data)
    minimum = {"E": 1.8172181, "A": 477.82587, "B": 2143.41736}
    minimum |= {"alpha": 0.34731049, "beta": 0.36717243}
    here = chinchilla_objective(found.rows, minimum, 1e-3)
    assert here == pytest.approx(0.00101827401780, rel=1e-9)
    published = chinchilla_objective(found.rows, dict(found.published), 1e-3)
    assert published == pytest.approx(0.00101864, rel=2e-4)  # there with all digits, here with 5
    every_row = public.read("epoch_all", data).rows
    minimum = {"E": 1.89134, "A": 495.73, "B": 12845.6, "alpha": 0.34931, "beta": 0.45305}
    assert chinchilla_objective(every_row, minimum, 1e-3) == pytest.approx(0.00182601, abs=1e-8)


def data_constrained(found: public.PublicSet, R_D: float, R_N: float) -> np.ndarray:
    """Loss of Muennighoff et al. 2023, eq. 5-7: U_N = min(N, N_opt(U_D)), R = repetitions."""
    rows, U, law = found.rows, found.rows.U, found.published
    assert U is not None
    A, B, alpha, beta = (law[k] for k in ("A", "B", "alpha", "beta"))
    G = (alpha * A / (beta * B)) ** (1 / (alpha + beta))
    unique_n = np.minimum(rows.N, G * (G * U) ** (beta / alpha))
    N = unique_n * (1 + R_N * (1 - np.exp((1 - rows.N / unique_n) / R_N)))
    D = U * (1 + R_D * (1 - np.exp(-np.maximum(rows.D / U - 1, 0) / R_D)))
    return law["E"] + A * N**-alpha + B * D**-beta


def test_datablations_objective_at_the_published_point_and_below(data: Path) -> None:
    found = public.read("datablations_182", data)
    L, published = found.rows.L, found.published
    loss = data_constrained(found, published["R_D"], published["R_N"])
    here = huber_sum(np.log(loss / L), 1e-3)
    assert here == pytest.approx(0.0158259353, abs=5.1e-11)
    assert here == pytest.approx(published["objective@1e-3"], rel=1e-7)  # theirs in float32
    r2 = 1 - ((loss - L) ** 2).sum() / ((L - L.mean()) ** 2).sum()
    assert r2 == pytest.approx(0.7722046085, abs=5.1e-11)
    lower = data_constrained(found, 95.365, 1.7059)
    assert huber_sum(np.log(lower / L), 1e-3) == pytest.approx(0.0158046625, abs=5.1e-11)


def test_gadre_hold_out_errors_from_five_points(data: Path) -> None:
    """Their form, E + a N^-eta + b 6^(-eta/2) D^-eta, by least squares of the loss itself."""
    found = public.read("gadre_rpj", data)
    rows, multiplier = found.rows, (found.rows.D / (20 * found.rows.N)).round(9)
    size = np.unique(rows.N, return_inverse=True)[1]
    chosen = ((multiplier == 1) & (size < 4)) | ((multiplier == 16) & (size == 0))
    assert chosen.sum() == 5

    def loss(theta: np.ndarray, rows: Rows) -> np.ndarray:
        E, log_a, log_b, eta = theta
        b = np.exp(log_b) * 6 ** (-eta / 2)
        return E + np.exp(log_a) * rows.N**-eta + b * rows.D**-eta

    def misfit(theta: np.ndarray) -> np.ndarray:
        return loss(theta, rows.take(chosen)) - rows.L[chosen]

    starts = ((1.5, 5, 5, 0.25), (2.0, 6, 6, 0.35), (1.0, 4, 4, 0.2))
    fits = [least_squares(misfit, s, x_scale="jac", xtol=1e-15, ftol=1e-15) for s in starts]
    theta = min(fits, key=lambda fit: fit.cost).x
    theta_published = (1.836648, np.log(166.211), np.log(366.687), 0.272851)
    np.testing.assert_allclose(theta, theta_published, rtol=1e-5)
    for name, at in {"error_1b_640": (4, 32), "error_7b_20": (5, 1)}.items():
        row = rows.take((size == at[0]) & (multiplier == at[1]))
        error = np.abs(loss(theta, row) / row.L - 1)
        assert error == pytest.approx([found.published[name]], rel=1e-4), name


def test_porian_published_exponents(data: Path) -> None:
    published = [public.read(f"porian_{k}", data).published for k in ("rw_tuned", "owt2_tuned")]
    assert [round(p["a"], 3) for p in published] == [0.497, 0.518]
    assert all(p["a_low95"] < p["a"] < p["a_high95"] for p in published)


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN_ERRORS)
def test_hold_out_error_of_the_plain_law_shows_the_same_rows(name: str, data: Path) -> None:
    rows = public.read(name, data).rows
    for k, expected in zip((10, 30), PLAIN_ERRORS[name], strict=True):
        error = 100 * plain_hold_out_error(*split(rows, k))
        assert error == pytest.approx(expected, abs=0.06 if expected > 9 else 0.006), (name, k)


def plain_hold_out_error(train: Rows, test: Rows) -> float:
    """Mean |pred/L - 1| on `test` of the law with the least sum of Huber(1e-3) on `train`."""
    x0, y0 = np.log(train.N).mean(), np.log(train.D).mean()

    def log_loss(t: np.ndarray, rows: Rows) -> np.ndarray:
        x, y = np.log(rows.N) - x0, np.log(rows.D) - y0
        return np.logaddexp(np.logaddexp(t[0] - t[3] * x, t[1] - t[4] * y), t[2])

    def misfit(t: np.ndarray) -> np.ndarray:
        return log_loss(t, train) - np.log(train.L)

    fits = []
    for alpha, beta in ((0.1, 0.3), (0.3, 0.3), (0.6, 0.3), (0.3, 0.6), (1.0, 0.3), (0.3, 1.0)):
        terms = (train.N / np.exp(x0)) ** -alpha, (train.D / np.exp(y0)) ** -beta, 1 + 0 * train.N
        linear = nnls(np.stack(terms, 1) / train.L[:, None], np.ones(len(train)))[0]
        start = (*np.log(np.maximum(linear, 1e-3)), alpha, beta)
        exact = {"xtol": 1e-13, "ftol": 1e-13, "gtol": 1e-13, "max_nfev": 400, "x_scale": "jac"}
        fits.append(least_squares(misfit, start, loss="huber", f_scale=1e-3, **exact))
    theta = min(fits, key=lambda fit: fit.cost).x
    return float(np.abs(np.exp(log_loss(theta, test)) / test.L - 1).mean())


# ---- where the sets lie


def test_folder_argument_before_variable_before_neighbour(tmp_path: Path, monkeypatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    monkeypatch.delenv(public.FOLDER_VARIABLE, raising=False)
    beside = public.folder()
    assert beside is None or beside.resolve() == DATA.resolve()
    assert (beside is None) == (not DATA.is_dir())
    monkeypatch.setenv(public.FOLDER_VARIABLE, str(second))
    assert public.folder() == second
    assert public.folder(first) == first


def test_a_named_folder_that_is_absent_is_an_error(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(DataError, match="nowhere: no such folder of public data"):
        public.folder(tmp_path / "nowhere")
    monkeypatch.setenv(public.FOLDER_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(DataError, match=public.FOLDER_VARIABLE):
        public.folder()


# ---- files that are not as their source has them


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def test_unknown_name_lists_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"unknown public set 'epok'; nearest: epoch"):
        public.read("epok", tmp_path)


@pytest.mark.parametrize("name", public.SETS)
def test_missing_file_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(csv|jsonl): cannot be read .*README"):
        public.read(name, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("N,D,loss\n1e8,1e9,3\n", "lacks column U; it has N, D, loss"),
        ("N,D,U,loss\n1e8,1e9,1e9,3\n1e8,0,1e9,3\n", "row 2: D is 0.0, not a positive number"),
        ("N,D,U,loss\n1e8,1e9,1e9,\n", "row 1: loss is nan, not a positive number"),
        ("N,D,U,loss\n1e8,1e9,1e9,low\n", "row 1: loss is low, not a positive number"),
        ("N,D,U,loss\n1e8,1e9,1e9,inf\n", "row 1: loss is inf"),
        ("N,D,U,loss\n", "no rows"),
        ("", "cannot be read"),
        ("N,D,U,loss\n1,2\n1,2,3,4,5\n", "cannot be read"),
    ],
)
def test_damaged_table_is_refused_in_one_message(text: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "datablations/runs.csv", text)
    with pytest.raises(DataError, match=message) as caught:
        public.read("datablations", tmp_path)
    assert str(caught.value).startswith(str(file))
    assert caught.value.exit_code == 2


def test_no_row_of_the_training_set(tmp_path: Path) -> None:
    write(tmp_path / "gadre/models_flat.csv", "dataset,N,D,loss_c4_val\nrpj,1e8,1e9,3\n")
    with pytest.raises(DataError, match="no rows with dataset rw_original"):
        public.read("gadre_rw", tmp_path)


def test_fewer_than_five_traced_points_end_without_rows(tmp_path: Path) -> None:
    header = "Model Size,Training FLOP,loss\n"
    write(tmp_path / "epoch_chinchilla/svg_extracted_data.csv", header + "1e8,1e19,3\n")
    assert len(public.read("epoch_all", tmp_path).rows) == 1
    assert len(public.read("epoch", tmp_path).rows) == 0


def gemstones_file(folder: Path, lines: list[str]) -> None:
    write(folder / "gemstones/wandb_df_for_fitting_hot.jsonl", "\n".join(lines) + "\n")


RUN = {"run_name": "r", "width": 256, "params_active_precise": 10**10, "tokens": 10**12}


def test_gemstones_files_that_cannot_be_read(tmp_path: Path) -> None:
    fit = '{"exponents":{"0":[0.3]}}'
    for delta in (3, 4):
        name = f"published_params_delta-{delta}/approach_3_parameters_grid_search_0_hot.json"
        write(tmp_path / "gemstones" / name, fit)
    gemstones_file(tmp_path, ["{not json"])
    with pytest.raises(DataError, match=r"hot\.jsonl: cannot be read"):
        public.read("gemstones_hot", tmp_path)
    gemstones_file(tmp_path, [json.dumps(RUN)])
    with pytest.raises(DataError, match="lacks column final_loss"):
        public.read("gemstones_hot", tmp_path)
    gemstones_file(tmp_path, [json.dumps({**RUN, "final_loss": 2.5})])
    with pytest.raises(DataError, match=r"search_0_hot\.json: not an approach-3 result"):
        public.read("gemstones_hot", tmp_path)


def test_integer_columns_do_not_overflow(tmp_path: Path) -> None:
    text = "N,D,U,loss\n10000000000,1000000000000,1000000000000,2.0\n"
    write(tmp_path / "datablations/runs.csv", text)
    rows = public.read("datablations", tmp_path).rows
    np.testing.assert_allclose(rows.C, 6e22, rtol=1e-15)


cells = st.lists(
    st.tuples(
        st.sampled_from([10**8, 10**9, 12 * 10**9]),
        st.sampled_from([10**9, 3 * 10**10, 10**12]),
        st.integers(2_000_000, 4_000_000),
    ),
    min_size=1,
    max_size=40,
)


@given(cells)
@settings(max_examples=25)
def test_best_rate_of_any_table(tmp_path_factory, table: list[tuple[int, int, int]]) -> None:
    folder = tmp_path_factory.mktemp("misfitting")
    lines = [f"{N},{D},{6 * N * D},{L / 1e6}" for N, D, L in table]
    file = folder / "misfitting/scaling_results_last_ckpt_only.csv"
    write(file, "\n".join(["N,D,C,loss", *lines]))
    rows = public.read("misfitting_best", folder).rows
    expected: dict[tuple[float, float], float] = {}
    for N, D, L in table:
        expected[N, D] = min(L / 1e6, expected.get((N, D), np.inf))
    assert len(rows) == len(expected)
    assert {(N, D): L for N, D, L in zip(*every(rows), strict=True)} == expected
    assert len(public.read("misfitting", folder).rows) == len(table)
