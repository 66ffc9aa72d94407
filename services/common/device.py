"""Where a replica's tensors live."""

from __future__ import annotations

import torch


def device() -> torch.device:
    """The GPU that Ray gave this process (num_gpus > 0), else the CPU; chosen once, at start."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
