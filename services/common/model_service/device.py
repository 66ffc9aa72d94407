"""Where a replica's tensors live."""

from __future__ import annotations

import torch


def device(num_gpus: float) -> torch.device:
    """The GPU that Ray gave this process, which reserved `num_gpus`; the CPU without; chosen once.

    Ray does not hide a machine's GPUs from a process that reserved none.
    """
    return torch.device("cuda" if num_gpus > 0 and torch.cuda.is_available() else "cpu")
