"""Suite `step`: one optimiser step of ours against the plain loop's, shape by shape."""

from collections.abc import Callable
from dataclasses import replace

from experiments.contest import MemoryShort, Outcome, contestants, take_turns
from experiments.figures import Findings
from experiments.trial import Trial, gaps, has_bfloat16, our_engine, vaswani
from minigpt.counts import parameter_counts

Say = Callable[[str], None]
# (model, tokens of a batch). Of the last one on a GPU, halved until both fit into its memory.
CPU_SHAPES = (
    (vaswani(64, 2, 2, 256, 4096), 4096),
    (vaswani(128, 4, 4, 256, 4096), 4096),
    (vaswani(256, 6, 4, 256, 4096), 1024),
)
CUDA_SHAPES = (
    (vaswani(32, 2, 2, 256, 257), 4096),
    (vaswani(32, 2, 2, 256, 257), 16_384),
    (vaswani(64, 2, 2, 256, 4096), 4096),
    (vaswani(64, 2, 2, 256, 4096), 16_384),
    (vaswani(128, 4, 4, 256, 4096), 4096),
    (vaswani(128, 4, 4, 256, 4096), 16_384),
    (vaswani(256, 6, 4, 256, 4096), 4096),
    (vaswani(256, 6, 4, 256, 4096), 16_384),
    (vaswani(512, 8, 8, 256, 4096), 4096),
    (vaswani(512, 8, 8, 256, 4096), 16_384),
    (vaswani(768, 12, 12, 1024, 32_768), 32_768),
)
IN_FLOAT32 = 2_000_000  # parameters up to which float32 is timed on a GPU too, for its losses
ROUNDS = {"cpu": 7, "cuda": 7}
ROUND_SECONDS = {"cpu": 1.0, "cuda": 0.5}  # of the reference
MOST_STEPS = 200


def step_suite(device: str, say: Say) -> Findings:
    """Every shape of the device's kind."""
    found = Findings()
    for model, batch_tokens in CUDA_SHAPES if device.startswith("cuda") else CPU_SHAPES:
        trial = Trial(engine="reference", model=model, batch_tokens=batch_tokens, device=device)
        while True:
            try:
                found.extend(_shape(trial, say))
                break
            except MemoryShort as error:
                say(f"d_model = {model.d_model}, {trial.batch_tokens:,} tokens: {error}")
                trial = replace(trial, batch_tokens=trial.batch_tokens // 2)
                if trial.batch_tokens < model.seq_len:
                    found.remarks.append(f"d_model = {model.d_model}: does not fit into memory")
                    break
    return found


def _shape(reference: Trial, say: Say) -> Findings:
    device, model = reference.device, reference.model
    cuda = device.startswith("cuda")
    single = replace(reference, engine=our_engine(device))
    trials = {"reference": reference}
    if not cuda or parameter_counts(model).total <= IN_FLOAT32:
        trials["ours float32"] = single
    if has_bfloat16(device):
        trials["ours bfloat16"] = replace(single, dtype="bfloat16")
    found, kind = Findings(), "cuda" if cuda else "cpu"
    with contestants([name != "reference" for name in trials]) as workers:
        ready = dict(zip(trials, zip(workers, trials.values(), strict=True), strict=True))
        for worker, trial in ready.values():
            worker.prepare(trial)
        outcomes, each = take_turns(ready, ROUNDS[kind], ROUND_SECONDS[kind], MOST_STEPS)
        for name, outcome in outcomes.items():
            row = found.add(
                "step",
                f"{name}, {reference.batch_tokens} x {model.seq_len}",
                outcome,
                ready[name][0].report(),
                outcomes["reference"],
            )
            told = f"d_model = {model.d_model}, {row.variant}: {row.tokens_per_second:,.0f}"
            say(f"{told} tokens/s, {row.ratio_to_reference:.2f}")
    found.remarks += _losses(outcomes, each)
    return found


def _losses(outcomes: dict[str, Outcome], each: int) -> list[str]:
    """How far the loss in bfloat16 is from that in float32, same seed and data."""
    if not {"ours float32", "ours bfloat16"} <= outcomes.keys():
        return []
    whole, half = outcomes["ours float32"].losses, outcomes["ours bfloat16"].losses
    largest, last = gaps(whole, half, each)
    model = outcomes["reference"].trial.model
    return [
        f"d_model = {model.d_model}: loss in bfloat16 less that in float32 over {len(whole)} "
        f"steps, means over {each}: at most {largest:.1e}, at the end {last:.1e} "
        f"(from {whole[0]:.2f} to {whole[-1]:.2f})"
    ]
