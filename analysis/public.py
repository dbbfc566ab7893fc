"""Public observation sets: the runs of published studies, with the answers that those published.

Every file keeps the columns of its source (the README beside it names repository and commit). C is
the file's own compute where it has one (Epoch, Llama 3, Misfitting, Porian, `slim_chinchilla`),
6ND elsewhere; the own figures are 6ND too, to 1e-8, so one rule serves hold-outs in compute.
"""

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.load import Rows
from analysis.read import DataError

FOLDER_VARIABLE = "SCALING_DATA"
GEMSTONES_VOCABULARY = 50304  # rows of the embedding matrix
_AGAIN = "copy it from the source that the README beside it names"
GEMSTONES = ("hot", "hot_100b+", "hot_120b+_only", "cool_begin", "cool_end", "lr_ablation_hot")

# Name -> laboratory/data (sets of one group are no independent evidence) and what was kept.
SETS: Mapping[str, tuple[str, str]] = {
    "epoch": ("massivetext", "Hoffmann et al. Fig. 4 traced, without the 5 highest of 245 losses"),
    "epoch_all": ("massivetext", "Hoffmann et al. Fig. 4 traced, all 245 points; D = C/6N"),
    "llama3": ("llama3", "all 133 isoFLOP points traced; loss per character; N = C/6D"),
    "misfitting": ("misfitting", "last checkpoints of all 261 runs, every learning rate"),
    "misfitting_best": ("misfitting", "last checkpoints, best rate of each (N, D): 81 of 261"),
    "gadre_c4": ("gadre", "all runs trained on C4, 7B too; loss on C4 validation"),
    "gadre_rpj": ("gadre", "all runs trained on RedPajama, 7B too; loss on C4 validation"),
    "gadre_rw": ("gadre", "all runs trained on RefinedWeb, 7B too; loss on C4 validation"),
    **{
        f"gemstones_{file}{size}": ("gemstones", f"all rows of {file}{note}; a run is a trunk")
        for file in GEMSTONES
        for size, note in {"": "", "_no_embeds": ", N without embeddings"}.items()
    },
    "gemstones_hot_100b+_512x": (
        "gemstones",
        "hot_100b+ of width 512, 5 of 22 runs; a run is a trunk",
    ),
    "gemstones_hot_sampled_like_chinchilla": ("gemstones", "24 points of 5 runs; a run is a trunk"),
    "gemstones_slim_chinchilla": ("massivetext", "28 of Epoch AI's points, no Gemstones run"),
    "porian_rw_tuned": ("porian", "RefinedWeb, tuned, constant rate; a size is a trunk"),
    "porian_owt2_tuned": ("porian", "OpenWebText2, tuned, constant rate; a size is a trunk"),
    "porian_rw_cosine": ("porian", "RefinedWeb, base optimiser, cosine to each point's own D"),
    "datablations": ("datablations", "all 296 runs, those with repeated tokens too"),
    "datablations_182": ("datablations", "the 182 runs of the published fit"),
    "datablations_once": ("datablations", "D <= U, no token repeated: 41 of 296 runs"),
    "steplaw": ("steplaw", "dense, best rate and batch of each (N, D): 17; N without embeddings"),
}
_Array = np.ndarray | None
_Content = tuple[Rows, _Array, Mapping[str, float]]  # rows, unique tokens, published


@dataclass(frozen=True)
class PublicSet:
    """Rows of one study: N parameters, D tokens, C FLOPs, L nats/token, unique tokens U.

    Rows are trunks of their own unless `note` says otherwise. `published` holds figures of the
    source, in the law's letters where the law has one; Gemstones' end in the Huber delta, `@1e-3`.
    """

    name: str
    group: str
    rows: Rows
    note: str
    published: Mapping[str, float]


def folder(argument: Path | None = None) -> Path | None:
    """Where the sets lie: `argument`, else $SCALING_DATA, else ../shared/data; None: absent."""
    named = argument or os.environ.get(FOLDER_VARIABLE)
    found = Path(named or Path(__file__).parents[1] / "../shared/data")
    if named and not found.is_dir():
        raise DataError(
            f"{named}: no such folder of public data; name the one that holds epoch_chinchilla/, "
            f"gadre/, ... by argument or by the variable {FOLDER_VARIABLE}"
        )
    return found if found.is_dir() else None


def read(name: str, folder: Path) -> PublicSet:
    """The set of that name; DataError where a file, column or value is not as its source has it."""
    if name not in SETS:
        near = difflib.get_close_matches(name, SETS, n=3, cutoff=0.4) or list(SETS)
        raise DataError(f"unknown public set {name!r}; nearest: {', '.join(near)}")
    readers = {"epoch": _epoch, "llama3": _llama3, "misfitting": _misfitting, "gadre": _gadre}
    readers |= {"gemstones": _gemstones, "porian": _porian, "datablations": _datablations}
    readers |= {"steplaw": _steplaw}
    rows, unique, published = readers[name.split("_")[0]](name, folder)
    rows = replace(rows, trunk=np.unique(rows.trunk, return_inverse=True)[1], U=unique)
    return PublicSet(name, SETS[name][0], rows, SETS[name][1], published)


def _epoch(name: str, folder: Path) -> _Content:
    table = _table(folder / "epoch_chinchilla/svg_extracted_data.csv")
    N, C, L = table.numbers("Model Size", "Training FLOP", "loss")
    rows = _rows(N, C / (6 * N), L, C)
    if name == "epoch_all":
        return rows, None, {}
    # Besiroglu et al. 2024, arXiv 2404.10102: their notebook's digits, errors of 4000 resamples
    published = {"E": 1.81686, "A": 482.00572, "B": 2085.4342, "alpha": 0.34781, "beta": 0.36585}
    published |= {"se_E": 0.02566, "se_alpha": 0.0154, "se_beta": 0.0206}
    return rows.take(np.sort(L)[-5:].min() > L), None, published


def _llama3(name: str, folder: Path) -> _Content:
    table = _table(folder / "llama3_isoflop/isoflops_points.csv")
    C, D, L = table.numbers("compute_budget", "training_tokens", "validation_loss")
    # Llama Team 2024, arXiv 2407.21783: optimal training tokens 0.29 C^0.53
    return _rows(C / (6 * D), D, L, C), None, {"tokens_coefficient": 0.29, "tokens_exponent": 0.53}


def _misfitting(name: str, folder: Path) -> _Content:
    table = _table(folder / "misfitting/scaling_results_last_ckpt_only.csv")
    rows = _rows(*table.numbers("N", "D", "loss", "C"))
    return rows.take(_best(rows)) if name == "misfitting_best" else rows, None, {}


def _gadre(name: str, folder: Path) -> _Content:
    corpus = {"gadre_c4": "c4_original", "gadre_rpj": "rpj", "gadre_rw": "rw_original"}[name]
    table = _table(folder / "gadre/models_flat.csv", "dataset", corpus)
    # relative errors of the two held-out losses, scaling_explorer.ipynb cell 2
    errors = {"error_1b_640": 0.007103, "error_7b_20": 0.007320} if corpus == "rpj" else {}
    return _rows(*table.numbers("N", "D", "loss_c4_val")), None, errors


def _gemstones(name: str, folder: Path) -> _Content:
    suffix = name.removeprefix("gemstones_")
    base = suffix.removesuffix("_no_embeds").removesuffix("_512x")
    file = folder / f"gemstones/wandb_df_for_fitting_{base}.jsonl"
    table = _table(file, "width", 512) if suffix.endswith("_512x") else _table(file)
    N, D, L = table.numbers("params_active_precise", "tokens", "final_loss")
    if suffix.endswith("_no_embeds"):
        N = N - GEMSTONES_VOCABULARY * table.numbers("width")[0]
    published = {}
    for delta in ("1e-3", "1e-4"):
        results = folder / f"gemstones/published_params_delta{delta[2:]}"
        fit = _gemstones_fit(results / f"approach_3_parameters_grid_search_0_{suffix}.json")
        published |= {f"{letter}@{delta}": value for letter, value in fit.items()}
    if base == "slim_chinchilla":
        return _rows(N, D, L, table.numbers("FLOPs")[0]), None, published
    return _rows(N, D, L, trunk=table.column("run_name")), None, published


def _gemstones_fit(file: Path) -> dict[str, float]:
    """Letters of one approach-3 result: its JSON holds log A, log B, log E and the objective."""
    try:
        fit = {k: v["0"] for k, v in json.loads(file.read_text(encoding="utf-8")).items()}
        (alpha, beta), objective = fit["exponents"], fit["loss"]
        E, A, B = np.exp([fit["irreducible_error"], *fit["coefficients"]]).tolist()
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file}: not an approach-3 result ({error!r}); {_AGAIN}") from error
    return {"E": E, "A": A, "B": B, "alpha": alpha, "beta": beta, "objective": objective}


def _porian(name: str, folder: Path) -> _Content:
    recipe = {"tuned": "tuned|short|const", "cosine": "base|short|chinchilla"}[name.split("_")[2]]
    config = f"{name.split('_')[1]}|{recipe}|standard|val"
    table = _table(folder / "porian/isoflop_points.csv", "config", config)
    N, D, L, C = table.numbers("N", "D", "loss", "flops")
    fit = _table(folder / "porian/fit_results.csv", "config", config)
    a, low, high = (float(column[0]) for column in fit.numbers("a", "ci95_lo", "ci95_hi"))
    published = {"a": a, "a_low95": low, "a_high95": high}
    # a constant rate knows no horizon: all points of a size lie on one training curve
    return _rows(N, D, L, C, trunk=N if "tuned" in name else None), None, published


def _datablations(name: str, folder: Path) -> _Content:
    if name == "datablations_182":
        table = _table(folder / "datablations/runs_182_fit_set.csv")
        N, D, U, L = table.numbers("N_billion", "D_billion", "U_billion", "loss")
        # Muennighoff et al. 2023, arXiv 2305.16264; objective as their notebook prints it
        E, A, B = np.exp([0.6254804, 6.255414, 7.3049974]).tolist()
        published = {"E": E, "A": A, "B": B, "alpha": 0.3526596, "beta": 0.3526596}
        published |= {"R_D": 15.387756, "R_N": 5.309743, "objective@1e-3": 0.0158259366}
        return _rows(N * 1e9, D * 1e9, L), U * 1e9, published
    N, D, U, L = _table(folder / "datablations/runs.csv").numbers("N", "D", "U", "loss")
    keep = D <= U if name == "datablations_once" else np.ones(len(L), bool)
    return _rows(N, D, L).take(keep), U[keep], {}


def _steplaw(name: str, folder: Path) -> _Content:
    rows = _rows(*_table(folder / "steplaw/dense_lr_bs_loss.csv").numbers("N", "D", "smooth loss"))
    return rows.take(_best(rows)), None, {}


def _rows(
    N: np.ndarray, D: np.ndarray, L: np.ndarray, C: _Array = None, trunk: _Array = None
) -> Rows:
    """Rows with C = 6ND and a trunk for each row where the file knows no better."""
    codes = np.arange(len(L)) if trunk is None else pd.factorize(trunk)[0]
    return Rows(N, D, 6 * N * D if C is None else C, L, trunk=codes)


def _best(rows: Rows) -> np.ndarray:
    """Mask of the row with the lowest loss of each (N, D)."""
    cells = pd.DataFrame({"N": rows.N, "D": rows.D, "L": rows.L}).groupby(["N", "D"])["L"]
    return np.isin(np.arange(len(rows)), cells.idxmin().to_numpy())


@dataclass(frozen=True)
class _Table:
    file: Path
    frame: pd.DataFrame

    def column(self, name: str) -> np.ndarray:
        if name not in self.frame:
            has = ", ".join(map(str, self.frame.columns[:40]))
            raise DataError(f"{self.file}: lacks column {name}; it has {has}; {_AGAIN}")
        return self.frame[name].to_numpy()

    def numbers(self, *names: str) -> list[np.ndarray]:
        """Columns as float64 (N·D of int64 columns overflows), all values positive and finite."""
        arrays = []
        for name in names:
            raw = pd.Series(self.column(name))
            values = pd.to_numeric(raw, errors="coerce").astype("float64").to_numpy()
            for i in np.flatnonzero(~(np.isfinite(values) & (values > 0)))[:1]:
                row = f"{self.file}: row {self.frame.index[i] + 1}"
                raise DataError(f"{row}: {name} is {raw.iloc[i]}, not a positive number; {_AGAIN}")
            arrays.append(values)
        return arrays


def _table(file: Path, column: str = "", value: str | int = "") -> _Table:
    """The file's rows, or those with `value` in `column`."""
    try:
        if file.suffix == ".jsonl":
            lines = file.read_text(encoding="utf-8").splitlines()
            table = _Table(file, pd.DataFrame([json.loads(line) for line in lines]))
        else:
            table = _Table(file, pd.read_csv(file))
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: cannot be read ({error}); {_AGAIN}") from error
    if column:
        table = _Table(file, table.frame[table.column(column) == value])
    if table.frame.empty:
        raise DataError(f"{file}: no rows{column and f' with {column} {value}'}; {_AGAIN}")
    return table
