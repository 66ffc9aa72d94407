"""INFNet's network over tokens: proxies' first values, blocks, heads, and the split of the user.

"INFNet: A Task-aware Information Flow Network for Large-Scale Recommendation Systems", Kuaishou,
arXiv 2508.11565v1; `specs/ranking_models.md` section 3.3. One block is in
`models/layers/infnet_block.py`; where the tokens of Tandem's own features come from is in
`models/ranking/infnet.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.configs import derived
from models.layers.infnet_block import (
    EVERY_PART,
    Attention,
    BlockForm,
    INFNetBlock,
    LiveParts,
    ProxySource,
    Tokens,
    live_parts,
)
from models.layers.mlp import mlp
from models.layers.split_linear import Index, SplitLinear, of_users
from models.ranking.heads import TaskTowers

# How categorical tokens tell the attention which field they are: not at all, or by a learned
# vector of the field that is added to them.
FieldTokens = Literal["raw", "embedding"]
FIELD_STD = 0.15  # of these vectors at the start: not less than what tables start with

# Attention terms of the first block that do not wait for the candidate (section 3.7).
_USER_TERMS = {
    "task": ("sequence",),
    "task_proxy": ("sequence",),
    "sequence_proxy": ("task",),
}


@dataclass(frozen=True)
class INFNetForm:
    """Sizes of the network and the switches of section 3.3; defaults of section 3.5.

    `task_tokens`, `attention` and `gated` are the paper's ablations, whose exact form it does not
    give: all tasks share one task token and their heads read it; for the others see `BlockForm`.

    `field_tokens="embedding"` adds a learned vector of its field to every categorical token, as the
    type embedding does for items. Without it a token of a value that is seldom seen is noise of no
    field, which LayerNorm brings to the size of any other token. The paper does not say how a token
    is made of a field; section 3.6 counts "raw", the value's embedding alone.
    """

    categorical: int  # M: categorical tokens
    types: int  # F: behaviour types of the sequence
    tasks: int
    width: int = 32  # d
    blocks: int = 3  # N
    categorical_proxies: int = 4  # m
    proxies_per_type: int = 1
    task_proxies: int = 2  # N_s
    head: Sequence[int] = (64,)
    proxy_source: ProxySource = "updated"
    residual: bool = True
    heads: int = 1
    out_proj: bool = False
    pgu_layers: int = 2
    phi_layers: int = 1
    prune_last_block: bool = True
    dropout: float = 0.0  # in the heads
    task_tokens: bool = True
    attention: Attention = "cross"
    gated: bool = True
    field_tokens: FieldTokens = "raw"


@dataclass(frozen=True)
class BackboneUser:
    """What B users' own tokens decide before a candidate is known."""

    categorical: Tensor  # float[B, Mu, d], fields' vectors added
    sequence: Tensor  # float[B, L, d]
    keep: Tensor  # bool[B, L]
    proxy_hidden: Tensor  # float[B, m d]: the users' columns of phi_cat's first map
    sequence_proxy: Tensor  # float[B, F, d]
    terms: dict[str, Tensor]  # block 1: attention terms float[B, *, d]


class INFNetBackbone(nn.Module):
    """Logits of tokens: C float[B, M, d], S float[B, L, d] -> float[B, N_task].

    S holds the items of all behaviour types in any order; `types` int[B, L] in 0..F-1 and
    `keep` bool[B, L] go with it. The content of padded places has no effect. The sequence and
    its proxies count for nothing in a row that keeps no item.
    """

    def __init__(self, form: INFNetForm) -> None:
        super().__init__()
        if form.blocks < 2:
            raise ValueError(
                f"INFNet of {form.blocks} block: the proxies of categorical and sequence tokens "
                "reach a head through the next block, so it needs at least 2"
            )
        self.form = form
        d, proxies = form.width, form.categorical_proxies * form.width
        embedded = form.field_tokens == "embedding"
        # An embedding table as far as counts are concerned: one row per field.
        self.field_table = nn.Embedding(form.categorical, d) if embedded else None
        if self.field_table is not None:
            nn.init.normal_(self.field_table.weight, std=FIELD_STD)
        more = [layer for _ in range(form.phi_layers - 1) for layer in _relu_linear(proxies)]
        self.categorical_proxy = SplitLinear(form.categorical * d, proxies)
        self.categorical_proxy_rest = nn.Sequential(*more)
        self.sequence_proxy = nn.ModuleList(
            mlp(d, [d] * (form.phi_layers - 1), d) for _ in range(form.proxies_per_type)
        )
        self.task = nn.Parameter(torch.empty(form.tasks if form.task_tokens else 1, d))
        self.task_proxy = nn.Parameter(torch.empty(form.task_proxies, d))
        nn.init.normal_(self.task, std=0.02)
        nn.init.normal_(self.task_proxy, std=0.02)
        counts = {
            "categorical_proxy": form.categorical_proxies,
            "sequence_proxy": form.types * form.proxies_per_type,
            "task_proxy": form.task_proxies,
        }
        block = derived(BlockForm, form, proxies=counts)
        self.blocks = nn.ModuleList(
            INFNetBlock(block, self._live(i) if form.prune_last_block else EVERY_PART)
            for i in range(form.blocks)
        )
        self.towers = TaskTowers(form.tasks, d, form.head, form.dropout)

    def _live(self, block: int) -> LiveParts:
        return live_parts(block, self.form.blocks, self.form.proxy_source)

    def dead_parameters(self) -> set[str]:
        """Names of the parameters that no logit depends on; none when they are pruned.

        Data-parallel training must not wait for their gradients.
        """
        prefixes = tuple(
            f"blocks.{i}.{stage}.{name}."
            for i in range(self.form.blocks)
            for stage in ("cross", "gate")
            for name in getattr(EVERY_PART, stage) - getattr(self._live(i), stage)
        )
        return {name for name, _ in self.named_parameters() if name.startswith(prefixes)}

    def forward(self, categorical: Tensor, sequence: Tensor, types: Tensor, keep: Tensor) -> Tensor:
        """The network as published; see the class docstring for the arguments."""
        categorical = self._of_fields(categorical, 0)
        hidden = self.categorical_proxy(categorical.flatten(1))
        proxy = self._sequence_proxies(sequence, types, keep)
        return self._run(self._tokens(categorical, sequence, keep, hidden, proxy), {})

    def user_part(
        self, categorical: Tensor, sequence: Tensor, types: Tensor, keep: Tensor
    ) -> BackboneUser:
        """As `forward`, of the users' categorical tokens float[B, Mu, d], which come first in C."""
        categorical = self._of_fields(categorical, 0)
        proxy = self._sequence_proxies(sequence, types, keep)
        hidden = self.categorical_proxy.user_part(categorical.flatten(1))
        tokens = self._tokens(categorical, sequence, keep, hidden, proxy)
        terms = self._first_block().terms(tokens, _USER_TERMS)
        return BackboneUser(categorical, sequence, keep, hidden, proxy, terms)

    def from_parts(self, user: BackboneUser, row_user: Index, rest: Tensor) -> Tensor:
        """As `forward`, for rows of users int64[N] and candidates' tokens float[N, M - Mu, d]."""
        rest = self._of_fields(rest, user.categorical.shape[1])
        hidden = self.categorical_proxy.from_parts(
            of_users(user.proxy_hidden, row_user), rest.flatten(1)
        )
        tokens = self._tokens(
            torch.cat([of_users(user.categorical, row_user), rest], dim=1),
            of_users(user.sequence, row_user),
            of_users(user.keep, row_user),
            hidden,
            of_users(user.sequence_proxy, row_user),
        )
        return self._run(
            tokens, {name: of_users(term, row_user) for name, term in user.terms.items()}
        )

    def _of_fields(self, tokens: Tensor, first: int) -> Tensor:
        """Tokens float[B, n, d] of the n fields from number `first` on, told apart by field."""
        if self.field_table is None:
            return tokens
        return tokens + self.field_table.weight[first : first + tokens.shape[1]]

    def _run(self, tokens: Tokens, known: dict[str, Tensor]) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, known)
            known = {}
        task = tokens.values["task"]
        return self.towers(task if self.form.task_tokens else task[:, 0])

    def _tokens(
        self, categorical: Tensor, sequence: Tensor, keep: Tensor, hidden: Tensor, proxy: Tensor
    ) -> Tokens:
        batch, d = hidden.shape[0], self.form.width
        values = {
            "categorical": categorical,
            "sequence": sequence,
            "task": self.task.expand(batch, -1, -1),
            "categorical_proxy": self.categorical_proxy_rest(hidden).unflatten(1, (-1, d)),
            "sequence_proxy": proxy,
            "task_proxy": self.task_proxy.expand(batch, -1, -1),
        }
        return Tokens(values, keep)

    def _sequence_proxies(self, sequence: Tensor, types: Tensor, keep: Tensor) -> Tensor:
        """S~_a: the sum over the items of type a of phi_seq(item); float[B, F, d]."""
        each = torch.arange(self.form.types, device=types.device)
        member = ((types[..., None] == each) & keep[..., None]).to(sequence.dtype)
        if self.form.phi_layers > 1:
            sums = [torch.einsum("blf,bld->bfd", member, f(sequence)) for f in self.sequence_proxy]
            return torch.cat(sums, dim=1)
        # The sum of a linear map is the map of the sum, with the bias once per item.
        total, items = torch.einsum("blf,bld->bfd", member, sequence), member.sum(1)[..., None]
        maps = [cast(nn.Linear, cast(nn.Sequential, phi)[0]) for phi in self.sequence_proxy]
        sums = [functional.linear(total, phi.weight) + items * phi.bias for phi in maps]
        return torch.cat(sums, dim=1)

    def _first_block(self) -> INFNetBlock:
        block = self.blocks[0]
        assert isinstance(block, INFNetBlock)
        return block


def _relu_linear(width: int) -> list[nn.Module]:
    return [nn.ReLU(), nn.Linear(width, width)]
