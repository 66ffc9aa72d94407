"""The same random numbers for every test, and a small catalogue."""

from __future__ import annotations

import pytest
import torch

from models.data.events import Dataset
from tests.unit.models import synthetic


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data() -> Dataset:
    return synthetic.dataset(users=40)
