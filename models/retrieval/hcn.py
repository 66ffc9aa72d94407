"""HCN-R: hierarchical interests from a long and a short history, joined by a co-network.

RECONSTRUCTED FROM THE ABSTRACT of "Hierarchical Multi-Interest Co-Network For Coarse-Grained
Ranking", arXiv 2210.10547. The abstract says that a hierarchical extraction layer refines diverse
interest centres iteratively and that a co-interest network joins long- and short-term interests;
every equation here is Tandem's (specification section 6), and no published number may be claimed.
The open questions, to be settled against the full paper: (1) the centre update (softmax axis, how
queries start, residual, L, K); (2) the co-interest network (co-attention or gate, where the
profile enters); (3) definition and lengths of the two histories; (4) loss, negatives, any
similarity penalty; (5) data sets, splits, metrics, result tables; (6) K at serving, and what
version 2 changed.

Do not claim less redundant interests: on Amazon Beauty their cosine was above ComiRec-SA's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.inputs import UserBatch
from models.layers.co_interest import CoInterest
from models.layers.hierarchical_interests import HierarchicalInterests, Init
from models.layers.interest_readout import overlap_penalty
from models.profiles import OF_PROFILE, dense_profile, profile_width
from models.retrieval.interest_model import (
    InterestConfig,
    InterestModel,
)
from models.schema.inputs import How, Reads


@dataclass(frozen=True)
class HCNRConfig(InterestConfig):
    """`history` is n_L and `short_history` n_S, in events: the newest n_S are in both histories.

    `co_network`: "on" joins V_long and V_short; "off" is V_long alone; "concat" is one extractor
    over the short history followed by the long one. Without `short` there is no short history:
    V = V_long in every case, by the rule for empty short histories, and no unused parameters.
    """

    history: int = 50
    short_history: int = 10
    layers: int = 2
    init: Init = "sa"
    co_network: Literal["on", "off", "concat"] = "on"
    short: bool = True
    co_output: Literal["long", "both"] = "long"
    profile: bool = False
    div_weight: float = 0.0  # lambda_div: 0.01 was inert, 0.1 to 1 cost 4-6 points of recall
    div_on: Literal["output", "centres"] = "output"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.short_history <= self.history:
            raise ValueError("short_history must be between 1 and history")
        if (self.co_output == "both" or self.profile) and not self.joins:
            raise ValueError("co_output both and profile need the co-network and a short history")
        if self.div_weight and self.interests == 1:
            raise ValueError("div_weight compares interests: it needs more than one")

    @property
    def joins(self) -> bool:
        """Whether there is a co-network."""
        return self.co_network == "on" and self.short


class HCNR(InterestModel):
    """G(H, M) per history and the co-network; L = 0 without co-network is ComiRec-SA."""

    source = "hcn_r"
    cfg: HCNRConfig

    def __init__(self, config: HCNRConfig, reads: Reads | None = None) -> None:
        super().__init__(config, reads)
        d, k, n = config.width, config.interests, config.history
        self.concatenated = config.co_network == "concat" and config.short
        if self.concatenated:
            n += config.short_history
        self.long = HierarchicalInterests(d, k, n, config.layers, config.init)
        if config.joins:
            both = config.co_output == "both"
            self.short = HierarchicalInterests(
                d, k, config.short_history, config.layers, config.init
            )
            profile = profile_width(self.reads) if config.profile else 0
            self.co_interest = CoInterest(d, profile, both)
            self.num_interests = 2 * k if both else k

    @property
    def of_domain(self) -> tuple[How, ...]:
        return OF_PROFILE if self.cfg.profile else super().of_domain

    def profile(self, batch: UserBatch) -> Tensor | None:
        if not self.cfg.profile:
            return None
        return torch.from_numpy(dense_profile(self.reads, batch)).to(self.device)

    def extract(
        self,
        history: Tensor,
        mask: Tensor,
        profile: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """V float[B, K, d], or [B, 2K, d] with co_output both; the short history is a prefix."""
        recent = slice(self.cfg.short_history)
        return self.extract_pair(history, mask, history[:, recent], mask[:, recent], profile)[0]

    def extract_pair(
        self,
        long: Tensor,
        long_mask: Tensor,
        short: Tensor,
        short_mask: Tensor,
        profile: Tensor | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """V, and the centres float[B, K, d] before the co-network, of two histories.

        `long` float[B, n_L, d], `short` float[B, n_S, d], newest first with masks; where the short
        one is empty V = V_long. `short` is ignored by a model without short history.
        """
        if self.concatenated:
            long, long_mask = torch.cat([short, long], 1), torch.cat([short_mask, long_mask], 1)
        lasting = self.long(long, long_mask)
        if not self.cfg.joins:
            return lasting, [lasting]
        current = self.short(short, short_mask)
        joined = self.co_interest(lasting, current, short_mask.any(1), profile)
        return joined, [lasting, current]

    def loss(self, batch: UserBatch, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Softmax loss plus div_weight times the overlap of the interests (off by default)."""
        if not self.cfg.div_weight:
            return super().loss(batch, targets, generator)
        rows = self.rows(batch)
        history, mask, recent = self.item_table(rows), rows > 0, slice(self.cfg.short_history)
        interests, centres = self.extract_pair(
            history, mask, history[:, recent], mask[:, recent], self.profile(batch)
        )
        losses = self.interest_losses(self._scored(interests), targets, generator)
        parts = [interests] if self.cfg.div_on == "output" else centres
        overlap = torch.stack([overlap_penalty(part) for part in parts]).sum()
        return losses.mean() + self.cfg.div_weight * overlap
