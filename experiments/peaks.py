"""What a device can multiply: its vendor's figure, and the rate of one large product, timed.

MFU (model FLOPs utilisation; Chowdhery et al. 2022, PaLM, appendix B) divides by one of the two.
"""

import time

import torch

# Dense bfloat16 FLOP/s of the tensor cores, without sparsity, from NVIDIA's data sheets (where a
# sheet gives the rate with 2:4 sparsity, half of it): nvidia.com/en-us/data-center/a100 312; /h100
# SXM 1,979/2, PCIe 1,513/2, NVL 1,671/2; /h200 SXM 1,979/2, NVL 1,671/2; /l40s 362 (733 sparse);
# /l4 242/2; DGX B200 sheet 36 PFLOPS for 8 GPUs, sparse, so 2,250 each. First match wins: parts of
# the name that torch.cuda.get_device_name gives, the more special ones first.
DENSE_BF16 = (
    (("A100",), 312e12),
    (("H100", "NVL"), 835.5e12),
    (("H100", "PCIE"), 756.5e12),
    (("H100", "HBM3"), 989.5e12),
    (("H200", "NVL"), 835.5e12),
    (("H200",), 989.5e12),
    (("B200",), 2250e12),
    (("L40S",), 362e12),
    (("L4",), 121e12),
)
NOT_THESE = ("GH200", "GB200", "MIG")  # other chips, or parts of one
SIDE = {"cpu": 2048, "cuda": 8192}  # of the square matrices
REPEATS = 5


def vendor_peak(name: str) -> float | None:
    """Dense bfloat16 FLOP/s of the device called `name`; None for one that is not listed."""
    words = name.upper().replace("-", " ").split()
    if any(part in word for word in words for part in NOT_THESE):
        return None
    for parts, peak in DENSE_BF16:
        if all(part in words for part in parts):
            return peak
    return None


def matmul_peak(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of one large square product in `dtype` on `device`, the best of REPEATS.

    On a CPU per second of process time, so that other processes do not count.
    """
    kind = device.partition(":")[0]
    n, cuda = SIDE[kind], kind == "cuda"
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter() if cuda else time.process_time()
        torch.mm(a, b)
        if cuda:
            torch.cuda.synchronize(device)
        seconds.append((time.perf_counter() if cuda else time.process_time()) - began)
    return 2 * n**3 / min(seconds[1:])
