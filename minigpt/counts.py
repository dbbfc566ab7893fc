"""Parameters by group and training FLOPs per token by convention, in closed form.

Both are what scaling laws put on their axes, and the convention moves the fitted exponents more
than any other choice (Porian et al. 2024, arXiv 2406.19146; Pearce & Song 2024, arXiv 2406.12907).
So every convention is computed, and the analysis chooses.
"""

from dataclasses import dataclass

from minigpt.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Parameters by disjoint group; `total` is asserted to be the module's own count."""

    embedding: int
    position: int
    attention: int
    mlp: int
    norm: int
    head: int

    @property
    def total(self) -> int:
        """Every parameter (N of Hoffmann et al. 2022)."""
        return self.embedding + self.position + self.non_embedding + self.head

    @property
    def non_embedding(self) -> int:
        """Attention, MLP and norms, without embeddings and head (N of Kaplan et al. 2020)."""
        return self.attention + self.mlp + self.norm

    @property
    def matmul(self) -> int:
        """Attention, MLP and head: the parameters that multiply activations."""
        return self.attention + self.mlp + self.head


@dataclass(frozen=True, kw_only=True)
class FlopsPerToken:
    """Training FLOPs (forward and backward) of one token, by convention."""

    six_n: float
    matmul: float
    exact: float


def parameter_counts(model: ModelConfig) -> ParameterCounts:
    """Count the parameters of `model` by group.

    Biases count with the matrix they are added to; norms hold gains (and, in `vaswani`, offsets).
    """
    d, f, v, n = model.d_model, model.d_ff, model.vocab_size, model.n_layers
    if model.preset == "vaswani":
        positions = model.seq_len * d if model.positions == "learned" else 0
        return ParameterCounts(
            embedding=v * d,
            position=positions,
            attention=n * (4 * d * d + 4 * d),
            mlp=n * (2 * d * f + f + d),
            norm=n * 2 * 2 * d,
            head=v * d + v,
        )
    return ParameterCounts(
        embedding=v * d,
        position=0,
        attention=n * 4 * d * d,
        mlp=n * 2 * d * f,
        norm=n * (2 * d + model.d_head) + d,
        head=v * d,
    )


def flops_per_token(model: ModelConfig) -> FlopsPerToken:
    """Training FLOPs per token of `model` at its full context.

    `six_n` = 6·N_total (Kaplan et al. 2020, §2.1, with all parameters); `matmul` = 6·N_matmul;
    `exact` = 6 per element of every weight matrix including the head, plus
    12·n_layers·seq_len·d_model for the attention's two products over the full T×T square, forward
    and backward (the convention of torch.utils.flop_counter: a causal kernel does about half of
    that part).
    """
    d, f, v, n = model.d_model, model.d_ff, model.vocab_size, model.n_layers
    counts = parameter_counts(model)
    matrices = n * (4 * d * d + 2 * d * f) + v * d
    attention = 12 * n * model.seq_len * d
    return FlopsPerToken(
        six_n=6.0 * counts.total,
        matmul=6.0 * counts.matmul,
        exact=float(6 * matrices + attention),
    )
