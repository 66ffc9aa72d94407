"""The same data under other names: from files through import and training to lists, bit by bit."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from models import serving
from models.artifact import current
from models.data.own import dataset as own_dataset
from models.training import replay
from models.training.loop import LoopConfig
from models.training.pipeline import train_all
from tests.unit.models.data.own.domain import T, folder_in, run, write_jsonl
from tests.unit.models.ranking.declared import random_names

DAY_S = 86_400
# @ stands before each name of the domain, and $ before each declared value. (Those that are learned
# keep their texts: equally frequent ones are numbered by their hashes.)
SCHEMA = """\
format: 1
events:
  @shown: {id: 1, role: impression}
  @open: {id: 2, history: true}
  @hire: {id: 3, history: true, upgrades: [@open], value: {unit: EUR}}
user:
  given: {@trade: {type: category, values: [$baker, $welder]}}
  counts: {@open: {half_lives: [none, 7d]}, @hire: {}}
  affinities: {@liking: {of: @field, by: [@open]}}
item:
  display: [@headline]
  fields:
    @field: {type: category, values: [$bakery, $yard]}
    @skills: {type: bag, slots: 3, learned: 20}
    @pay: {type: number, scale: quantiles, buckets: 8}
  counts: {@open: {half_lives: [30d]}}
context: {@hour: {type: number, scale: cyclic, period: 24}}
derived: {@idle: {since: any}, @suits: {match: @liking}, @again: {ratio: [@hire, @open]}}
tasks: {@opens: {event: @open}, @wage: {event: @hire, target: value, given: @opens}}
value: {formula: "@opens + @wage"}
surfaces: {@front: {}}
"""


class Made(NamedTuple):
    """What must not depend on names: rows of trainings, weights, scores, and lists."""

    rows: list[np.ndarray]
    weights: list[torch.Tensor]
    scores: list[torch.Tensor]
    lists: list[list[str]]


def made(folder: Path, rename: Callable[[str], str]) -> Made:
    def named(text: str) -> str:
        return re.sub(r"[@$](\w+)", lambda found: rename(found[1]), text)

    folder_in(folder, named(SCHEMA))
    rng = random.Random(0)
    tables: dict[str, list[dict[str, Any]]] = {"items": [], "users": [], "events": []}
    for i in range(40):
        skills = [f"skill{k}" for k in rng.sample(range(8), 2)]
        tables["items"].append({
            "item_id": f"i{i}", "@field": rename(("bakery", "yard")[i % 2]), "@skills": skills,
            "@pay": 10 + i, "@headline": f"job {i}",
        })  # fmt: skip
    for u in range(30):
        trade = rename(("baker", "welder")[u % 2])
        tables["users"].append({"user_id": f"u{u}", "@trade": trade})
        for _ in range(25):
            at, i = T + rng.randrange(60 * DAY_S), rng.randrange(40)
            one = {"user_id": f"u{u}", "item_id": f"i{i}", "surface": rename("front")}
            more = {"@hour": rng.randrange(24), "time": at, "event": rename("shown")}
            tables["events"].append(one | more)
            if rng.random() < (0.8 if i % 2 == u % 2 else 0.2):
                tables["events"].append(one | more | {"event": rename("open"), "time": at + 60})
                if rng.random() < 0.4:
                    hired = {"event": rename("hire"), "time": at + 90, "value": 10.0 + i}
                    tables["events"].append(one | more | hired)
    for table, found in tables.items():
        rows = [json.loads(named(json.dumps(row))) for row in found]
        file = write_jsonl(folder / f"{table}.jsonl", rows)
        done = run(folder, table, file)  # type: ignore[arg-type]
        assert not done.tally.refusals
    data = own_dataset.load(folder)
    loop = LoopConfig(epochs=1, batch_size=128, learning_rate=3e-3)
    train_all(
        folder / "artifacts", dataset=data, ranking_models=("masknet", "mc_mlcc"),
        retrieval_loop=loop, ranking_loop=loop,
        settings={"ssl_two_tower": {"field_width": 8, "width": 8, "hidden": (16,)}},
    )  # fmt: skip
    examples = replay.replay(data)
    batch = examples.user_batch(np.arange(len(examples) - 8, len(examples)))
    found = Made([], [], [], [])
    for records in (batch.profile, batch.given, batch.context, examples.counters, examples.labels):
        columns = [records] if records.dtype.names is None else [
            records[name] for name in records.dtype.names
        ]  # fmt: skip
        found.rows.extend(columns)
    retrieval = serving.load_retrieval(
        current(folder / "artifacts", "ssl_two_tower"), schema=data.schema
    )
    vectors, items = retrieval.model.encode_users(batch), retrieval.model.item_vectors()
    found.weights.extend(retrieval.model.state_dict().values())
    near = torch.einsum("bkd,nd->bkn", vectors, items).amax(1)[:, 1:]
    found.scores.append(near)
    found.lists.extend([data.items.ids[i + 1] for i in row] for row in near.topk(5).indices)
    for name in ("masknet", "mc_mlcc"):
        model = serving.load_ranking(current(folder / "artifacts", name), schema=data.schema).model
        rows = torch.arange(len(data.items) + 1).repeat(8)
        row_user = torch.arange(8).repeat_interleave(len(data.items) + 1)
        counters = torch.zeros(len(rows), len(model.counters))
        scores = model.score(model.user_part(batch), row_user, rows, counters)
        found.weights.extend(model.state_dict().values())
        found.scores.append(scores)
    return found


def test_the_same_data_under_other_names_give_the_same_rows_weights_and_lists(
    tmp_path: Path,
) -> None:
    one, other = made(tmp_path / "a", str), made(tmp_path / "b", random_names(1))
    for kind in ("rows", "weights", "scores"):
        pairs = list(zip(getattr(one, kind), getattr(other, kind), strict=True))
        assert pairs
        for at, (a, b) in enumerate(pairs):
            assert np.array_equal(np.asarray(a), np.asarray(b)), (kind, at)
    assert one.lists == other.lists
    assert len({tuple(each) for each in one.lists}) > 1
