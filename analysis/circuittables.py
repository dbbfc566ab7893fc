"""What the report says of a sweep's heads: tables, and the sentences beside them."""

from collections.abc import Sequence

from markupsafe import Markup

from analysis import circuits
from analysis.circuits import ABLATIONS, INDUCTION, Ablation, Circuits, Onset, Relation
from analysis.rowtables import Table
from analysis.words import NBSP, amount, counted, number, span

VERDICTS = {True: "emerges", False: "does not emerge", None: "not decided"}


def onsets(found: Circuits) -> Table | None:
    """Where induction emerges, by size; None without induction scores."""
    sizes = circuits.onsets(found)
    if not sizes:
        return None
    return Table(
        ("N", "layers", "seeds", "onset of induction, D", "best head at the largest D",
         "induction heads there"),
        tuple(
            (amount(o.N), str(o.layers), str(o.seeds), onset(o), f"{o.best:.2f}", f"{o.heads:.3g}")
            for o in sizes
        ),
    )  # fmt: skip


def onset(found: Onset) -> str:
    """The interval of one size in words."""
    last, D = amount(found.last), found.D
    if not found.emerged:
        return f"not within D = {last}" + (": one layer" if found.layers == 1 else "")
    if found.emerged < found.seeds:
        some = f"in {found.emerged} of {found.seeds} seeds within D = {last}"
        return some if D.low is None else f"after {amount(D.low)}; {some}"
    return f"by {amount(D.high)}" if D.low is None else f"{amount(D.low)} to {amount(D.high)}"


def ablations(found: Circuits) -> Table | None:
    """What the induction heads do for the loss on repeated text, by size."""
    sizes = circuits.ablations(found)
    if not sizes:
        return None
    head = ("N", "D", "whole model", *(f"without {what}" for what in ABLATIONS.values()))
    return Table(
        head,
        tuple(
            (amount(a.N), amount(a.D), number(a.whole), *(_left(a, kind) for kind in ABLATIONS))
            for a in sizes
        ),
    )


def _left(ablation: Ablation, kind: str) -> str:
    share = ablation.share[kind]
    taken = "" if share is None else f" (takes {100 * share:.0f}{NBSP}%)"
    return number(ablation.left[kind]) + taken


def relations(found: Circuits) -> Table | None:
    """Each relation's best head in the largest model, with the verdict."""
    _, _, there = circuits.relations(found)
    if not there:
        return None
    return Table(
        ("relation", "best head", "share", "90 % interval", "best fixed offset", "untrained", ""),
        tuple(
            (r.name, r.head, f"{r.share:.3f}", span(r.interval, _share), _share(r.baseline),
             _share(r.untrained), _verdict(r))
            for r in there
        ),
    )  # fmt: skip


def sentences(found: Circuits) -> list[str]:
    """What emerges and what does not, first of all."""
    told, sizes = [], circuits.onsets(found)
    if sizes:
        told.append(_induction(sizes))
    N, D, there = circuits.relations(found)
    if there:
        named = {v: ", ".join(r.name for r in there if r.emerges is v) for v in VERDICTS}
        count = sum(r.emerges is True for r in there)
        parts = (
            (": ", named[True]),
            ("; not: ", named[False]),
            ("; not decided, for want of an interval or a control: ", named[None]),
        )
        told.append(
            f"In the largest model (N = {amount(N)}, D = {amount(D)}) {count} of "
            f"{counted(len(there), 'relation')} of the text emerge{'s' if count == 1 else ''}"
            + "".join(before + names for before, names in parts if names)
            + "."
        )
    return [*told, *(f"{note[:1].upper()}{note[1:]}." for note in found.notes)]


def _induction(sizes: Sequence[Onset]) -> str:
    without = [o for o in sizes if not o.emerged]
    single = [o for o in without if o.layers == 1]
    text = (
        f"Induction heads (score above {INDUCTION:g}) emerge in {len(sizes) - len(without)} of "
        f"{counted(len(sizes), 'size')}"
    )
    if len(single) < len(without):
        last = max(o.last for o in without if o.layers > 1)
        text += f", in {len(without) - len(single)} not within D = {amount(last)}"
    if single:
        text += (
            f"; {len(single)} cannot have them, with one layer: an induction head reads what a "
            "head of an earlier layer wrote (Olsson et al. 2022)"
        )
    return f"{text}."


def _verdict(relation: Relation) -> str:
    word = VERDICTS[relation.emerges]
    return Markup("<b>{}</b>").format(word) if relation.emerges else word


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
