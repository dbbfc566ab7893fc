"""Rows of the parquet files: what the spec says, what closed forms give, what a run measured."""

from experiments import schema
from experiments.spec import RunSpec, TrunkSpec
from minigpt.counts import flops_per_token, parameter_counts
from minigpt.sources import HELD_OUT


def result_row(
    trunk: TrunkSpec, run: RunSpec, index: int, status: str, reason: str | None, measured: dict
) -> dict:
    """A row of results.parquet; `index` is the rank of the horizon in its trunk."""
    model, train, counts = trunk.model, trunk.train, parameter_counts(trunk.model)
    flops = flops_per_token(model)
    return {
        "run_id": run.run_id,
        "trunk_id": trunk.trunk_id,
        "horizon_index": index,
        "branch": train.schedule.kind == "wsd",
        "sweep": trunk.sweep,
        "arm": trunk.arm,
        "seed": train.seed,
        "holdout": run.holdout,
        "preset": model.preset,
        "d_model": model.d_model,
        "n_layers": model.n_layers,
        "n_heads": model.n_heads,
        "d_head": model.d_head,
        "d_ff": model.d_ff,
        "tied": False,
        "dropout": model.dropout,
        "seq_len": model.seq_len,
        "vocab_size": model.vocab_size,
        "n_embedding": counts.embedding,
        "n_position": counts.position,
        "n_attention": counts.attention,
        "n_mlp": counts.mlp,
        "n_norm": counts.norm,
        "n_head": counts.head,
        "n_total": counts.total,
        "n_non_embedding": counts.non_embedding,
        "n_matmul": counts.matmul,
        "source": trunk.data.source,
        "data_sha256": trunk.data_sha256,
        "val_sha256": trunk.val_sha256,
        "tokenizer_sha256": trunk.tokenizer_sha256,
        "tokens": run.tokens,
        "input_tokens": run.tokens,
        "steps": run.stop,
        "batch_tokens": train.batch_tokens,
        "micro_batch": train.batch_tokens,
        "warmup_tokens": train.schedule.warmup_tokens,
        "cooldown_tokens": (run.stop - run.start) * train.batch_tokens,
        "flops_6n": flops.six_n * run.tokens,
        "flops_matmul": flops.matmul * run.tokens,
        "flops_exact": flops.exact * run.tokens,
        "optimizer": train.optimizer,
        "lr": train.lr.hidden,
        "lr_multiplier": trunk.lr_multiplier,
        "lr_rule": trunk.lr_rule,
        "batch_rule": trunk.batch_rule,
        "schedule": train.schedule.kind,
        "schedule_params": train.schedule.model_dump_json(exclude={"kind"}),
        "weight_decay": train.weight_decay,
        "beta1": train.beta1,
        "beta2": train.beta2,
        "eps": train.eps,
        "grad_clip": train.grad_clip,
        "parameterisation": "standard",
        "dtype": train.dtype,
        **{key: value for key, value in measured.items() if key in schema.RESULTS.names},
        "status": status,
        "reason": reason,
    }


def curve_row(trunk: TrunkSpec, point: dict, index: int | None) -> dict:
    """A row of curves.parquet; `index` is None on the shared trunk."""
    tokens = point["step"] * trunk.train.batch_tokens
    return {
        **point,
        "trunk_id": trunk.trunk_id,
        "horizon_index": index,
        "tokens": tokens,
        "flops_exact": tokens * flops_per_token(trunk.model).exact,
    }


def eval_rows(trunk: TrunkSpec, run: RunSpec, index: int, measured: dict) -> list[dict]:
    """Rows of evals.parquet: none of a run without more held-out sets than its corpus's own."""
    if not measured.get("evals"):
        return []
    own = {
        "loss": measured["val_loss"],
        "loss_se": measured["val_loss_se"],
        "bpb": measured["val_bpb"],
        "eval_tokens": measured["eval_tokens"],
    }
    of_run = {"run_id": run.run_id, "trunk_id": trunk.trunk_id, "horizon_index": index}
    return [
        {**of_run, "tokens": run.tokens, "eval_set": name, **values}
        for name, values in ({HELD_OUT: own} | measured["evals"]).items()
    ]
