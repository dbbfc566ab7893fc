"""One self-contained HTML report of a study: `python -m analysis.report SOURCE`."""

import argparse
import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from analysis import (
    circuitplots,
    circuits,
    circuittables,
    remarks,
    rowtables,
    samples,
    tables,
    vocabularies,
)
from analysis.circuits import Circuits
from analysis.describe import formula, headline, level, next_steps
from analysis.drawing import known, optima
from analysis.fit import add_source_arguments, analyse_arguments, exit_code
from analysis.fitsjson import to_json, write_json, write_whole
from analysis.load import reason_counts
from analysis.plots import FIGURES
from analysis.result import Analysis
from analysis.samples import Samples

TOP = 8  # rows of highest leverage that stand in the open
CAPTIONS = {
    "loss_by_size": "Every line is the law at one token budget; points are final losses. A point "
    "off its line is a run that the law does not explain. Orange: held out, never fitted.",
    "loss_by_tokens": "The same runs over training tokens, one line per size. Lines that flatten "
    "to the right have run out of parameters, not of data.",
    "residuals": "Distance of the law from each run. Within the grey band it is as small as the "
    "spread between seeds; a pattern over N or D means that the form of the law is wrong.",
    "isoflop": "Left: losses at equal compute, KIND, with the parabolas of approach 2; refused "
    "curves are grey. Right: the optimal size by the law (black, grey band: its interval), by "
    "approach 1 (blue steps) and by both readings of approach 2; dashed: their power laws.",
    "rolling": "Each form, fitted to the cheap rows alone, asked for the loss of the dear ones. "
    "Thick: the headline's form. Towards the right more is predicted from less.",
    "held_out": "Runs that the fit never saw. On the diagonal the prediction is exact; the law is "
    "worth its price only where it beats both baselines. Bars: interval of the law from noise.",
    "sensitivity": "One mark per refit. Black line: the fit itself; grey bands are as wide as its "
    "intervals. A mark outside says that the answer hangs on that choice more than on noise. A "
    "convention changes what N and C mean, and with them a.",
    "contours": "Thin lines join (N, D) of equal loss. The black curve is the compute-optimal "
    "frontier, dashed beyond the measured compute; the grey band is its interval.",
    "training_curves": "Held-out loss along training. Thin: the shared trunk, still at a high "
    "learning rate, never a point of the fit; thick: cooldowns, whose ends are the rows.",
    "circuits": "Over training tokens, one line per size: mean over seeds, the band their range. "
    "Hollow, at 0: the untrained model. Null level: what a head scores that attends evenly. A "
    "repeat-loss drop above 0, and an in-context learning score below 0, say that context helps. "
    "Onset, where there is one: between the last horizon without an induction head and the first "
    "with one, over all seeds; arrows: before the first horizon, or after the last.",
    "structure": "Share of positions at which the best head of each relation attends most to its "
    "target. Dashed: the best head of one fixed offset, which knows nothing of the text.",
}
KINDS = {"measured": "measured", "interpolated": "interpolated between each size's horizons"}
UNDRAWN = ("loss_by_size", "loss_by_tokens", "contours")  # figures whose lines are the law


def write_report(
    analysis: Analysis,
    folder: Path,
    out: Path,
    heads: Circuits | None = None,
    texts: Samples | None = None,
) -> Path:
    """Write fits.json and figures/ into `folder` and the report to `out`; returns `out`.

    `heads` and `texts`: what was found inside the models, where it was looked for.
    """
    figures = {name: draw(analysis) for name, draw in FIGURES}
    figures |= {name: draw(heads) for name, draw in circuitplots.FIGURES} if heads else {}
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
    write_json(folder / "fits.json", to_json(analysis))
    write_whole(
        out, html(analysis, inline, heads, texts, _commands(analysis, folder, heads, texts))
    )
    return out


def html(
    analysis: Analysis,
    figures: dict[str, Markup],
    heads: Circuits | None = None,
    texts: Samples | None = None,
    commands: Sequence[str] = (),
) -> str:
    """The report as one HTML text without any reference to another file.

    `commands` would find more about these models.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    study, result, default = analysis.study, analysis.chosen, analysis.default
    unknown = None if known(analysis) else next(iter(result.design.problems.values()))
    return environment.get_template("report.html.jinja").render(
        study=study,
        result=result,
        analysis=analysis,
        unknown=unknown,
        level=level(analysis),
        headline=[remarks.marked(sentence) for sentence in headline(analysis)],
        cards=tables.cards(analysis),
        formula=remarks.marked(
            f"{result.law.formula}: constants not identified by this design"
            if unknown
            else formula(result)
        ),
        parameters=tables.parameters(analysis),
        reasons=remarks.reasons(analysis),
        noise=remarks.noise(analysis),
        forecasts=tables.forecasts(analysis),
        prior=remarks.prior(default) if default else [],
        approaches=tables.approaches(analysis),
        refusals=tables.refusals(analysis),
        approach_notes=remarks.approach_notes(analysis),
        forms=tables.forms(analysis),
        rolling=tables.rolling(analysis),
        holdout=rowtables.holdout(analysis),
        sensitivity=[] if unknown else tables.sensitivity(analysis),
        leverage=None if unknown else rowtables.leverage(analysis),
        top=TOP,
        figures=figures,
        captions={name: _caption(name, analysis) for name in CAPTIONS},
        optimal=tables.optimal(analysis),
        optimal_notes=list(dict.fromkeys(r.note for r in analysis.optimal if r.note)),
        next_steps=[remarks.marked(step) for step in next_steps(analysis)],
        runs=rowtables.runs(analysis),
        reason_counts=reason_counts(study.excluded),
        excluded=rowtables.excluded(analysis),
        flagged=rowtables.flagged(analysis),
        provenance=rowtables.provenance(analysis),
        heads=circuittables.sentences(heads) if heads else None,
        onsets=circuittables.onsets(heads) if heads else None,
        ablations=circuittables.ablations(heads) if heads else None,
        relations=circuittables.relations(heads) if heads else None,
        texts=texts,
        vocabularies=vocabularies.table(study.table),
        commands=commands,
        config=json.dumps(study.config, indent=1, ensure_ascii=False) if study.config else None,
    )


def _commands(
    analysis: Analysis, folder: Path, heads: Circuits | None, texts: Samples | None
) -> list[str]:
    """What a user can still run to look inside the models; nothing where there are no weights."""
    if not (folder / "trunks").is_dir():
        return []
    config = (analysis.study.config or {}).get("config", {})
    text = config.get("data", {}).get("source") != "tokens"  # of ready-made tokens nobody has any
    missing = ((circuits.COMMAND, heads is None), (samples.COMMAND, texts is None and text))
    return [f"{command} {folder}" for command, wanted in missing if wanted]


def _caption(name: str, analysis: Analysis) -> str:
    if not known(analysis) and name in UNDRAWN:
        return "The runs alone: this design does not identify the law, so no line of it is drawn."
    text = CAPTIONS[name]
    if name == "isoflop" and not optima(analysis):
        text = text[: text.index(" Right:")]
    kinds = dict.fromkeys(KINDS[b.approach.kind] for b in analysis.approaches[1:])
    return text.replace("KIND", " and ".join(kinds))


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
        source = Path(args.source)
        sweep = source if source.is_dir() else source.parent
        inside = source.is_dir() or source.name == "results.parquet"
        scores, written = (circuits.read(sweep), samples.read(sweep)) if inside else (None, None)
        analysis = analyse_arguments(args)
        if analysis.study.is_sweep:
            out = args.out or sweep / "report.html"
        else:
            out = args.out or source.with_name(source.stem + "-report") / "report.html"
        folder = sweep if analysis.study.is_sweep else out.parent
        runs = analysis.study.table
        heads = circuits.select(scores, runs) if scores is not None else None
        texts = samples.select(*written, runs) if written is not None else None
        write_report(analysis, folder, out, heads, texts)
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
