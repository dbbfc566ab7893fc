"""The laws that are fitted and compared, by name."""

from analysis.datalaw import DataConstrainedLaw
from analysis.farseer import FarseerLaw
from analysis.gammalaw import GammaLaw
from analysis.law import Law
from analysis.sumlaw import SumLaw, Term

CHINCHILLA = SumLaw(
    name="chinchilla",
    formula="L(N, D) = E + A·N^-α + B·D^-β",
    source="Hoffmann et al. 2022, Training Compute-Optimal Large Language Models, approach 3",
    terms=(Term("E"), Term("A", (("alpha", "N"),)), Term("B", (("beta", "D"),))),
)
GAMMA = GammaLaw(
    name="gamma",
    formula="L(N, D) = E + (A·N^(-α/γ) + B·D^(-β/γ))^γ",
    source="Beck et al. 2025, xLSTM Scaling Laws",
)
TIED = SumLaw(
    name="tied",
    formula="L(N, D) = E + A·N^-α + B·D^-α",
    source="Gadre et al. 2024, Language models scale reliably with over-training",
    terms=(Term("E"), Term("A", (("alpha", "N"),)), Term("B", (("alpha", "D"),))),
)
TWO_TERM = SumLaw(
    name="two-term",
    formula="L(N, D) = A·N^-α + B·D^-β",
    source="the Chinchilla form without its constant E",
    terms=(Term("A", (("alpha", "N"),)), Term("B", (("beta", "D"),))),
)
PRODUCT = SumLaw(
    name="product",
    formula="L(N, D) = E + A·N^-α + B·D^-β + P·N^-α·D^-β",
    source="the Chinchilla form with an interaction term",
    terms=(
        Term("E"),
        Term("A", (("alpha", "N"),)),
        Term("B", (("beta", "D"),)),
        Term("P", (("alpha", "N"), ("beta", "D"))),
    ),
)
KAPLAN = GammaLaw(
    name="kaplan",
    formula="L(N, D) = (A·N^(-α/β) + B·D^-1)^β",
    source="Kaplan et al. 2020, Scaling Laws for Neural Language Models, eq. 1.5",
    floor=False,
    joint=True,
)
KAPLAN_E = GammaLaw(
    name="kaplan-e",
    formula="L(N, D) = E + (A·N^(-α/β) + B·D^-1)^β",
    source="Kaplan et al. 2020, eq. 1.5, with a constant",
    joint=True,
)
DATA_CONSTRAINED = DataConstrainedLaw(
    name="data-constrained",
    formula="L(N, D, U) = E + A·N'^-α + B·D'^-β",
    source="Muennighoff et al. 2023, Scaling Data-Constrained Language Models, eq. 5 and 6",
)
FARSEER = FarseerLaw(
    name="farseer",
    formula="L(N, D) = exp(s·N^q + S) + exp(B·N^b + Q)·D^(-exp(A·N^a + K))",
    source="Li et al. 2025, Predictable Scale II: Farseer, arXiv 2506.10972",
)

# Every law that is fitted to every study; the first is the default form.
LAWS: tuple[Law, ...] = (CHINCHILLA, TIED, TWO_TERM, GAMMA, PRODUCT, KAPLAN, KAPLAN_E)
# Fitted on request only.
OTHERS: tuple[Law, ...] = (DATA_CONSTRAINED, FARSEER)


def law_named(name: str) -> Law:
    """The law of that name; ValueError that lists the choices."""
    for law in (*LAWS, *OTHERS):
        if law.name == name:
            return law
    names = ", ".join(x.name for x in (*LAWS, *OTHERS))
    raise ValueError(f"unknown law {name!r}; choose from {names}")
