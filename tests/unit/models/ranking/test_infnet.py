"""INFNet: the specification's counts and equations, its dead paths, and its serving split."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.data.events import Dataset
from models.data.worlds.films.schema import CLICK, LIKE
from models.ranking.infnet_backbone import INFNetBackbone, INFNetForm
from tests.unit.models.ranking.worlds import count, plain_logits, rows, small, spread
from tests.unit.models.users import some_users

SMALL = INFNetForm(5, 2, 3, width=8, blocks=3, head=(6,), prune_last_block=False)
FORMS = [
    replace(SMALL, proxy_source=source, residual=residual)  # type: ignore[arg-type]
    for source in ("updated", "stale")
    for residual in (True, False)
]
every_form = pytest.mark.parametrize(
    "form", FORMS, ids=lambda f: f"{f.proxy_source}-{'residual' if f.residual else 'literal'}"
)


def _tokens(form: INFNetForm = SMALL, batch: int = 4, length: int = 7) -> tuple[Tensor, ...]:
    """C, S, types and keep; the last row has no history."""
    keep = torch.rand(batch, length) < 0.6
    keep[:, 0], keep[-1] = True, False
    return (
        torch.randn(batch, form.categorical, form.width),
        torch.randn(batch, length, form.width),
        torch.randint(0, form.types, (batch, length)),
        keep,
    )


@pytest.mark.parametrize(
    ("fields", "types", "width", "blocks", "total", "literal", "live"),
    [
        (36, 3, 32, 3, 267_651, 266_499, 245_763),
        (36, 3, 64, 4, 1_201_667, 1_198_595, 1_114_883),
        (89, 4, 32, 3, 487_811, 486_659, 464_899),
    ],
)
def test_parameters_equal_the_published_numbers(
    fields: int, types: int, width: int, blocks: int, total: int, literal: int, live: int
) -> None:
    form = INFNetForm(fields, types, 3, width=width, blocks=blocks, prune_last_block=False)
    assert count(INFNetBackbone(form)) == total
    assert count(INFNetBackbone(replace(form, residual=False))) == literal
    assert count(INFNetBackbone(replace(form, prune_last_block=True))) == live


sizes = st.integers(1, 5)


@settings(max_examples=20)
@given(sizes, sizes, sizes, sizes, sizes, st.integers(2, 4), sizes)
def test_parameters_follow_the_formula(
    fields: int, types: int, tasks: int, m: int, ns: int, blocks: int, width: int
) -> None:
    d = 4 * width
    form = INFNetForm(
        fields, types, tasks, d, blocks, m, task_proxies=ns, prune_last_block=False
    )  # fmt: skip
    gates = sum(p * d * d + d + d * d + d for p in (m, types, ns))
    expected = (
        (fields * d * m * d + m * d) + (d * d + d) + tasks * d + ns * d
        + blocks * (24 * d * d + gates + 12 * d) + tasks * (64 * d + 64 + 65)
    )  # fmt: skip
    backbone = INFNetBackbone(form)
    assert count(backbone) == expected
    dead = backbone.dead_parameters()
    assert sum(p.numel() for n, p in backbone.named_parameters() if n in dead) == (
        12 * d * d + sum(p * d * d + d * d + 2 * d for p in (m, types)) + 8 * d
    )


def _attention(layer: Any, query: Tensor, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
    """CA as printed, row by row over the kept tokens, with the keys and values formed."""
    out = []
    for i in range(len(query)):
        kept = tokens[i] if keep is None else tokens[i][keep[i]]
        if not len(kept):
            out.append(torch.zeros_like(query[i]))
            continue
        q, k, v = layer.query(query[i]), layer.key(kept), layer.value(kept)
        out.append(torch.softmax(q @ k.T / q.shape[1] ** 0.5, dim=1) @ v)
    return torch.stack(out)


def _published(net: INFNetBackbone, c: Tensor, s: Tensor, types: Tensor, keep: Tensor) -> Tensor:
    """Section 3.3 written out, all blocks in full."""
    form = net.form

    def norm(part: Any, value: Tensor, term: Tensor) -> Tensor:
        return part.norm(value + term) if form.residual else term

    def gate(part: Any, tokens: Tensor, proxies: Tensor) -> Tensor:
        gated = tokens * torch.sigmoid(part.unit.gate(proxies.flatten(1)))[:, None]
        return norm(part, tokens, gated)

    batch = len(c)
    cp = net.categorical_proxy(c.flatten(1)).view(batch, form.categorical_proxies, -1)
    phi: Any = net.sequence_proxy[0]
    sp = torch.stack([
        torch.stack([
            sum((phi(s[i, t]) for t in range(s.shape[1]) if keep[i, t] and types[i, t] == a),
                torch.zeros(form.width))
            for a in range(form.types)
        ]) for i in range(batch)
    ])  # fmt: skip
    t, tp = net.task.expand(batch, -1, -1), net.task_proxy.expand(batch, -1, -1)
    for block in net.blocks:
        x: Any = block.cross
        a = x["categorical_proxy"]
        cp2 = norm(a, cp, _attention(a.attend["sequence"], cp, s, keep)
                   + _attention(a.attend["task"], cp, t))  # fmt: skip
        a = x["sequence_proxy"]
        sp2 = norm(a, sp, _attention(a.attend["categorical"], sp, c)
                   + _attention(a.attend["task"], sp, t))  # fmt: skip
        a = x["task_proxy"]
        tp2 = norm(a, tp, _attention(a.attend["categorical"], tp, c)
                   + _attention(a.attend["sequence"], tp, s, keep))  # fmt: skip
        a = x["task"].attend
        term = _attention(a["categorical"], t, c) + _attention(a["sequence"], t, s, keep)
        hat = t + term if form.residual else term
        fresh = form.proxy_source == "updated"
        g: Any = block.gate
        c = gate(g["categorical"], c, cp2 if fresh else cp)
        s = gate(g["sequence"], s, sp2 if fresh else sp)
        t = gate(g["task"], hat, tp2 if fresh else tp)
        cp, sp, tp = cp2, sp2, tp2
    return torch.cat([tower(t[:, i]) for i, tower in enumerate(net.towers)], dim=1)


@every_form
def test_the_network_is_that_of_the_equations(form: INFNetForm) -> None:
    net, tokens = spread(INFNetBackbone(form)), _tokens(form)
    logits = net(*tokens)
    assert logits.std() > 0.05
    torch.testing.assert_close(logits, _published(net, *tokens), atol=1e-4, rtol=1e-4)


@every_form
@pytest.mark.parametrize("blocks", [2, 3, 4])
def test_exactly_the_dead_paths_get_no_gradient(form: INFNetForm, blocks: int) -> None:
    net = INFNetBackbone(replace(form, blocks=blocks))
    net(*_tokens(form)).square().sum().backward()
    without = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == net.dead_parameters()
    last = f"blocks.{blocks - 1}."
    of_last = {
        "cross.categorical_proxy.", "cross.sequence_proxy.", "gate.categorical.", "gate.sequence.",
    }  # fmt: skip
    if form.proxy_source == "stale":
        of_last.add("cross.task_proxy.")
    assert {n for n in without if n.startswith(last)} == {
        n for n, _ in net.named_parameters() if n.startswith(tuple(last + p for p in of_last))
    }
    # A stale gate reads the proxies of the block before: those of the last but one are dead too.
    assert any(not n.startswith(last) for n in without) == (form.proxy_source == "stale")


@every_form
def test_pruning_changes_no_output(form: INFNetForm) -> None:
    whole = spread(INFNetBackbone(form))
    pruned = INFNetBackbone(replace(form, prune_last_block=True))
    missing = pruned.load_state_dict(whole.state_dict(), strict=False)
    assert not missing.missing_keys
    assert set(missing.unexpected_keys) == whole.dead_parameters()
    assert pruned.dead_parameters() == set()
    tokens = _tokens(form)
    torch.testing.assert_close(pruned(*tokens), whole(*tokens), atol=1e-6, rtol=1e-5)


SWITCHES: list[dict[str, Any]] = [
    {},
    {"heads": 2, "out_proj": True},
    {"pgu_layers": 1, "phi_layers": 2},
    {"proxies_per_type": 2},
    {"proxy_source": "stale", "residual": False},
    {"prune_last_block": True, "blocks": 2},
    {"prune_last_block": True, "blocks": 2, "proxy_source": "stale"},
    {"field_tokens": "embedding"},
]


@pytest.mark.parametrize("switches", SWITCHES)
def test_splitting_the_user_off_is_exact(switches: dict[str, Any]) -> None:
    form = replace(SMALL, **switches)
    net = spread(INFNetBackbone(form))
    c, s, types, keep = _tokens(form)
    row_user = torch.tensor([3, 0, 0, 1, 3])
    rest = torch.randn(5, 2, form.width)
    split = net.from_parts(net.user_part(c[:, :3], s, types, keep), row_user, rest)
    whole = net(
        torch.cat([c[row_user, :3], rest], dim=1), s[row_user], types[row_user], keep[row_user]
    )
    assert whole.std() > 1e-3
    torch.testing.assert_close(split, whole, atol=1e-4, rtol=1e-4)


def test_switches_change_the_number_of_parameters_as_they_say() -> None:
    def more(**switches: Any) -> int:
        return count(INFNetBackbone(replace(SMALL, **switches))) - count(INFNetBackbone(SMALL))

    d, m, blocks = SMALL.width, SMALL.categorical_proxies, SMALL.blocks
    assert more(heads=2) == 0
    assert more(out_proj=True) == blocks * 8 * d * d
    assert more(pgu_layers=1) == -blocks * 3 * (d * d + d)
    assert more(phi_layers=2) == (m * d) * (m * d) + m * d + d * d + d
    assert more(field_tokens="embedding") == SMALL.categorical * d
    assert more(proxies_per_type=2) == d * d + d + blocks * SMALL.types * d * d


@every_form
@settings(max_examples=15)
@given(order=st.permutations(range(7)), junk=st.floats(-1e4, 1e4))
def test_neither_the_order_of_items_nor_padding_matters(
    form: INFNetForm, order: list[int], junk: float
) -> None:
    torch.manual_seed(0)
    net = spread(INFNetBackbone(form))
    c, s, types, keep = _tokens(form)
    before = net(c, s, types, keep)
    torch.testing.assert_close(
        net(c, s[:, order], types[:, order], keep[:, order]), before, atol=1e-4, rtol=1e-4
    )
    padded = torch.where(keep[..., None], s, torch.full_like(s, junk))
    other = torch.where(keep, types, (types + 1) % form.types)
    torch.testing.assert_close(net(c, padded, other, keep), before, atol=1e-4, rtol=1e-4)


def test_the_behaviour_type_of_an_item_matters() -> None:
    net = spread(INFNetBackbone(SMALL))
    c, s, types, keep = _tokens()
    moved = net(c, s, 1 - types, keep)
    changed = (moved - net(c, s, types, keep)).abs().amax(1)
    assert (changed[:-1] > 1e-4).all()
    assert changed[-1] == 0  # no history, nothing to have a type


@every_form
def test_a_row_without_history_is_finite_in_value_and_gradient(form: INFNetForm) -> None:
    net = INFNetBackbone(form)
    c, s, types, keep = _tokens(form)
    s.requires_grad_()
    logits = net(c, s, types, torch.zeros_like(keep))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert s.grad is not None
    assert not s.grad.any()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


def test_a_head_reads_its_own_task_token_only() -> None:
    net, tokens = spread(INFNetBackbone(SMALL)), _tokens()
    before = net(*tokens)
    spread(net.towers[1])
    same = torch.isclose(net(*tokens), before).all(0)
    assert same.tolist() == [True, False, True]
    read = torch.randn(4, 3, SMALL.width, requires_grad=True)
    net.towers(read)[:, 2].sum().backward()
    assert read.grad is not None
    assert [bool(read.grad[:, i].any()) for i in range(3)] == [False, False, True]


def test_the_history_is_learned_through_the_task_tokens_alone() -> None:
    """With every gate cut off from its proxies, the tasks' attention still reaches the items."""
    net = INFNetBackbone(SMALL)
    for block in net.blocks:
        for name in ("categorical", "sequence", "task"):
            nn.init.zeros_(block.gate[name].unit.gate[-1].weight)  # type: ignore[index,union-attr]
    c, s, types, keep = _tokens()
    s.requires_grad_()
    net(c, s, types, keep).sum().backward()
    assert s.grad is not None
    assert torch.equal(s.grad.abs().sum(-1) > 0, keep)


def _after_swapping_two_fields(form: INFNetForm) -> tuple[Tensor, Tensor]:
    """Logits before and after, of a network whose proxies of C do not see the fields."""
    torch.manual_seed(0)
    net = spread(INFNetBackbone(form))
    nn.init.zeros_(net.categorical_proxy.weight)
    c, s, types, keep = _tokens(form)
    return net(c, s, types, keep), net(c[:, [1, 0, 2, 3, 4]], s, types, keep)


def test_attention_knows_the_field_of_a_token_by_its_vector_alone() -> None:
    before, after = _after_swapping_two_fields(SMALL)
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-4)
    before, after = _after_swapping_two_fields(replace(SMALL, field_tokens="embedding"))
    assert ((before - after).abs().amax(1) > 1e-3).all()


def test_the_vectors_of_fields_are_added_to_the_tokens() -> None:
    form = replace(SMALL, field_tokens="embedding")
    net, raw = spread(INFNetBackbone(form)), INFNetBackbone(SMALL)
    assert net.field_table is not None
    raw.load_state_dict({k: v for k, v in net.state_dict().items() if k != "field_table.weight"})
    c, s, types, keep = _tokens()
    torch.testing.assert_close(
        net(c, s, types, keep), raw(c + net.field_table.weight, s, types, keep)
    )
    assert not torch.allclose(net(c, s, types, keep), raw(c, s, types, keep), atol=1e-3)


def test_what_is_served_has_no_vectors_of_fields_unless_it_says_so(data: Dataset) -> None:
    table = "network.backbone.field_table.weight"
    assert table not in small("infnet", data.items).state_dict()
    assert table in small("infnet", data.items, field_tokens="embedding").state_dict()


def test_rows_do_not_mix() -> None:
    net, tokens = spread(INFNetBackbone(SMALL)), _tokens()
    together = net(*tokens)
    for i in range(4):
        alone = net(*(t[i : i + 1] for t in tokens))
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-4, rtol=1e-4)


def test_residuals_keep_the_input_visible_at_the_start() -> None:
    """Section 3.3: the literal network begins almost constant over its inputs."""
    form = INFNetForm(8, 2, 2, blocks=3)
    tokens = _tokens(form, batch=64, length=20)
    residual, literal = INFNetBackbone(form), INFNetBackbone(replace(form, residual=False))
    assert residual(*tokens).std(0).min() > 10 * literal(*tokens).std(0).max()


def test_one_block_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        INFNetBackbone(replace(SMALL, blocks=1))


def test_eager_equals_exported() -> None:
    net = spread(INFNetBackbone(replace(SMALL, prune_last_block=True))).eval()
    rows_of = torch.export.Dim("rows", min=2, max=64)
    tokens = _tokens()
    exported = torch.export.export(net, tokens, dynamic_shapes=[{0: rows_of}] * 4)
    more = _tokens(batch=9)
    torch.testing.assert_close(exported.module()(*more), net(*more), atol=1e-5, rtol=1e-5)


def test_histories_have_the_table_of_items_unless_their_own(data: Dataset) -> None:
    n = len(data.items)
    shared, own = (small("infnet", data.items, own_history=flag) for flag in (False, True))
    assert count(own) - count(shared) == n * 4
    batch, arguments = some_users(3, n), rows(n)
    own(batch, *arguments).sum().backward()
    grad = own.network.tables.table.weight.grad
    assert grad is not None
    of_history = grad[-n:].any(1).nonzero().squeeze(1) + 1
    in_history = torch.from_numpy(batch.history).unique()
    assert torch.equal(of_history, in_history[in_history > 0])


def test_the_events_of_a_history_are_tokens_of_different_types(data: Dataset) -> None:
    n = len(data.items)
    model, batch = small("infnet", data.items), some_users(3, n)
    clicked = replace(batch, events=np.where(batch.history > 0, CLICK, 0).astype(np.uint8))
    one, two = (model.user_side(each).network for each in (batch, clicked))
    liked = torch.from_numpy(batch.events == LIKE)
    assert torch.equal(one.keep, torch.from_numpy(batch.history > 0))
    assert torch.equal((one.sequence != two.sequence).any(-1), liked)
    assert model.network.backbone.form.types == 2


def test_a_token_of_a_history_is_its_item_and_its_type(data: Dataset) -> None:
    n = len(data.items)
    model = spread(small("infnet", data.items, own_history=False))
    batch, tables = some_users(3, n), model.network.tables
    items = torch.from_numpy(batch.history)
    of_item = tables.lookup(tables.locate(items, torch.full_like(items, _feature(tables, "item"))))
    kept, found = items > 0, model.user_side(batch).network.sequence
    types = torch.from_numpy(batch.events == LIKE).long()
    assert torch.equal(found[kept], (of_item + model.network.types(types))[kept])


def _feature(tables: Any, name: str) -> int:
    return list(tables._feature).index(name)


def test_without_the_means_of_histories_they_are_no_categorical_tokens(data: Dataset) -> None:
    means, none = (small("infnet", data.items, pool_histories=flag) for flag in (True, False))
    pools = len(means.reads.schema.of("pool"))
    assert pools == 2
    fields = [model.network.backbone.form.categorical for model in (means, none)]
    assert fields == [means.reads.schema.fields(), means.reads.schema.fields() - pools]


@pytest.mark.parametrize(
    "switch",
    [
        {"task_tokens": False},
        {"gated": False},
        {"attention": "mean"},
        {"residual": False, "proxy_source": "stale"},
        {"heads": 2, "out_proj": True},
        {"own_history": True, "pool_histories": False},
        {"field_tokens": "embedding"},
    ],
)
def test_a_model_with_other_switches_reads_its_rows_and_splits_the_user_off(
    switch: dict[str, Any], data: Dataset
) -> None:
    n = len(data.items)
    model = spread(small("infnet", data.items, **switch))
    batch, arguments = some_users(3, n), rows(n)
    logits = model(batch, *arguments)
    assert logits.std(0).max() > 1e-3
    expected = plain_logits(model, batch, arguments)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
