"""The models that a sweep has trained, and the text that none of them has seen."""

from pathlib import Path

from experiments import store
from experiments.shards import open_shards
from experiments.spec import RunSpec, TrunkSpec
from experiments.store import StoreError
from minigpt import data


def finished(sweep: Path) -> list[tuple[TrunkSpec, RunSpec]]:
    """The finished runs of the sweep's plan.

    Raises StoreError for a folder of no sweep, or without a finished run.
    """
    planned = store.planned(sweep)
    found = [
        (trunk, run)
        for trunk in store.trunks(sweep)
        for run in trunk.runs
        if run.run_id in planned and store.run_state(sweep, trunk, run).state == "ok"
    ]
    if not found:
        raise StoreError(
            f"{sweep}: no run has finished yet; `python -m experiments.sweep status {sweep}` shows "
            "what they do"
        )
    return found


def held_out_text(sweep: Path, trunk: TrunkSpec) -> data.Corpus:
    """The corpus of a trunk, of which its models have not seen what is held out.

    Raises DataError for a text that is gone, or is another one than they were trained on.
    """
    corpus = open_shards(sweep, trunk.data, trunk.tokenizer_sha256)
    if corpus.info.val_sha256 != trunk.val_sha256:
        raise data.DataError(
            f"{sweep}: the text of data.source = '{trunk.data.source}' ({corpus.info.origin}) is "
            "not the one that its models were trained on, which may have seen what is held out "
            "now; put that text back"
        )
    return corpus
