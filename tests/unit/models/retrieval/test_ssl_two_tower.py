"""SSL two-tower: the laws of its masks, losses and vectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.stats import chisquare
from torch import nn
from torch.nn import functional

from models.catalogue import ItemTable
from models.data.events import Dataset
from models.data.worlds.films.schema import CLICK, LIKE, SCHEMA
from models.inputs import UserBatch
from models.layers.embedding_tables import Features
from models.layers.feature_mask import mask_sets, mutual_information, pairwise_information
from models.layers.in_batch_softmax import in_batch_softmax
from models.retrieval.ssl_two_tower import RECENT, SSLTwoTower
from models.schema.inputs import HISTORY, reads_of
from tests.artifacts import built
from tests.unit.models import synthetic
from tests.unit.models.ranking.declared import EVERYTHING, LEAST, domain, read
from tests.unit.models.users import nobody, some_users


@pytest.fixture(scope="module")
def data() -> Dataset:
    return synthetic.dataset(users=40)


FIELDS = ("item", "item.year", "item.genres", "item.tags")


def _model(data: Dataset, **changes: object) -> SSLTwoTower:
    sizes = {"field_width": 8, "hidden": (16,), "width": 8} | changes
    model: SSLTwoTower = built("ssl_two_tower", data.items, seed=1, **sizes)
    model.inputs.learn(data.items, some_users(4, len(data.items)))
    model.prepare_training(data.items, data.items.counts[:, 0].astype(np.int64))
    return model.train()


def test_the_item_tower_reads_what_the_domain_declares_for_retrieval(data: Dataset) -> None:
    model = _model(data)
    assert tuple(field.name for field in model.fields) == FIELDS
    of_user = [each.name for each in model.tables.schema.inputs if each.side == "user"]
    found = reads_of(SCHEMA.declaration, SCHEMA.layout, "retrieval", data.items.sizes).sources
    assert of_user == [*(s.input.name for s in found if s.input.side == "user"), RECENT]
    assert {"idle", "user.genres", HISTORY, "liked"} < set(of_user)


def test_mutual_information_by_hand() -> None:
    a = csr_matrix(np.eye(4))
    half = csr_matrix(np.array([[1, 0], [1, 0], [0, 1], [0, 1]], float))
    assert mutual_information(a, half) == pytest.approx(np.log(2))
    assert mutual_information(half, csr_matrix(np.ones((4, 1)))) == pytest.approx(0)
    # A bag of both values: each pair weighs 1/2, so nothing is learned of `half`.
    assert mutual_information(half, csr_matrix(np.ones((4, 2)))) == pytest.approx(0)


def test_masks_hide_half_the_fields_and_never_choose_the_id_as_neighbour(data: Dataset) -> None:
    information = pairwise_information(_model(data).incidence())
    hidden = mask_sets(information, id_field=0)
    assert (hidden.sum(1) == len(FIELDS) // 2).all()
    assert hidden.diagonal().all()
    assert not hidden[1:, 0].any()
    for seed in range(1, len(FIELDS)):
        others = [f for f in range(1, len(FIELDS)) if f != seed]
        best = max(others, key=lambda f, s=seed: information[s, f])
        assert hidden[seed, best]


@pytest.mark.parametrize("k", [3, 4, 5])
def test_the_papers_size_is_a_seed_and_half_of_the_fields(k: int) -> None:
    information = np.arange(k * k, dtype=float).reshape(k, k)
    assert (mask_sets(information, 0, "paper").sum(1) == 1 + k // 2).all()


def test_the_papers_size_is_refused_where_it_would_hide_every_field() -> None:
    with pytest.raises(ValueError, match="hides all of 2 fields"):
        mask_sets(np.zeros((2, 2)), 0, "paper")
    assert mask_sets(np.zeros((2, 2)), 0).tolist() == [[True, False], [False, True]]


def test_among_all_neighbours_a_unique_id_is_everyones_nearest(data: Dataset) -> None:
    information = pairwise_information(_model(data).incidence())
    hidden = mask_sets(information, 0, neighbours="all")
    assert hidden[1:, 0].all()
    assert (hidden.sum(1) == len(FIELDS) // 2).all()


def test_an_items_weight_is_how_often_it_counts() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, (12, 4)).astype(float)
    b = np.where(rng.random((12, 4)) < 0.7, a, 1 - a)
    weight = np.array([0, 1, 2, 3] * 3)
    often = mutual_information(*(csr_matrix(np.repeat(field, weight, axis=0)) for field in (a, b)))
    assert often > 0.01
    assert mutual_information(csr_matrix(a), csr_matrix(b), weight) == pytest.approx(often)


def test_information_in_the_log_is_that_of_the_clicked_items(data: Dataset) -> None:
    """Over the catalogue the year tells the genre; of the clicked films the tag does."""
    table = data.items
    genre, tag = table.ids_of("genres")[:, 0], table.ids_of("tags")[:, 0]
    clicks = np.zeros(len(genre), np.int64)
    for wanted in np.unique(genre[1:]):
        own_tag = np.unique(tag[1:])[wanted % len(np.unique(tag[1:]))]
        clicks[1:] += (genre[1:] == wanted) & (tag[1:] == own_tag)
    features = np.array(table.features)
    features["year"] = np.where(clicks > 0, 2000, 1900 + 10 * genre)
    dated = ItemTable(table.ids, table.keys, features, table.counts, table.vocabularies)
    nearest = {}
    for source in ("corpus", "log"):
        model = _model(data, mi_source=source)
        model.inputs.learn(dated, some_users(4, len(dated)))
        model.prepare_training(dated, clicks)
        hidden = model.hidden_fields[FIELDS.index("item.genres")].tolist()
        nearest[source] = [name for name, hide in zip(FIELDS, hidden, strict=True) if hide]
    assert nearest == {
        "corpus": ["item.year", "item.genres"], "log": ["item.genres", "item.tags"]
    }  # fmt: skip


def test_the_settings_of_masks_reach_the_model(data: Dataset) -> None:
    assert (_model(data, cfm_size="paper").hidden_fields.sum(1) == 3).all()
    assert _model(data, mi_neighbours="all").hidden_fields[1:, 0].all()


def test_a_zero_default_embedding_stays_zero(data: Dataset) -> None:
    model, n = _model(data, default_emb="zero", value_dropout=0.0), len(data.items)
    first, second = model.views(torch.arange(1, n + 1), torch.Generator().manual_seed(0))
    hidden = torch.stack([(view == 0).all(2) for view in (first, second)])
    assert hidden.any(0).all(), "each field is hidden in one view"
    model.loss(some_users(8, n), torch.arange(1, 9), torch.Generator()).backward()
    assert not model.default.any()
    assert model.default.grad is None
    assert _model(data).default.requires_grad


def test_views_are_complementary_and_masked_fields_are_the_default(data: Dataset) -> None:
    model = _model(data, value_dropout=0.0)
    rows = torch.arange(1, len(data.items) + 1)
    whole = model.item_fields(rows)
    seeds = set()
    for draw in range(20):
        first, second = model.views(rows, torch.Generator().manual_seed(draw))
        for field in range(len(FIELDS)):
            shown, hidden = (first, second) if first[0, field].ne(model.default[field]).any() else (
                second, first,
            )  # fmt: skip
            assert torch.equal(hidden[:, field], model.default[field].expand(len(rows), -1))
            assert torch.equal(shown[:, field], whole[:, field])
        seeds.add(tuple(first[0].eq(model.default).all(1).tolist()))
    assert len(seeds) > 1, "the seed field changes from batch to batch"


def test_value_dropout_drops_values_of_bags_only(data: Dataset) -> None:
    model = _model(data)
    rows = torch.arange(1, len(data.items) + 1)
    all_dropped = model.item_fields(rows, 1.0, torch.Generator().manual_seed(0))
    whole = model.item_fields(rows)
    assert torch.equal(all_dropped[:, :2], whole[:, :2])
    assert torch.equal(all_dropped[:, 2:], model.default[2:].expand(len(rows), -1, -1))


def test_the_self_supervised_batch_is_uniform_over_the_catalogue(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, n = _model(data), len(data.items)
    drawn: list[torch.Tensor] = []
    views = model.views

    def recorded(
        rows: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        drawn.append(rows)
        return views(rows, generator)

    monkeypatch.setattr(model, "views", recorded)
    generator = torch.Generator().manual_seed(0)
    only_popular = torch.ones(500, dtype=torch.long)  # what is trained on must not matter
    with torch.no_grad():
        for _ in range(20):
            model.loss(some_users(500, n), only_popular, generator)
    counts = torch.bincount(torch.cat(drawn), minlength=n + 1).numpy()
    assert counts[0] == 0
    assert chisquare(counts[1:]).pvalue > 0.001


def test_self_supervision_leaves_the_query_tower_alone(data: Dataset) -> None:
    model, n = _model(data), len(data.items)
    users, targets = some_users(16, n), torch.randint(1, n + 1, (16,))
    generator = torch.Generator().manual_seed(3)
    with_both = model.loss(users, targets, generator)
    main_only = _model(data, alpha=0.0).loss(users, targets, generator)
    (with_both - main_only).backward()
    assert model.tables.table.weight.grad is not None
    grads = [p.grad.clone() for p in model.query_mlp.parameters() if p.grad is not None]
    model.zero_grad()
    in_batch = in_batch_softmax(
        model.encode_query(users),
        model.encode_fields(model.item_fields(targets)),
        targets,
        model.cfg.temperature,
        model.log_q[targets],
    )
    in_batch.backward()
    for grad, parameter in zip(grads, model.query_mlp.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad)


def test_alpha_zero_is_the_in_batch_softmax_to_the_bit(data: Dataset) -> None:
    model, n = _model(data, alpha=0.0, logq_correction=False), len(data.items)
    users, targets = some_users(16, n), torch.randint(1, n + 1, (16,))
    expected = in_batch_softmax(
        model.encode_query(users),
        model.encode_fields(model.item_fields(targets)),
        targets,
        model.cfg.temperature,
    )
    assert torch.equal(model.loss(users, targets, torch.Generator()), expected)


@pytest.mark.parametrize("masked", [True, False])
def test_in_batch_softmax_by_definition_with_accidental_hits_masked_or_not(masked: bool) -> None:
    torch.manual_seed(0)
    q, x, ids = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([5, 6, 5, 7])
    log_q = torch.log(torch.tensor([0.4, 0.1, 0.4, 0.1]))
    logits = functional.cosine_similarity(q[:, None], x[None], dim=2) / 0.1 - log_q
    terms = []
    for i in range(4):
        columns = [j for j in range(4) if j == i or ids[j] != ids[i] or not masked]
        terms.append(torch.logsumexp(logits[i, columns], 0) - logits[i, i])
    found = in_batch_softmax(q, x, ids, 0.1, log_q, masked)
    torch.testing.assert_close(found, torch.stack(terms).mean())


def test_both_losses_count_accidental_hits_when_told_to(data: Dataset) -> None:
    """All users chose one item, and 300 draws of fewer items repeat some."""
    users, targets = some_users(300, len(data.items)), torch.ones(300, dtype=torch.long)

    def losses(masked: bool) -> tuple[float, float]:
        main, both = (
            _model(data, alpha=alpha, mask_accidental_hits=masked)
            .loss(users, targets, torch.Generator().manual_seed(2))
            .item()
            for alpha in (0.0, 1.0)
        )
        return main, both - main

    assert len(data.items) < 300
    (main, own), (main_with_hits, own_with_hits) = losses(True), losses(False)
    assert main == 0.0
    assert main_with_hits == pytest.approx(np.log(300), rel=0.5)
    assert own_with_hits > own + 1e-3


def test_identity_views_give_the_spread_out_softmax() -> None:
    x = functional.normalize(torch.randn(6, 4), dim=1)
    expected = (torch.logsumexp(x @ x.T / 0.07, 1) - 1 / 0.07).mean()
    torch.testing.assert_close(in_batch_softmax(x, x, torch.arange(6), 0.07), expected)


def test_vectors_are_unit_length_also_for_nobody_and_the_unknown_item(data: Dataset) -> None:
    model = _model(data).eval()
    items = model.item_vectors()
    unknown = model.encode_users(nobody())
    assert items.shape == (len(data.items) + 1, 8)
    assert unknown.shape == (1, 1, 8)
    torch.testing.assert_close(items.norm(dim=1), torch.ones(len(items)))
    torch.testing.assert_close(unknown.norm(dim=2), torch.ones(1, 1))


def test_a_batch_of_users_equals_single_users(data: Dataset) -> None:
    model = _model(data).eval()
    users = some_users(5, len(data.items))
    together = model.encode_users(users)
    for i in range(5):
        alone = UserBatch(*(array[i : i + 1] for array in vars(users).values()))
        torch.testing.assert_close(model.encode_users(alone)[0], together[i])


@pytest.mark.parametrize(("hidden", "width", "count"), [(256, 64, 82_240), (1024, 256, 525_568)])
def test_an_item_tower_of_four_fields_has_the_specified_size(
    data: Dataset, hidden: int, width: int, count: int
) -> None:
    model = _model(data, field_width=64, hidden=(hidden,), width=width)
    assert sum(p.numel() for p in model.item_mlp.parameters()) == count
    assert model.default.numel() == len(FIELDS) * 64


class _Exported(nn.Module):
    """One side of a model as it is exported: L2-normalised, so that cosine is inner product."""

    def __init__(self, model: SSLTwoTower, side: str) -> None:
        super().__init__()
        self.model, self.side = model, side

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self.side == "item":
            vectors = self.model.encode_fields(self.model.item_fields(*inputs))
        else:
            ids, affinity, history, newest, types = inputs
            schema = self.model.tables.schema
            (shares,) = schema.of("weights", "user")
            lists = {shares.name: affinity, HISTORY: history, RECENT: newest}
            users = Features(ids, ids.new_zeros(len(ids), 0).float(), lists, {HISTORY: types})
            vectors = self.model.query_mlp(self.model.tables(users, "user").flatten(1))
        return functional.normalize(vectors, dim=1)


def _tensors(model: SSLTwoTower, users: UserBatch) -> tuple[torch.Tensor, ...]:
    found = model.inputs.user(users).features
    (shares,) = model.tables.schema.of("weights", "user")
    history = found.lists[HISTORY]
    newest = history[:, : model.cfg.recent]
    return found.ids, found.lists[shares.name], history, newest, found.types[HISTORY].long()


@pytest.mark.parametrize("side", ["query", "item"])
def test_the_exported_graph_answers_as_the_model_and_draws_nothing(
    data: Dataset, side: str
) -> None:
    model, n = _model(data).eval(), len(data.items)
    few, more = some_users(4, n), some_users(4, n, seed=1)
    inputs, others, expected = (
        ((torch.arange(4),), (torch.arange(4) * 7,), model.item_vectors()[:28:7])
        if side == "item"
        else (_tensors(model, few), _tensors(model, more), model.encode_users(more)[:, 0])
    )
    exported = torch.export.export(_Exported(model, side), inputs)
    torch.testing.assert_close(exported.module()(*others), expected)
    drawing = [node for node in exported.graph.nodes if "rand" in str(node.target)]
    assert not drawing


def test_the_newest_of_a_history_have_a_mean_of_their_own(data: Dataset) -> None:
    n = len(data.items)
    model = _model(data, recent=2).eval()
    user = some_users(1, n, seed=3)
    history = np.zeros_like(user.history)
    history[0, :6] = [1, 2, 3, 4, 5, 6]
    events = np.where(history > 0, CLICK, 0).astype(np.uint8)
    one = replace(user, history=history, events=events)
    history = history.copy()
    history[0, :6] = [1, 6, 3, 4, 5, 2]
    moved = replace(one, history=history)
    assert not torch.allclose(model.encode_query(one), model.encode_query(moved))
    history = history.copy()
    history[0, :6] = [6, 1, 4, 5, 3, 2]
    torch.testing.assert_close(
        model.encode_query(replace(one, history=history)), model.encode_query(moved)
    )
    liked = events.copy()
    liked[0, 3] = LIKE
    assert not torch.allclose(model.encode_query(replace(one, events=liked)),
                              model.encode_query(one))  # fmt: skip


def test_users_and_items_share_the_embeddings_of_their_values(data: Dataset) -> None:
    """A user's genres are the items' genres, a history's items the items."""
    model, n = _model(data), len(data.items)
    fields = model.item_fields(torch.arange(1, n + 1))
    genre = data.items.ids_of("genres")[1:, 0]
    table = model.tables.values(model.tables.schema.of("weights", "user")[0])
    assert torch.equal(fields[:, FIELDS.index("item.genres")], table[genre - 1])
    items = model.tables.sequence(model.inputs.user(some_users(4, n)).features)
    own = torch.cat([torch.zeros(1, 8), fields[:, 0]])
    assert torch.equal(items.tokens, own[torch.from_numpy(some_users(4, n).history)])


def test_of_the_unknown_item_every_field_is_the_default() -> None:
    own = domain(read(EVERYTHING))
    model = built("ssl_two_tower", own.items, schema=own.schema, field_width=8)
    model.inputs.learn(own.items, own.users)
    model.load_items(own.items)
    fields = model.item_fields(torch.zeros(1, dtype=torch.long))
    assert torch.equal(fields[0], model.default)
    assert len(model.fields) == 17  # all but times, whose vectors would age


@pytest.mark.parametrize("text", [LEAST, EVERYTHING])
def test_masks_and_losses_are_those_of_any_domain(text: str) -> None:
    own = domain(read(text))
    model = built("ssl_two_tower", own.items, schema=own.schema, field_width=8)
    model.inputs.learn(own.items, own.users)
    model.prepare_training(own.items, np.arange(len(own.items) + 1))
    fields = len(model.fields)
    assert model.hidden_fields.diagonal().all()
    assert (model.hidden_fields.sum(1) == max(fields // 2, 1)).all()
    targets, generator = torch.arange(1, 13), torch.Generator().manual_seed(0)
    both = model.loss(own.users, targets, generator).item()
    model.cfg = replace(model.cfg, alpha=0.0)
    main = model.loss(own.users, targets, generator).item()
    assert (both > main) == (fields > 1), "of one field there are no two views"
