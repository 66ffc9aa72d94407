"""ComiRec-SA and ComiRec-DR: several interest vectors per user.

"Controllable Multi-Interest Framework for Recommendation", KDD'20, arXiv 2005.09347. SA extracts by
self-attention (eq. 3-4), DR by dynamic routing (eq. 1-2); training reads out the one interest that
fits the target best (eq. 5). Details that the paper leaves open (values without positions, biases,
one routing matrix per position and interest, gradient in the last routing round only) follow the
authors' released code. Specification section 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers.dynamic_routing import route
from models.layers.self_attentive_interests import SelfAttentiveInterests
from models.retrieval.interest_model import InterestConfig, InterestModel
from models.schema.inputs import Reads


@dataclass(frozen=True)
class ComiRecSAConfig(InterestConfig):
    """`sa_bias` keeps the biases of the attention, which ports drop."""

    sa_bias: bool = True
    values_with_pos: bool = False


class ComiRecSA(InterestModel):
    """V = A H, A = softmax over the events of W2' tanh(W1 (H + P)')."""

    source = "comirec_sa"

    def __init__(self, config: ComiRecSAConfig, reads: Reads | None = None) -> None:
        super().__init__(config, reads)
        self.extractor = SelfAttentiveInterests(
            config.width, config.interests, config.history, config.sa_bias, config.values_with_pos
        )

    def extract(
        self,
        history: Tensor,
        mask: Tensor,
        profile: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        return self.extractor(history, mask)


@dataclass(frozen=True)
class ComiRecDRConfig(InterestConfig):
    """`dr_init_std`: 1 in the released code; 1/sqrt(d) keeps the capsules of unit scale."""

    iterations: int = 3
    dr_init_std: float = 1.0


class ComiRecDR(InterestModel):
    """Capsules routed from u_hat_{k|i} = W_{i,k} e_i: bound to its n by a matrix per position."""

    source = "comirec_dr"

    def __init__(self, config: ComiRecDRConfig, reads: Reads | None = None) -> None:
        super().__init__(config, reads)
        n, k, d = config.history, config.interests, config.width
        self.weight = nn.Parameter(torch.randn(n, k, d, d) * config.dr_init_std)
        self.iterations = config.iterations

    def extract(
        self,
        history: Tensor,
        mask: Tensor,
        profile: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        batch, n, _ = history.shape
        votes = torch.einsum("nkde,bne->bnkd", self.weight[:n], history)
        logits = votes.new_zeros(batch, self.weight.shape[1], n)
        return route(votes, logits, mask, self.iterations)
