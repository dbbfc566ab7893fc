"""Held-out loss of a model: mean, standard error, bits per byte."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn import functional as F

from minigpt import data
from minigpt.group import SINGLE, Group
from minigpt.model import MiniGPT

BATCH_TOKENS = 2_048  # of one forward pass: small enough for the cache of a CPU core
GPU_BATCH_TOKENS = 65_536  # enough to fill a GPU, as far as the logits are not too large
GPU_LOGITS_BYTES = 2**30


def precision(device: str, dtype: str) -> AbstractContextManager:
    """Autocast where `dtype` is not float32."""
    half = torch.autocast(device.partition(":")[0], dtype=torch.bfloat16)
    return nullcontext() if dtype == "float32" else half


def evaluate(
    model: MiniGPT,
    corpus: data.Corpus,
    tokens: int,
    device: str,
    dtype: str,
    group: Group = SINGLE,
) -> tuple[float, float | None, float | None, int]:
    """Held-out loss: mean and standard error (nats per token), bits per byte, tokens.

    Over the first `tokens` held-out tokens, shared out over the ranks of `group`; the standard
    error takes sequences as independent and is None for a single one. Bits per byte divides by the
    bytes of text among the targets: an end-of-text token costs bits but is no byte. It is None
    where nobody knows how many bytes a token stands for.
    """
    seq_len = model.config.seq_len
    count, per_batch = tokens // seq_len, max(1, _batch_tokens(model, device) // seq_len)
    loss_B, bytes_B = torch.zeros(2, count, dtype=torch.float64, device=device)
    known = corpus.lengths_V
    lengths_V = None if known is None else torch.from_numpy(known).to(device)
    # What FSDP has gathered outlives this, and training could not use it as inference tensors.
    no_grad = torch.inference_mode() if group.size == 1 else torch.no_grad()
    model.eval()
    with no_grad:
        for first in range(0, count, group.size * per_batch):
            start = first + group.rank * per_batch
            none_left = start >= count  # FSDP gathers in every pass: a rank does one all the same
            inputs, targets = data.held_out(
                corpus,
                tokens=tokens,
                seq_len=seq_len,
                start=0 if none_left else start,
                batch_size=per_batch,
            )
            with precision(device, dtype):
                logits_BTV = model(torch.from_numpy(inputs).to(device))
            if none_left:
                continue
            targets_BT = torch.from_numpy(targets).to(device)
            flat = F.cross_entropy(
                logits_BTV.float().flatten(0, 1), targets_BT.flatten(), reduction="none"
            )
            here = slice(start, start + len(targets))
            loss_B[here] = flat.view(targets_BT.shape).double().mean(dim=1)
            if lengths_V is not None:
                bytes_B[here] = lengths_V[targets_BT].double().sum(dim=1)
    model.train()
    loss_B, n_bytes = group.sum(loss_B), group.sum(bytes_B).sum().item()
    mean = loss_B.mean().item()
    se = loss_B.std().item() / math.sqrt(count) if count > 1 else None
    n_tokens = count * seq_len
    bpb = mean * n_tokens / (math.log(2) * n_bytes) if lengths_V is not None else None
    return mean, se, bpb, n_tokens


def _batch_tokens(model: MiniGPT, device: str) -> int:
    if not device.startswith("cuda"):
        return BATCH_TOKENS
    fitting = GPU_LOGITS_BYTES // (4 * model.config.vocab_size)
    return max(BATCH_TOKENS, min(GPU_BATCH_TOKENS, fitting))
