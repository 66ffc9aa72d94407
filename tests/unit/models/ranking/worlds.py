"""Users, rows and models to test on."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from models import registry
from models.catalogue import ItemTable
from models.data.worlds.films.schema import SCHEMA
from models.inputs import UserBatch
from models.layers.embedding_tables import Candidates, EmbeddingTables, Features
from models.layers.split_linear import Index
from models.ranking.logistic_regression import LinearTerm
from models.ranking.network import Network
from models.schema.compiled import Schema
from tests.artifacts import built

NAMES = registry.names("ranking")
SMALL: dict[str, dict[str, Any]] = {
    "masknet": {"width": 4, "units": 12, "tower": (8,)},
    "infnet": {"width": 4, "head": (8,), "blocks": 2},
    "mlcc": {"channel_width": 4, "heads": 2, "tower": (8,), "dropout": 0.0},
    "mc_mlcc": {
        "channel_width": 4, "channels": 3, "heads": 2, "tower": (8,), "dropout": 0.0,
    },
    "fm": {"width": 4},
    "deepfm": {"width": 4, "hidden": (12, 8), "tower": (8,)},
    "dnn": {"width": 4, "hidden": (12, 8), "tower": (8,)},
    "dcn_v2": {"width": 4, "hidden": (12, 8), "tower": (8,)},
    "din": {"width": 4, "attention": (6,), "hidden": (12, 8), "tower": (8,)},
    "mmoe": {"width": 4, "expert": (12, 8), "tower": (8,)},
    "logistic_regression": {},
}  # fmt: skip


def small(name: str, items: ItemTable, *, schema: Schema = SCHEMA, **settings: Any) -> Any:
    """A small model of a domain, in eval mode."""
    return built(name, items, schema=schema, **(SMALL[name] | settings))


def user(batch: UserBatch, index: int) -> UserBatch:
    """One user of a batch, as a batch."""
    return batch.take(slice(index, index + 1))


def rows(num_items: int, count: int = 6, counters: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Users 0..2, item rows (the first unknown) and counters of `count` rows."""
    row_user = torch.arange(count) * 3 // count
    items = torch.randint(1, num_items + 1, (count,))
    items[0] = 0
    return row_user, items, torch.rand(count, counters) * 20


def count(*modules: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for m in modules for p in m.parameters())


def spread(module: Any, std: float = 0.3) -> Any:
    """The module with weights so large that every part of it shows in the output; what stands for
    nothing stays zero."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=std)
    for part in module.modules():
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            nn.init.zeros_(part.weight[part.padding_idx].detach())
    return module


def plain(network: Network[Any], users: Features, row_user: Index, rows: Candidates) -> Tensor:
    """The logits of the network as published: all fields of a row side by side, nothing split."""
    one: Any = network
    fields = _fields(one, users, row_user, rows)
    match type(one).__name__:
        case "LogisticRegression":
            return _linear(one, users, row_user, rows)
        case "FM":
            return _linear(one.linear, users, row_user, rows) + _products(one, fields)
        case "DeepFM":
            linear = _linear(one.linear, users, row_user, rows)
            return linear + _products(one, fields) + one.head(one.deep(fields.flatten(1)))
        case "DNN":
            return one.head(one.deep(fields.flatten(1)))
        case "DCNV2":
            return one.head(one.backbone(fields.flatten(1)))
        case "MMoE":
            return one.head(one.mixture(fields.flatten(1)))
        case "MaskNet" | "MLCC":
            return one.head(one.backbone(fields))
        case "DIN":
            parts = [fields.flatten(1)]
            for (_, histories), types, attend in zip(
                one.groups, one.types, one.attention, strict=True
            ):
                items = one.tables.sequence(users, histories)
                keys = items.tokens + types(items.types)
                candidate = _embedded(one.tables, histories[0].table, rows)
                parts.append(attend(candidate, keys[row_user], items.keep[row_user]))
            return one.head(one.deep(torch.cat(parts, dim=1)))
        case "INFNet":
            if one.tables.schema.histories:
                items = one.tables.sequence(users)
                tokens, types, keep = items.tokens + one.types(items.types), items.types, items.keep
            else:
                tokens = fields.new_zeros(len(users.ids), 1, fields.shape[2])
                types = torch.zeros(len(users.ids), 1, dtype=torch.long)
                keep = types.bool()
            return one.backbone(fields, tokens[row_user], types[row_user], keep[row_user])
        case name:
            raise AssertionError(f"what is {name}, nothing split? say it here")


def _fields(network: Any, users: Features, row_user: Index, rows: Candidates) -> Tensor:
    return torch.cat([network.user_fields(users)[row_user], network.row_fields(rows)], dim=1)


def _embedded(tables: EmbeddingTables, name: str, rows: Candidates) -> Tensor:
    """The embedding of the one value that each row has of a field."""
    for side, features in (("item", rows.items), ("row", rows.own)):
        names = [each.name for each in tables.schema.of("id", side)]  # type: ignore[arg-type]
        if name in names:
            assert isinstance(features, Features)
            return tables.lookup(tables._of(name, features.ids[:, [names.index(name)]]))[:, 0]
    raise AssertionError(f"rows have no {name}")


def _products(network: Any, fields: Tensor) -> Tensor:
    """The products of all pairs of fields, weighed for each task."""
    pairs = combinations(fields.unbind(1), 2)
    products = sum((a * b for a, b in pairs), torch.zeros_like(fields[:, 0]))
    return products @ network.task_weight.T


def _linear(term: LinearTerm, users: Features, row_user: Index, rows: Candidates) -> Tensor:
    return _fields(term, users, row_user, rows).sum(1) + term.bias


def plain_logits(model: Any, batch: UserBatch, arguments: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """`plain` of a model's declared inputs."""
    row_user, items, counters = arguments
    users = model.inputs.user(batch)
    own = model.inputs.rows(users, row_user, items, counters)
    candidates = Candidates(model.inputs.items(items), own)
    return plain(model.network, users.features, row_user, candidates)
