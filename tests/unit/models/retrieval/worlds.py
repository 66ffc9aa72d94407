"""What the retrieval models' tests share: small models, histories and counting."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.catalogue import ItemTable
from models.data.worlds.films.schema import ITEM_DTYPE, SCHEMA
from models.retrieval.comirec import ComiRecDR, ComiRecDRConfig, ComiRecSA, ComiRecSAConfig
from models.retrieval.desmil import DESMILR, DESMILRConfig
from models.retrieval.hcn import HCNR, HCNRConfig
from models.retrieval.interest_model import InterestModel
from models.retrieval.mind import MIND, MINDConfig
from models.retrieval.sasrec import SASRec, SASRecConfig
from models.retrieval.youtube_dnn import YouTubeDNN, YouTubeDNNConfig
from models.schema.inputs import Reads, reads_of

ITEMS, WIDTH, HISTORY = 60, 8, 12
TABLE = ItemTable.build([f"i{i}" for i in range(ITEMS)], np.zeros(ITEMS, ITEM_DTYPE))
READS: Reads = reads_of(SCHEMA.declaration, SCHEMA.layout, "retrieval", TABLE.sizes)
CLICKS = np.concatenate([[0], np.arange(ITEMS, 0, -1)])

_MODELS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "comirec_sa": (ComiRecSA, ComiRecSAConfig, {}),
    "comirec_dr": (ComiRecDR, ComiRecDRConfig, {"dr_init_std": 0.3}),
    "mind": (MIND, MINDConfig, {}),
    "youtube_dnn": (YouTubeDNN, YouTubeDNNConfig, {"interests": 1}),
    "sasrec": (SASRec, SASRecConfig, {"interests": 1}),
    "hcn_r": (HCNR, HCNRConfig, {"short_history": 4}),
    "desmil_r": (DESMILR, DESMILRConfig, {"inner_steps": 3}),
}
NAMES = tuple(_MODELS)


def model(name: str, **changes: Any) -> InterestModel:
    """A small model in eval mode, ready to train; item vectors of unit scale."""
    torch.manual_seed(7)
    build, config, own = _MODELS[name]
    sizes = {"width": WIDTH, "interests": 3, "history": HISTORY, "negatives": 20}
    made: InterestModel = build(config(num_items=ITEMS, **(sizes | own | changes)), READS)
    with torch.no_grad():
        made.item_table.weight[1:].normal_()
    made.prepare_training(TABLE, CLICKS)
    return made.eval()


def histories(batch: int, n: int = HISTORY, d: int = WIDTH, seed: int = 0) -> tuple[Tensor, Tensor]:
    """H float[B, n, d], with noise on padding, and M bool[B, n]: 1..n events, row 0 has one."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, n + 1, (batch, 1), generator=generator)
    lengths[0] = 1
    return torch.randn(batch, n, d, generator=generator), torch.arange(n) < lengths


def parameters(module: nn.Module) -> int:
    """Trained numbers of a module, a model's item table left out."""
    return sum(p.numel() for name, p in module.named_parameters() if name != "item_table.weight")
