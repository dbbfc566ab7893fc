"""What the sweep's parquet files hold: every column's type, unit and meaning, stated once."""

import pyarrow as pa

RESULTS_SCHEMA = "results/1"
CURVES_SCHEMA = "curves/1"
SAMPLES_SCHEMA = "samples/1"
CIRCUITS_SCHEMA = "circuits/1"
EVALS_SCHEMA = "evals/1"

_S, _I, _F, _B = pa.string(), pa.int64(), pa.float64(), pa.bool_()


def _field(name: str, kind: pa.DataType, unit: str, doc: str) -> pa.Field:
    return pa.field(name, kind, metadata={"unit": unit, "doc": doc})


RESULTS = pa.schema(
    [
        _field("run_id", _S, "", "hash of (trunk, horizon, cooldown)"),
        _field(
            "trunk_id",
            _S,
            "",
            "hash of all that the trunk's losses depend on; rows that share it are correlated",
        ),
        _field(
            "horizon_index",
            _I,
            "",
            "rank of the horizon among its trunk's, from 0; moves when a shorter one is added",
        ),
        _field(
            "branch",
            _B,
            "",
            "true: cooled down off a shared trunk; false: a run of its own (cosine)",
        ),
        _field("sweep", _S, "", "name of the sweep"),
        _field("arm", _S, "", "main, or what differs from the main grid"),
        _field("seed", _I, "", "seed of initial weights and data order"),
        _field(
            "status", _S, "", "ok, diverged, failed, or unplanned (finished, no longer in the plan)"
        ),
        _field("reason", _S, "", "why the status is not ok"),
        _field("holdout", _B, "", "kept out of every fit"),
        _field("preset", _S, "", "gpt or vaswani"),
        _field("d_model", _I, "channels", "width"),
        _field("n_layers", _I, "", "blocks"),
        _field("n_heads", _I, "", "attention heads of a block"),
        _field("d_head", _I, "channels", "width of a head"),
        _field("d_ff", _I, "channels", "width inside the MLP"),
        _field("tied", _B, "", "head shares the embedding's weights"),
        _field("dropout", _F, "", "dropout probability"),
        _field("seq_len", _I, "tokens", "context length"),
        _field("vocab_size", _I, "", "vocabulary"),
        _field("n_embedding", _I, "parameters", "token embedding"),
        _field("n_position", _I, "parameters", "learned positions"),
        _field("n_attention", _I, "parameters", "attention projections with biases"),
        _field("n_mlp", _I, "parameters", "MLP matrices with biases"),
        _field("n_norm", _I, "parameters", "norm gains and offsets"),
        _field("n_head", _I, "parameters", "output head with bias"),
        _field("n_total", _I, "parameters", "all of them (N of Hoffmann et al. 2022)"),
        _field(
            "n_non_embedding", _I, "parameters", "attention + MLP + norm (N of Kaplan et al. 2020)"
        ),
        _field("n_matmul", _I, "parameters", "attention + MLP + head"),
        _field("source", _S, "", "data source"),
        _field("data_sha256", _S, "", "hash of the training tokens"),
        _field("val_sha256", _S, "", "hash of the held-out tokens"),
        _field("tokenizer_sha256", _S, "", "hash of the tokenizer; null for bytes"),
        _field("tokens", _I, "tokens", "D: training tokens that contributed to the loss"),
        _field("input_tokens", _I, "tokens", "training tokens read"),
        _field("unique_tokens", _I, "tokens", "different training tokens among them"),
        _field("epochs", _F, "", "passes over the training text"),
        _field("bytes", _I, "bytes", "text that `tokens` stands for; null where not counted"),
        _field("steps", _I, "", "optimiser steps"),
        _field("batch_tokens", _I, "tokens", "tokens of an optimiser step"),
        _field("micro_batch", _I, "tokens", "tokens of one forward pass"),
        _field("world_size", _I, "", "processes that trained the model together"),
        _field("members", _I, "", "models of one shape trained side by side"),
        _field("warmup_tokens", _I, "tokens", "linear warm-up"),
        _field("cooldown_tokens", _I, "tokens", "annealing at the end"),
        _field("eval_tokens", _I, "tokens", "held-out tokens behind val_loss"),
        _field("flops_6n", _F, "FLOP", "6·n_total·tokens"),
        _field("flops_matmul", _F, "FLOP", "6·n_matmul·tokens"),
        _field(
            "flops_exact",
            _F,
            "FLOP",
            "C: all matrix products, attention over the full square, head included",
        ),
        _field("optimizer", _S, "", "adamw or adam"),
        _field("lr", _F, "", "peak learning rate of the hidden matrices"),
        _field("lr_multiplier", _F, "", "factor on the rule's rates"),
        _field("lr_rule", _S, "", "rule and its numbers"),
        _field("batch_rule", _S, "", "rule and its numbers"),
        _field("schedule", _S, "", "wsd or cosine"),
        _field("schedule_params", _S, "json", "the schedule's numbers"),
        _field("weight_decay", _F, "", "decoupled, on matrices"),
        _field("beta1", _F, "", "Adam"),
        _field("beta2", _F, "", "Adam"),
        _field("eps", _F, "", "Adam"),
        _field("grad_clip", _F, "", "limit of the global gradient norm; null: none"),
        _field(
            "parameterisation",
            _S,
            "",
            "standard: torch's or fan-in initial scale, rates by lr_rule",
        ),
        _field(
            "val_loss",
            _F,
            "nats/token",
            "L: mean over eval_tokens held-out tokens, after the last step",
        ),
        _field(
            "val_loss_se",
            _F,
            "nats/token",
            "standard error of val_loss over sequences, taken as independent",
        ),
        _field("train_loss", _F, "nats/token", "mean over the last 50 steps"),
        _field("val_bpb", _F, "bits/byte", "held-out loss in bits per byte of text"),
        _field(
            "seconds",
            _F,
            "s",
            "wall time of this row's own part: its piece of trunk, cooldown, evaluation",
        ),
        _field("cpu_seconds", _F, "s", "CPU time of the same part, in the first of the processes"),
        _field(
            "tokens_per_second",
            _F,
            "tokens/s",
            "own part's training tokens by its seconds without the final evaluation",
        ),
        _field("mfu", _F, "", "share of the device's peak; null where the peak is not known"),
        _field("peak_memory_bytes", _I, "bytes", "device memory at its peak; null on CPU"),
        _field("device", _S, "", "GPU or processor"),
        _field("dtype", _S, "", "precision of matrix products"),
        _field("torch", _S, "", "version"),
        _field("git_commit", _S, "", "commit of the code"),
        _field("git_dirty", _B, "", "tracked files differed from the commit"),
        _field("spec_hash", _S, "", "hash of the trunk's whole spec as trained"),
        _field("started", _S, "ISO 8601", "UTC"),
        _field("finished", _S, "ISO 8601", "UTC"),
    ],
    metadata={"schema": RESULTS_SCHEMA},
)

CURVES = pa.schema(
    [
        _field("run_id", _S, "", "the run whose branch this is; null on the shared trunk"),
        _field("trunk_id", _S, "", "the trunk"),
        _field(
            "horizon_index",
            _I,
            "",
            "of the run; null on the shared trunk, where the rate is not annealed",
        ),
        _field("step", _I, "", "optimiser steps done"),
        _field("tokens", _I, "tokens", "training tokens done"),
        _field("flops_exact", _F, "FLOP", "training FLOPs done, exact convention"),
        _field("lr", _F, "", "learning rate of the hidden matrices at this step"),
        _field("train_loss", _F, "nats/token", "mean since the last point"),
        _field("val_loss", _F, "nats/token", "mean over curve_eval_tokens held-out tokens"),
        _field("val_loss_se", _F, "nats/token", "standard error over sequences"),
        _field(
            "seconds",
            _F,
            "s",
            "wall time of the run so far, on the trunk of the run that went that way",
        ),
    ],
    metadata={"schema": CURVES_SCHEMA},
)

SAMPLES = pa.schema(
    [
        _field("run_id", _S, "", "the run whose model wrote the text"),
        _field("trunk_id", _S, "", "its trunk"),
        _field("n_total", _I, "parameters", "all parameters of the model"),
        _field("seed", _I, "", "seed of initial weights and data order"),
        _field("tokens", _I, "tokens", "D: training tokens of the run"),
        _field("prompt", _S, "", "what the model was given"),
        _field("text", _S, "", "what it went on with; empty where it ended the text at once"),
    ],
    metadata={"schema": SAMPLES_SCHEMA},
)

CIRCUITS = pa.schema(
    [
        _field("run_id", _S, "", "the run whose final weights these are; null: an untrained model"),
        _field("trunk_id", _S, "", "its trunk"),
        _field("n_total", _I, "parameters", "all parameters of the model"),
        _field("n_layers", _I, "", "blocks"),
        _field("seed", _I, "", "seed of initial weights and data order"),
        _field("tokens", _I, "tokens", "D: training tokens of the run; 0 for an untrained model"),
        _field("layer", _I, "", "of the head, from 0; null for a score of the whole model"),
        _field("head", _I, "", "in its layer, from 0"),
        _field(
            "metric",
            _S,
            "",
            "shares of attention, of positions for structure_*; over_*: such a share less that of "
            "a control; copying from -1 to 1; icl and repeat_loss_drop* in nats per token",
        ),
        _field("value", _F, "", "the score; null where it is not defined"),
        _field("low", _F, "", "its 90 % interval over sequences or documents; null where none"),
        _field("high", _F, "", "its 90 % interval"),
        _field("null_value", _F, "", "the score of attention to all tokens alike, or of no effect"),
        _field("baseline", _F, "", "structure_*: the best head that looks at one fixed distance"),
    ],
    metadata={"schema": CIRCUITS_SCHEMA},
)

EVALS = pa.schema(
    [
        _field("run_id", _S, "", "the run"),
        _field("trunk_id", _S, "", "its trunk"),
        _field("horizon_index", _I, "", "of the run"),
        _field("tokens", _I, "tokens", "D: training tokens of the run"),
        _field("eval_set", _S, "", "a name of [data.evals]; val: held out of the corpus itself"),
        _field("loss", _F, "nats/token", "mean over eval_tokens of the set, after the last step"),
        _field("loss_se", _F, "nats/token", "standard error over sequences"),
        _field("bpb", _F, "bits/byte", "loss in bits per byte of text; null where not known"),
        _field("eval_tokens", _I, "tokens", "tokens of the set behind the loss"),
    ],
    metadata={"schema": EVALS_SCHEMA},
)
