"""Suite `step`: one optimiser step of ours against the plain loop's, shape by shape."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace

from experiments.contest import Contestant, Outcome, contestants, take_turns
from experiments.figures import Findings
from experiments.trial import Trial, gaps, has_bfloat16, our_engine, vaswani
from experiments.worker import MemoryShort, TrialError
from minigpt.counts import parameter_counts

Say = Callable[[str], None]
# (model, tokens of a batch)
CPU_SHAPES = (
    (vaswani(64, 2, 2, 256, 4096), 4096),
    (vaswani(128, 4, 4, 256, 4096), 4096),
    (vaswani(256, 6, 4, 256, 4096), 1024),
)
CUDA_SHAPES = (
    (vaswani(32, 2, 2, 256, 257), 4096),
    (vaswani(64, 2, 2, 256, 4096), 4096),
    (vaswani(128, 4, 4, 256, 4096), 4096),
    (vaswani(128, 4, 4, 256, 4096), 16_384),
    (vaswani(256, 6, 4, 256, 4096), 4096),
    (vaswani(256, 6, 4, 256, 4096), 16_384),
    (vaswani(512, 8, 8, 256, 4096), 16_384),
    (vaswani(768, 12, 12, 1024, 32_768), 32_768),
    (vaswani(1024, 24, 16, 1024, 32_768), 16_384),
)
IN_FLOAT32 = 2_000_000  # parameters up to which float32 is timed on a GPU too, for its losses
LARGE = 100_000_000  # parameters from which on no sweep trains without compiling
VARIANTS = ("reference", "ours float32", "ours bfloat16", "ours bfloat16 compiled")
ROUNDS = {"cpu": 7, "cuda": 5}
ROUND_SECONDS = {"cpu": 1.0, "cuda": 0.4}  # of the reference
MOST_STEPS = 200


def step_suite(device: str, say: Say) -> Findings:
    """Every shape of the device's kind."""
    found, cuda = Findings(), device.startswith("cuda")
    with ExitStack() as stack:
        # A process's peak of memory on a CPU is that of all it did, so there each shape has its
        # own; on a GPU starting them would take most of the time.
        workers = _start(stack, VARIANTS) if cuda else {}
        for model, batch_tokens in CUDA_SHAPES if cuda else CPU_SHAPES:
            trial = Trial(engine="reference", model=model, batch_tokens=batch_tokens, device=device)
            try:
                with ExitStack() as own:
                    found.extend(_shape(trial, workers or _start(own, _trials(trial)), say))
            except TrialError as error:  # what was found before is worth having
                found.remarks.append(f"failed: d_model = {model.d_model}: {error}")
                found.failed = True
                break
    return found


def _start(stack: ExitStack, names: Iterable[str]) -> dict[str, Contestant]:
    """A process for each variant, until `stack` is closed."""
    names = list(names)
    kept = [name != "reference" for name in names]
    return dict(zip(names, stack.enter_context(contestants(kept)), strict=True))


def _trials(reference: Trial) -> dict[str, Trial]:
    """What is timed beside the reference, by variant."""
    device, total = reference.device, parameter_counts(reference.model).total
    cuda = device.startswith("cuda")
    single = replace(reference, engine=our_engine(device))
    trials = {"reference": reference}
    if not cuda or total <= IN_FLOAT32:
        trials["ours float32"] = single
    half = replace(single, dtype="bfloat16")
    if has_bfloat16(device) and not (cuda and total >= LARGE):
        trials["ours bfloat16"] = half
    if cuda:
        trials["ours bfloat16 compiled"] = replace(half, compiled=True)
    return trials


def _shape(reference: Trial, workers: dict[str, Contestant], say: Say) -> Findings:
    """One shape; its batch is halved until all that is timed fits into memory side by side."""
    model, found = reference.model, Findings()
    while reference.batch_tokens >= model.seq_len:
        try:
            return _timed(_trials(reference), workers, say)
        except MemoryShort as error:
            say(f"d_model = {model.d_model}, {reference.batch_tokens:,} tokens: {error}")
            reference = replace(reference, batch_tokens=reference.batch_tokens // 2)
    found.remarks.append(f"d_model = {model.d_model}: does not fit into memory")
    return found


def _timed(trials: dict[str, Trial], workers: dict[str, Contestant], say: Say) -> Findings:
    found, ready = Findings(), {}
    reference, model = trials["reference"], trials["reference"].model
    kind = "cuda" if reference.device.startswith("cuda") else "cpu"
    for name, trial in trials.items():
        try:
            workers[name].prepare(trial)
            ready[name] = (workers[name], trial)
        except MemoryShort:
            raise
        except TrialError:
            if not trial.compiled:  # which not every machine can: it takes a compiler
                raise
            found.remarks.append(f"d_model = {model.d_model}: could not be compiled")
    outcomes, each = take_turns(ready, ROUNDS[kind], ROUND_SECONDS[kind], MOST_STEPS)
    for name, outcome in outcomes.items():
        row = found.add(
            "step",
            f"{name}, {reference.batch_tokens} tokens",
            outcome,
            workers[name].report(),
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
