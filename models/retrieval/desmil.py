"""DESMIL-R: ComiRec-SA trained with sample weights that make the interests independent.

RECONSTRUCTED FROM THE ABSTRACTS of "Improving Multi-Interest Network with Stable Learning", arXiv
2207.07910, and "Deep Stable Multi-Interest Learning for Out-of-distribution Sequential
Recommendation", arXiv 2304.05615. They say that interests shown together become dependent in the
training data, that HSIC measures this, that sample weights are learned to remove it, and that an
attentive module extracts while the single most important interest predicts. The weight learner is
StableNet's idea (CVPR'21, arXiv 2104.07876) on whole interest vectors; random Fourier features are
not confirmed for DESMIL. Specification section 7; no published number may be claimed.

The open questions: (1) base extractor, K, d; (2) number of features, per vector or per dimension,
kernel width; (3) constraint on the weights, inner steps and rate, memory; (4) whether L_D also
trains the network; (5) public data, out-of-distribution construction, metrics, tables; (6) the
industrial lift. Not built: StableNet's memory of earlier batches and its literal variant
(`memory` is off, no `stablenet` switch).

Inference is ComiRec-SA's: neither weights nor random features are published.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.inputs import UserBatch
from models.layers.stable_weights import (
    Objective,
    StableWeights,
    dependence,
    draw_map,
    learn_weights,
)
from models.retrieval.comirec import ComiRecSA, ComiRecSAConfig
from models.schema.inputs import Reads


@dataclass(frozen=True)
class DESMILRConfig(ComiRecSAConfig):
    """Weights are learned from epoch `start_epoch` (0 = from the first batch) on: before, the
    embeddings are noise. `weight_every` 2 learns them for every second batch only."""

    features: int = 64  # D
    inner_steps: int = 10  # T_in
    weight_penalty: float = 0.1  # lambda_w
    weight_objective: Objective = "normalised"
    start_epoch: int = 1
    weight_every: int = 1
    beta_direct: float = 0.0  # weight of L_D(w) in the model's own loss

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.features, self.inner_steps, self.weight_every) < 1 or self.start_epoch < 0:
            raise ValueError("features, inner_steps, weight_every must be positive, start_epoch 0+")


class DESMILR(ComiRecSA):
    """Minimises mean_b(B w_b l_b), w constant and learned anew for each batch."""

    source = "desmil_r"
    cfg: DESMILRConfig
    trained: Tensor

    def __init__(self, config: DESMILRConfig, reads: Reads | None = None) -> None:
        super().__init__(config, reads)
        # Batches and examples trained on: saved, so that a resumed training goes on where it was.
        self.register_buffer("trained", torch.zeros(2, dtype=torch.long))
        self._epoch_examples = 0
        self.last_weights: StableWeights | None = None

    def _prepare_loss(self, train_clicks: np.ndarray) -> None:
        """An epoch is as many examples as there are training clicks."""
        super()._prepare_loss(train_clicks)
        self._epoch_examples = int(train_clicks.sum())

    @property
    def weighting(self) -> bool:
        """Whether the next batch gets learned weights."""
        batches, examples = self.trained.tolist()
        started = examples >= self.cfg.start_epoch * self._epoch_examples
        return started and batches % self.cfg.weight_every == 0

    def loss(self, batch: UserBatch, targets: Tensor, generator: torch.Generator) -> Tensor:
        interests = self.user_vectors(self.rows(batch), generator=generator)
        losses = self.interest_losses(interests, targets, generator)
        weighting = self.weighting
        if self.training:
            self.trained += torch.tensor([1, len(targets)], device=self.device)
        self.last_weights = None
        if not weighting:
            return losses.mean()
        self.last_weights, direct = self.learn_weights(interests, generator)
        weighted = (len(losses) * self.last_weights.weights * losses).mean()
        return weighted + self.cfg.beta_direct * direct if self.cfg.beta_direct else weighted

    def learn_weights(
        self, interests: Tensor, generator: torch.Generator
    ) -> tuple[StableWeights, Tensor]:
        """Detached weights w for interests float[B, K, d], and L_D(w) with gradient to them.

        The random features are drawn once per batch.
        """
        cfg = self.cfg
        # Covariances are differences of nearly equal numbers: float32 also in mixed precision.
        with torch.autocast(interests.device.type, enabled=False):
            interests = interests.float()
            fourier = draw_map(interests, cfg.features, generator)
            features = fourier(interests.detach())
            learned = learn_weights(
                features, cfg.inner_steps, cfg.weight_penalty, cfg.weight_objective
            )
            if not cfg.beta_direct:
                return learned, learned.after
            return learned, dependence(fourier(interests), learned.weights)

    def diagnostics(self, batch: UserBatch) -> dict[str, float]:
        """Also the dependence before and after weighting and ESS / B of the last weighted batch."""
        figures = super().diagnostics(batch)
        if self.last_weights is not None:
            figures["dependence_uniform"] = float(self.last_weights.before)
            figures["dependence_weighted"] = float(self.last_weights.after)
            figures["effective_share"] = float(self.last_weights.effective_share())
        return figures
