"""One self-contained HTML report of a study: `python -m analysis.report SOURCE`."""

import argparse
import io
import json
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from analysis.compare import BASELINES
from analysis.describe import (
    GREEK,
    NBSP,
    allocation_cells,
    amount,
    compute,
    formula,
    headline,
    level,
    next_steps,
    number,
    percent,
    span,
    why_not,
)
from analysis.fit import add_source_arguments, analyse_arguments, exit_code, write_json, write_whole
from analysis.load import reason_counts
from analysis.plots import FIGURES
from analysis.result import Analysis

CAPTIONS = {
    "loss_by_size": "Every line is the law at one token budget; points are final losses. A point "
    "off its line is a run that the law does not explain. Orange: held out, never fitted.",
    "loss_by_tokens": "The same runs over training tokens, one line per size. Lines that flatten "
    "to the right have run out of parameters, not of data.",
    "contours": "Thin lines join (N, D) of equal loss. The black curve is the compute-optimal "
    "frontier, dashed beyond the measured compute; the grey band is its interval.",
    "residuals": "Distance of the law from each run. Within the grey band it is as small as the "
    "spread between seeds; a pattern over N or D means that the form of the law is wrong.",
    "held_out": "Runs that the fit never saw. On the diagonal the prediction is exact; the law is "
    "worth its price only where it beats both baselines. Bars: interval of the law from noise.",
    "training_curves": "Held-out loss along training. Thin: the shared trunk, still at a high "
    "learning rate, never a point of the fit; thick: cooldowns, whose ends are the rows.",
}
MAX_RUNS = 1000  # a page with more rows no longer opens quickly; the file has them all
UNDRAWN = ("loss_by_size", "loss_by_tokens", "contours")  # figures whose lines are the law
RUN_COLUMNS = (
    ("row", "run"), ("N", "N"), ("D", "D"), ("C", "C (FLOPs)"), ("seed", "seed"), ("arm", "arm"),
    ("steps", "steps"), ("L", "loss"), ("val_bpb", "bits/byte"), ("status", "status"),
    ("cpu_seconds", "CPU s"),
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table of text cells."""

    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]


def write_report(analysis: Analysis, folder: Path, out: Path) -> Path:
    """Write fits.json and figures/ into `folder` and the report to `out`; returns `out`."""
    figures = {name: draw(analysis) for name, draw in FIGURES}
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    inline = {}
    for name, figure in figures.items():
        if figure is None:
            continue
        svg = _svg(figure, name)
        (folder / "figures" / f"{name}.svg").write_text(svg, encoding="utf-8")
        figure.set_layout_engine("none")  # the first drawing has found the layout
        figure.savefig(folder / "figures" / f"{name}.png", dpi=160)
        inline[name] = Markup(_inline(svg, name))
    write_json(folder / "fits.json", analysis)
    write_whole(out, html(analysis, inline))
    return out


def html(analysis: Analysis, figures: dict[str, Markup]) -> str:
    """The report as one HTML text without any reference to another file."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    study, result = analysis.study, analysis.chosen
    return environment.get_template("report.html.jinja").render(
        study=study,
        result=result,
        analysis=analysis,
        level=level(analysis),
        headline=headline(analysis),
        cards=_cards(analysis),
        formula=_superscripts(
            f"{result.fit.law.formula}: constants not identified by this design"
            if result.design.problems.get("a")
            else formula(result.fit.law, result)
        ),
        parameters=_parameters(analysis),
        reasons=_reasons(analysis),
        forms=_forms(analysis),
        figures=figures,
        captions={k: _caption(k, analysis) for k in CAPTIONS},
        holdout=_holdout(analysis),
        sensitivity=_sensitivity(analysis),
        optimal=Table(
            ("compute C (FLOPs)", "size N*", "tokens D*", "loss L* (nats/token)"),
            tuple(
                (cells[0] + (" †" if row.extrapolated else ""), *cells[1:])
                for row in analysis.optimal
                for cells in [allocation_cells(row)]
            ),
        ),
        optimal_notes=list(dict.fromkeys(r.note for r in analysis.optimal if r.note)),
        next_steps=next_steps(analysis),
        runs=_runs(analysis),
        reason_counts=reason_counts(study.excluded),
        provenance=_provenance(analysis),
        config=json.dumps(study.config, indent=1, ensure_ascii=False) if study.config else None,
    )


def _caption(name: str, analysis: Analysis) -> str:
    if analysis.chosen.design.problems.get("a") and name in UNDRAWN:
        return "The runs alone: this design does not identify the law, so no line of it is drawn."
    return CAPTIONS[name]


def _cards(analysis: Analysis) -> list[tuple[str, str, str]]:
    """(label, value, remark) of the summary at the top."""
    result, study = analysis.chosen, analysis.study
    a = result.intervals["a"]
    unidentified = why_not(result, "a") is not None or a.width > 0.2
    cards = [
        ("trust", result.trust, result.trust_reasons[0]),
        (
            "allocation exponent a",
            "not identified" if unidentified else number(result.a),
            f"{level(analysis)} interval {span(a)}" if a.closed else "by this design, see below",
        ),
        (
            "residual RMS",
            percent(result.fit.rms),
            f"seed noise {percent(analysis.noise.sigma)}"
            if analysis.noise.df_rows
            else "seed noise unknown: no repeats",
        ),
    ]
    if analysis.holdout:
        best = min(
            analysis.holdout.error(k) for k in BASELINES if k in analysis.holdout.predictions
        )
        remark = f"best baseline {percent(best)}"
        cards.append(("hold-out error", percent(result.holdout_error), remark))
    else:
        cards.append(("hold-out error", "–", "no held-out runs"))
    design = result.design
    held = f", {len(study.test)} held out" if len(study.test) else ""
    cards.append(
        (
            "runs fitted",
            str(len(study.train)),
            f"{design.trunks} trunks, {design.sizes} sizes, {design.horizons} horizons{held}",
        )
    )
    return cards


def _parameters(analysis: Analysis) -> Table:
    result, body = analysis.chosen, []
    for name, interval in result.intervals.items():
        value = result.a if name == "a" else result.fit.parameters[name]
        known = why_not(result, name) is None
        label = GREEK.get(name, name) + (" = β/(α+β)" if name == "a" else "")
        body.append((label, number(value) if known else "–", span(interval)))
    return Table(
        ("parameter", "value", f"{level(analysis)} interval (trunk bootstrap)"), tuple(body)
    )


def _reasons(analysis: Analysis) -> list[str]:
    """Why intervals are open, one line per reason with the parameters it concerns."""
    found: dict[str, list[str]] = {}
    for name, interval in analysis.chosen.intervals.items():
        why = why_not(analysis.chosen, name)
        if why or interval.note not in (None, "fixed by the user"):
            found.setdefault(why or str(interval.note), []).append(GREEK.get(name, name))
    return [f"{', '.join(names)}: {why}" for why, names in found.items()]


def _forms(analysis: Analysis) -> Table:
    return Table(
        ("law", "form", "AIC", "BIC", "residual RMS", "hold-out error", "trust"),
        tuple(
            (
                r.name + (" (selected)" if r.name == analysis.selected else ""),
                _superscripts(r.fit.law.formula),
                f"{r.criteria.aic:.1f}",
                f"{r.criteria.bic:.1f}",
                percent(r.fit.rms),
                percent(r.holdout_error),
                r.trust,
            )
            for r in analysis.results
        ),
    )


def _holdout(analysis: Analysis) -> Table | None:
    held = analysis.holdout
    if held is None:
        return None
    names = list(held.predictions)
    ids = analysis.study.used["row"][analysis.study.holdout].tolist()
    body = [
        (
            ids[i],
            amount(held.rows.N[i]),
            amount(held.rows.D[i]),
            number(held.rows.L[i]),
            *(_signed(held.predictions[k][i], held.rows.L[i]) for k in names),
        )
        for i in range(len(held.rows))
    ]
    body.append(("mean |error|", "", "", "", *(percent(held.error(k)) for k in names)))
    heads = [
        {"largest": "largest fitted size", "log-linear": "log-linear in N"}.get(k, k) for k in names
    ]
    return Table(("run", "N", "D", "measured", *heads), tuple(body))


def _superscripts(text: str) -> Markup:
    """N^-0.35 as N with a raised exponent; the text is escaped first."""
    return Markup(re.sub(r"\^-([\w.]+)", r"<sup>−\1</sup>", str(escape(text))))


def _signed(predicted: float, measured: float) -> str:
    return f"{number(predicted)} ({100 * (predicted / measured - 1):+.2f}{NBSP}%)"


def _sensitivity(analysis: Analysis) -> Table:
    names = analysis.chosen.fit.law.parameters
    return Table(
        ("without", "rows", *(GREEK.get(n, n) for n in names), "a", "hold-out error"),
        tuple(
            (
                r.without if r.value is None else f"{r.without} = {amount(r.value)}",
                str(r.n_rows),
                *(number(r.parameters[n]) for n in names),
                number(r.a),
                percent(r.holdout_error),
            )
            for r in analysis.sensitivity
        ),
    )


def _runs(analysis: Analysis) -> Table:
    """Every row of the source, used or not."""
    study = analysis.study
    why = {e["row"]: e["reason"] for e in study.excluded}
    columns = [(c, h) for c, h in RUN_COLUMNS if c in study.table]
    body = []
    for row in study.table.head(MAX_RUNS).to_dict("records"):
        cells = [_cell(c, row[c]) for c, _ in columns]
        use = "held out" if row.get("holdout") is True else "fitted"
        body.append((*cells, why.get(row["row"], use)))
    return Table((*(h for _, h in columns), "use"), tuple(body))


def _cell(column: str, value: object) -> str:
    if column in ("N", "D", "C") and isinstance(value, float):
        return compute(value) if column == "C" else amount(value)
    if column in ("L", "val_bpb", "cpu_seconds") and isinstance(value, float):
        return number(value)
    if isinstance(value, float):
        return f"{value:g}" if value == value else "–"
    return "–" if value is None else str(value)


def _provenance(analysis: Analysis) -> Table:
    study = analysis.study
    pairs = [("source", study.source), *study.units.items(), *study.provenance.items()]
    pairs += [("FLOPs per token", analysis.flops.label), *(("note", n) for n in study.notes)]
    pairs += [("python", platform.python_version())]
    pairs += [(name, version(name)) for name in ("numpy", "scipy", "pandas", "matplotlib")]
    return Table(("what", "value"), tuple((str(k), str(v)) for k, v in pairs))


def _svg(figure: Figure, name: str) -> str:
    """The figure as SVG text, the same bytes for the same figure."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _inline(svg: str, name: str) -> str:
    """SVG for an HTML body: no XML prologue, no metadata, no address, ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    size = re.match(r'<svg[^>]*?\swidth="[^"]*"', svg)
    head, tail = svg[: svg.index(">")], svg[svg.index(">") :]
    assert size is not None
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return head + f' role="img" aria-label="{name.replace("_", " ")}"' + tail


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; exit code 0, 1 with --strict where trust is low, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m analysis.report", description=__doc__)
    add_source_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="report file (report.html)")
    parser.add_argument("--strict", action="store_true", help="exit 1 where trust is low")
    args = parser.parse_args(argv)
    try:
        analysis = analyse_arguments(args)
        source = Path(args.source)
        sweep = source if source.is_dir() else source.parent
        if analysis.study.is_sweep:
            out = args.out or sweep / "report.html"
        else:
            out = args.out or source.with_name(source.stem + "-report") / "report.html"
        folder = sweep if analysis.study.is_sweep else out.parent
        write_report(analysis, folder, out)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_code(error)
    print(headline(analysis)[0])
    print(f"trust: {analysis.chosen.trust} ({'; '.join(analysis.chosen.trust_reasons)})")
    print(f"report: {out}")
    if args.strict and analysis.chosen.trust == "low":
        print("error: --strict: trust is low, see the report for what to run next", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
