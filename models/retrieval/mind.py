"""MIND: interest capsules by dynamic routing with one shared matrix.

"Multi-Interest Network with Dynamic Routing for Recommendation at Tmall", CIKM'19, arXiv
1904.08030. Defaults are the variant inside the ComiRec authors' released code, which produced the
published comparisons: fixed K, hard readout, no profile, one ReLU layer on the capsules.
Specification section 5, which numbers none of the paper's equations: they are cited by section.
Item vectors are id embeddings: the mean with side-information embeddings of section 5.2 is not
built.

The routing logits b start at random, never at zero: with a shared S equal logits make all capsules
equal for ever. The published code draws them anew in every pass, also at inference, so that one
user's vectors differ between calls; here training draws (`routing_init` "per_forward") and serving
uses a fixed b[K, n] that is saved with the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.inputs import UserBatch
from models.layers.dynamic_routing import route
from models.profiles import OF_PROFILE, dense_profile, profile_width
from models.retrieval.interest_model import (
    InterestConfig,
    InterestModel,
)
from models.schema.inputs import How, Reads


@dataclass(frozen=True)
class MINDConfig(InterestConfig):
    """`dynamic_k`: a user with m events has K'_u = max(1, min(K, log2 m)) interests (section 5.3),
    rounded down (5.5), which the paper leaves open.
    """

    iterations: int = 3
    routing_init: Literal["per_forward", "fixed_seeded"] = "per_forward"
    routing_std: float = 1.0
    routing_seed: int = 0
    relu_layer: bool = True
    profile: bool = False
    dynamic_k: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.routing_std <= 0:
            raise ValueError("routing_std must be positive: equal logits make all capsules equal")
        if self.profile and not self.relu_layer:
            raise ValueError("the profile enters through the ReLU layer")


class MIND(InterestModel):
    """z_k = sum_i w_ki S e_i, u_k = squash(z_k), v_k = ReLU(W [u_k; p_u] + c) (section 5.3).

    The readout by the target is `models/layers/interest_readout.py`.
    """

    source = "mind"
    cfg: MINDConfig
    routing_logits: Tensor

    def __init__(self, config: MINDConfig, reads: Reads | None = None) -> None:
        super().__init__(config, reads)
        d = config.width
        self.shared = nn.Linear(d, d, bias=False)
        if config.relu_layer:
            self.capsule_layer = nn.Linear(
                d + (profile_width(self.reads) if config.profile else 0), d
            )
        start = torch.empty(config.interests, config.history)
        self._draw(start, torch.Generator().manual_seed(config.routing_seed))
        self.register_buffer("routing_logits", start)

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
        """V float[B, K, d]. With `dynamic_k` a user's surplus vectors repeat the first, which
        changes no maximum: sending all K to the index equals sending the user's own."""
        batch, n, _ = history.shape
        logits = self.routing_logits[:, :n].expand(batch, -1, -1)
        if generator is not None and self.cfg.routing_init == "per_forward":
            # Drawn on the CPU: the same for every device.
            fresh = torch.empty(batch, self.cfg.interests, n)
            logits = self._draw(fresh, generator).to(history)
        active = self.active(mask) if self.cfg.dynamic_k else None
        votes = self.shared(history)[:, :, None]
        capsules = route(votes, logits, mask, self.cfg.iterations, active)
        if self.cfg.relu_layer:
            if profile is not None:
                every = profile[:, None].expand(-1, capsules.shape[1], -1)
                capsules = torch.cat([capsules, every], dim=2)
            capsules = torch.relu(self.capsule_layer(capsules))
        if active is not None:
            capsules = torch.where(active[:, :, None], capsules, capsules[:, :1])
        return capsules

    def active(self, mask: Tensor) -> Tensor:
        """bool[B, K]: the first K'_u = max(1, min(K, floor(log2 events))) interests of each user.

        Section 5.3. Interest number k (from 1) is in use from 2^k events on, the first always.
        """
        needed = 2 ** torch.arange(1, self.cfg.interests + 1, device=mask.device)
        needed[0] = 0
        return mask.sum(1, keepdim=True) >= needed

    def _draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """b ~ N(0, routing_std^2) (section 5.3), cut at two standard deviations (5.5), in place."""
        std = self.cfg.routing_std
        return nn.init.trunc_normal_(logits, std=std, a=-2 * std, b=2 * std, generator=generator)
