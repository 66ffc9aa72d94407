"""YouTube DNN baseline: one vector, a linear map of the mean item embedding.

After "Deep Neural Networks for YouTube Recommendations", RecSys'16, in the reduced form that
multi-interest papers compare with (specification section 2): Linear(d, d) of the masked mean of H.
With `normalise`, a temperature around .1 and logQ it beats the published multi-interest numbers on
Amazon Books: try it before believing in several interests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers.embedding import masked_mean
from models.retrieval.interest_model import InterestConfig, InterestModel
from models.schema.inputs import Reads


@dataclass(frozen=True)
class YouTubeDNNConfig(InterestConfig):
    """`interests` is 1. The normalised form: normalise=True, temperature=0.1."""

    interests: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interests != 1:
            raise ValueError("YouTube DNN has one vector per user")


class YouTubeDNN(InterestModel):
    """v = W mean(H) + b: d^2 + d parameters beside the item table."""

    source = "youtube_dnn"

    def __init__(self, config: YouTubeDNNConfig, reads: Reads | None = None) -> None:
        super().__init__(config, reads)
        self.output = nn.Linear(config.width, config.width)

    def extract(
        self,
        history: Tensor,
        mask: Tensor,
        profile: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        values = history.masked_fill(~mask[:, :, None], 0.0)
        return self.output(masked_mean(values, mask))[:, None]
