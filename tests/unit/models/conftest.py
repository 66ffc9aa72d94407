"""One torch thread: two that wait for each other on busy cores take several times as long."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
