"""Sentences beside the report's tables, and letters and exponents as a page writes them."""

import re

from markupsafe import Markup, escape

from analysis.describe import APPROACHES, open_ends
from analysis.result import Analysis, Default
from analysis.rowtables import signed
from analysis.trust import APART
from analysis.words import GREEK, number, percent, probability

POWER = re.compile(r"\^(?:\(((?:[^()]|\([^()]*\))*)\)|(-?\w+(?:\.\w+)?\*?))")
CODE = re.compile(r"`([^`]+)`")


def letter(name: str) -> str:
    """A parameter as the formulas write it: `log gamma` as log γ."""
    return " ".join(GREEK.get(word, word) for word in name.split(" "))


def marked(text: str) -> Markup:
    """Text for the page: N^-0.35 and ...^(-α/γ) as raised exponents, `code` as code; escaped."""
    return Markup(_raised(CODE.sub(r"<code>\1</code>", str(escape(text)))))


def _raised(text: str) -> str:
    return POWER.sub(lambda m: f"<sup>{_raised((m[1] or m[2]).replace('-', '−'))}</sup>", text)


def reasons(analysis: Analysis) -> list[str]:
    """Why intervals are open, one line per reason with the parameters it concerns."""
    found = open_ends(analysis.chosen)
    return [f"{', '.join(map(letter, names))}: {why}" for why, names in found.items()]


def noise(analysis: Analysis) -> list[str]:
    """Where the scatter comes from, and whether the two estimators agree."""
    result, seeds = analysis.chosen, analysis.noise
    gls, told = result.estimate.gls, []
    if result.estimate.estimator == "gls-reml":
        told.append(
            f"Noise by the random-trunk model (REML): {percent(gls.trunk_sd)} of the loss between "
            f"trunks, {percent(gls.row_sd)} between rows of a trunk."
        )
    if seeds.df_rows:
        told.append(
            f"Between seeds of one setting: {percent(seeds.sigma)} ({seeds.df_trunks} degrees of "
            "freedom)."
        )
    apart = {letter(k): v for k, v in result.apart.items() if v > APART}
    if apart:
        listed = ", ".join(f"{k} by {v:.1f}" for k, v in apart.items())
        told.append(
            f"Huber and GLS estimates differ, in standard errors: {listed}. A few rows pull one of "
            "them: see the residuals and the leverage."
        )
    elif result.apart:
        told.append(f"Huber and GLS estimates agree within {APART:g} standard errors.")
    return told


def prior(default: Default) -> list[str]:
    """Whether the default prediction leans on the prior, and how far that moved it."""
    told = [default.why[:1].upper() + default.why[1:].rstrip(".") + "."]
    if default.shift:
        moved = ", ".join(f"{letter(k)} {signed(v)}" for k, v in default.shift.items())
        told.append(f"Shift by the prior, in standard errors of the fit without it: {moved}.")
    if default.conflict is not None:
        told.append(f"Conflict of prior and data: {probability(default.conflict)}.")
    values = ", ".join(f"{letter(k)} = {number(v)}" for k, v in default.parameters.items())
    told.append(f"Values: {values}.")
    if default.holdout_error is not None:
        told.append(f"Mean error on the held-out runs: {percent(default.holdout_error)}.")
    return told


def approach_notes(analysis: Analysis) -> list[str]:
    """Why an approach has no exponent, and what else it says of its curves."""
    told = [
        f"{APPROACHES[b.approach.method]}: {b.approach.reason}"
        for b in analysis.approaches
        if b.approach.reason
    ]
    return told + list(dict.fromkeys(n for b in analysis.approaches for n in b.approach.notes))
