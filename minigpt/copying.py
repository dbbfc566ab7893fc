"""How far a head's output raises the tokens that it attends to, read off the weights alone.

Shapes: V vocabulary, D width, H heads, K channels of a head.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from minigpt.heads import Score
from minigpt.layers import LayerNorm, RMSNorm
from minigpt.model import Block, MiniGPT


@torch.no_grad()
def copying_scores(model: MiniGPT) -> list[Score]:
    """`copying` of every head: Σ Re λ / Σ |λ| over the eigenvalues of its circuit, from -1 to 1.

    The circuit W_E W_V W_O W_U says which tokens a head's output raises for each token that it
    attends to (Elhage et al. 2021, "copying"); its eigenvalues are those of the K×K matrix
    W_O W_U W_E W_V. Tokens are followed along the residual stream, past all other heads and MLPs.
    Of norms on the way gain and centring count, not what they divide by; positions, biases and the
    embedding's scale do not. W_U is centred over the vocabulary, which softmax does not see. None
    where the circuit is zero.
    """
    scores = []
    for layer, (block, E_VD, U_DV) in enumerate(_direct_paths(model)):
        n_heads = block.attention.n_heads
        v_DHK = block.attention.qkv.weight.double().mT.unflatten(1, (3, n_heads, -1))[:, 2]
        o_HKD = block.attention.out.weight.double().mT.unflatten(0, (n_heads, -1))
        UE_DD = (U_DV - U_DV.mean(dim=1, keepdim=True)) @ E_VD
        for head in range(n_heads):
            eigenvalues_K = torch.linalg.eigvals(o_HKD[head] @ UE_DD @ v_DHK[:, head])
            size = eigenvalues_K.abs().sum().item()
            value = eigenvalues_K.real.sum().item() / size if size else None
            scores.append(Score(metric="copying", layer=layer, head=head, value=value))
    return scores


def _direct_paths(model: MiniGPT) -> Iterator[tuple[Block, Tensor, Tensor]]:
    """Each block, E_VD of tokens where its heads read them, and U_DV from what its heads write."""
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    E_VD, head_DV = model.embedding.weight.double(), model.head.weight.double().mT
    if isinstance(model.final_norm, RMSNorm):
        head_DV = model.final_norm.weight.double()[:, None] * head_DV
    for layer, block in enumerate(blocks):
        if block.pre_norm:
            yield block, _normed(E_VD, block.norm1), head_DV
            continue
        U_DD = torch.eye(model.config.d_model, dtype=torch.float64, device=E_VD.device)
        for later in blocks[layer:]:
            U_DD = _normed(_normed(U_DD, later.norm1), later.norm2)
        yield block, E_VD, U_DD @ head_DV
        E_VD = _normed(_normed(E_VD, block.norm1), block.norm2)


def _normed(x: Tensor, norm: RMSNorm | LayerNorm) -> Tensor:
    """Rows through the linear part of a norm."""
    if isinstance(norm, LayerNorm):
        x = x - x.mean(dim=-1, keepdim=True)
    return x * norm.weight.double()
