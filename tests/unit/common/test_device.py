"""A replica computes on a GPU only if it has reserved one."""

from __future__ import annotations

import pytest
import torch

from services.common.model_service.device import device


@pytest.mark.parametrize(
    ("num_gpus", "there_is_one", "expected"),
    [(0, True, "cpu"), (0.5, True, "cuda"), (1, True, "cuda"), (1, False, "cpu")],
)
def test_the_device_is_what_was_reserved(
    monkeypatch: pytest.MonkeyPatch, num_gpus: float, there_is_one: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there_is_one)
    assert device(num_gpus).type == expected
