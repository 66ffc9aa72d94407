"""MLCC and MC-MLCC: published sizes, the degree of their crossings, the laws of their channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.data.events import Dataset
from models.layers.layered_crossing import (
    FieldGate,
    GlobalCompressor,
    LayeredCrossing,
    LocalCompressor,
    channels_of,
)
from models.ranking.heads import TaskTowers
from models.ranking.mlcc import MLCCBackbone, MLCCForm
from tests.unit.models.ranking.worlds import count, rows, small, spread
from tests.unit.models.users import some_users

HEAD = (256, 128, 64, 32)
SMALL = MLCCForm(5, width=4, channels=3, heads=2, dims=(3, 2), local_width=6)


def _size(form: MLCCForm) -> int:
    backbone = MLCCBackbone(form)
    return count(backbone, TaskTowers(1, backbone.out_width, HEAD, dropout=0.2))


@pytest.mark.parametrize(
    ("fields", "dims", "published"),
    [
        (39, (4, 1), (305_893, 486_853, 667_813, 848_773)),
        (22, (4, 1), (191_174, 293_254, 395_334, 497_414)),
        (17, (2, 1), (119_434, 160_234, 201_034, 241_834)),
    ],
)
def test_parameters_equal_the_published_numbers(
    fields: int, dims: tuple[int, ...], published: tuple[int, ...]
) -> None:
    sizes = [_size(MLCCForm(fields, channels=s, dims=dims)) for s in (1, 2, 3, 4)]
    assert tuple(sizes) == published


def test_parameters_of_the_controls_and_of_each_part() -> None:
    assert _size(MLCCForm(39, width=64, channels=1)) == 2_746_981
    assert _size(MLCCForm(39, width=4, channels=4)) == 204_805
    one = MLCCBackbone(MLCCForm(39, channels=1))
    assert one.gate is not None
    parts = (one.compress, one.local, one.gate, TaskTowers(1, one.out_width, HEAD))
    assert [count(part) for part in parts] == [169_728, 11_232, 1_540, 123_393]


def test_initial_weights_have_the_published_spread() -> None:
    one = MLCCBackbone(MLCCForm(39, channels=1))
    assert one.compress.weight.std().item() == pytest.approx(0.047, rel=0.03)
    assert one.local.weight.std().item() == pytest.approx(0.058, rel=0.03)


def _published(net: MLCCBackbone, form: MLCCForm, fields: Tensor) -> Tensor:
    """Steps 1 to 6 of section 5.3 for one row after the other, by loops."""
    out = []
    e = form.width
    shapes = list(zip([e, *form.dims], form.dims, strict=False))
    for x in fields:
        columns = []
        for s in range(form.channels):
            part = x[:, s * e : (s + 1) * e]
            matrix = net.compress.weight[s].flatten(0, 1)
            generated = (part.flatten() @ matrix).view(form.heads, -1)
            for theta in generated:
                z, at, of_head = part, 0, []
                for p, (a, b) in enumerate(shapes, 1):
                    z = z @ theta[at : at + a * b].view(a, b)
                    at += a * b
                    if p in form.concat or p == len(shapes):
                        of_head.append(z)
                columns += of_head
        if form.raw_concat:
            columns.append(x)
        r = torch.cat(columns, dim=1)
        y = torch.stack([r[f] @ net.local.weight[0, f] for f in range(form.fields)])
        gate: Any = net.gate
        hidden = torch.relu(gate.squeeze(y.mean(1)))
        normal = (hidden - hidden.mean()) / (hidden.var(unbiased=False) + 1e-5).sqrt()
        out.append((torch.sigmoid(gate.excite(normal))[:, None] * y).flatten())
    return torch.stack(out)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_network_is_that_of_the_equations(channels: int, raw: bool) -> None:
    form = replace(SMALL, channels=channels, raw_concat=raw)
    net, fields = spread(MLCCBackbone(form)), torch.randn(6, 5, 4 * channels)
    torch.testing.assert_close(net(fields), _published(net, form, fields), atol=1e-4, rtol=1e-4)


def _degree(dims: tuple[int, ...], **switches: Any) -> tuple[Tensor, Tensor]:
    """The crossed columns of X and of 2 X, the last layer's only."""
    crossing = LayeredCrossing(4, dims, **switches)
    compress = GlobalCompressor(2, 5, 4, 3, crossing.size)
    x = torch.randn(6, 5, 8)
    one, two = (channels_of(v, 2) for v in (x, 2 * x))
    return crossing(one, compress(one)), crossing(two, compress(two))


def test_one_dynamic_layer_is_exactly_quadratic_and_two_are_cubic() -> None:
    for dims, factor in (((3,), 4), ((3, 2), 8), ((3, 2, 2), 16)):
        one, two = _degree(dims)
        torch.testing.assert_close(two, factor * one)
        assert one.abs().max() > 1e-3


def test_an_activation_between_layers_breaks_the_degree_and_none_follows_the_last() -> None:
    for activation in ("tanh", "sigmoid"):
        one, two = _degree((3, 2), activation=activation)
        assert not torch.allclose(two, 8 * one, rtol=1e-2)
    one, two = _degree((3,), activation="tanh")
    torch.testing.assert_close(two, 4 * one)
    one, two = _degree((3, 2), activation="relu")
    torch.testing.assert_close(two, 8 * one)  # ReLU is homogeneous
    assert (one < 0).any()


def test_a_crossing_puts_out_the_layers_it_is_asked_for() -> None:
    compress = GlobalCompressor(1, 5, 4, 2, 4 * 3 + 3 * 2)
    x = channels_of(torch.randn(6, 5, 4), 1)
    theta = compress(x)
    both = LayeredCrossing(4, (3, 2), concat=(1,))(x, theta).unflatten(3, (2, 5))
    last = LayeredCrossing(4, (3, 2))(x, theta).unflatten(3, (2, 2))
    first = LayeredCrossing(4, (3,))(x, theta[..., :12]).unflatten(3, (2, 3))
    torch.testing.assert_close(both, torch.cat([first, last], dim=-1))
    for wrong in (0, 2):
        with pytest.raises(ValueError, match=r"numbered 1\.\.1"):
            LayeredCrossing(4, (3, 2), concat=(wrong,))


def test_every_channel_sees_its_own_columns_only() -> None:
    net = spread(MLCCBackbone(replace(SMALL, raw_concat=False)))
    x = torch.randn(6, 5, 12)
    other = x.clone()
    other[:, :, 4:8] += 1
    channels = [channels_of(v, 3) for v in (x, other)]
    crossed = [net.crossing(c, net.compress(c)) for c in channels]
    moved = (crossed[0] - crossed[1]).abs().amax((0, 2, 3)) > 1e-4
    assert moved.tolist() == [False, True, False]


def test_mc_mlcc_that_ignores_other_channels_is_mlcc() -> None:
    many = replace(SMALL, raw_concat=False)
    one = replace(many, channels=1)
    wide, narrow = spread(MLCCBackbone(many)), MLCCBackbone(one)
    per_channel = wide.local.crossed_per_group // 3
    with torch.no_grad():
        wide.local.weight[:, :, per_channel:] = 0
        narrow.compress.weight.copy_(wide.compress.weight[:1])
        narrow.local.weight.copy_(wide.local.weight[:, :, :per_channel])
        assert narrow.gate is not None
        assert wide.gate is not None
        narrow.gate.load_state_dict(wide.gate.state_dict())
    x = torch.randn(6, 5, 12)
    torch.testing.assert_close(wide(x), narrow(x[:, :, :4]), atol=1e-5, rtol=1e-5)


@settings(max_examples=20)
@given(st.integers(0, 2), st.permutations(range(3)))
def test_permuting_heads_with_their_local_rows_changes_nothing(
    channel: int, order: list[int]
) -> None:
    torch.manual_seed(0)
    form = replace(SMALL, heads=3)
    net, x = spread(MLCCBackbone(form)), torch.randn(4, 5, 12)
    before = net(x)
    size, width = net.crossing.size, net.crossing.out_width
    with torch.no_grad():
        generated = net.compress.weight[channel].unflatten(2, (3, size))
        net.compress.weight[channel] = generated[:, :, order].flatten(2)
        at = slice(channel * 3 * width, (channel + 1) * 3 * width)
        local = net.local.weight[0, :, at].unflatten(1, (3, width))
        net.local.weight[0, :, at] = local[:, order].flatten(1, 2)
    torch.testing.assert_close(net(x), before, atol=1e-5, rtol=1e-4)


def test_the_sum_of_per_channel_compressors_is_the_shared_one() -> None:
    """Why they are concatenated: summed they would say nothing new."""
    shared, own = LocalCompressor(5, 3 * 8, 3 * 4, 6), LocalCompressor(5, 3 * 8, 3 * 4, 6, groups=3)
    assert count(shared) == count(own)
    with torch.no_grad():
        crossed = own.weight[:, :, :8].transpose(0, 1).flatten(1, 2)
        raw = own.weight[:, :, 8:].transpose(0, 1).flatten(1, 2)
        shared.weight[0] = torch.cat([crossed, raw], dim=1)
    z, x = torch.randn(7, 3, 5, 8), torch.randn(7, 5, 12)
    each = (own.crossed(z) + own.raw(x)).unflatten(2, (3, 6))
    torch.testing.assert_close(each.sum(2), shared.crossed(z) + shared.raw(x))


def test_the_gate_scales_a_field_by_one_number_between_zero_and_one() -> None:
    fields = torch.randn(6, 5, 4)
    ratio = spread(FieldGate(5))(fields) / fields
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))
    assert ((ratio > 0) & (ratio < 1)).all()
    assert ratio.std() > 1e-3


SWITCHES: list[dict[str, Any]] = [
    {},
    {"channels": 1},
    {"per_channel_lc": True},
    {"raw_concat": False},
    {"per_channel_lc": True, "raw_concat": False, "se": False, "dyn_activation": "relu"},
]


@pytest.mark.parametrize("switches", SWITCHES)
def test_splitting_the_user_off_is_exact_and_rows_do_not_mix(switches: dict[str, Any]) -> None:
    form = replace(SMALL, **switches)
    net, e_t = spread(MLCCBackbone(form)), form.channels * form.width
    user, rest = torch.randn(3, 2, e_t), torch.randn(6, 3, e_t)
    row_user = torch.tensor([2, 0, 0, 1, 1, 2])
    whole = net(torch.cat([user[row_user], rest], dim=1))
    assert whole.shape == (6, net.out_width)
    split = net.from_parts(net.user_part(user), row_user, rest)
    torch.testing.assert_close(split, whole, atol=1e-4, rtol=1e-4)
    for i in range(6):
        alone = net(torch.cat([user[row_user[i : i + 1]], rest[i : i + 1]], dim=1))
        torch.testing.assert_close(alone, whole[i : i + 1], atol=1e-4, rtol=1e-4)


def test_the_global_compressor_maps_users_once_per_request(
    data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left per row are the fields of items and what they have in common with the user."""
    n = len(data.items)
    model = small("mc_mlcc", data.items)
    of_user = model.reads.schema.fields("user")
    of_row = model.reads.schema.fields() - of_user
    mapped: list[tuple[int, ...]] = []
    compress = model.network.backbone.compress.forward

    def watched(channels: Tensor, start: int = 0) -> Tensor:
        mapped.append((channels.shape[0], channels.shape[2], start))
        return compress(channels, start)

    monkeypatch.setattr(model.network.backbone.compress, "forward", watched)
    row_user, items, counters = rows(n, 30)
    model.score(model.user_part(some_users(3, n)), row_user, items, counters)
    assert mapped == [(3, of_user, 0), (30, of_row, of_user)]


def test_embeddings_start_with_a_smaller_spread_than_those_of_other_models(data: Dataset) -> None:
    tables = (small(name, data.items).network.tables.table.weight for name in ("mlcc", "dnn"))
    mlcc, dnn = (float(table[1:].detach().std()) for table in tables)
    assert mlcc == pytest.approx(0.01, rel=0.05)
    assert dnn == pytest.approx(0.05, rel=0.05)


def test_dropout_is_of_training_only(data: Dataset) -> None:
    model = small("mlcc", data.items, dropout=0.2).train()
    batch, arguments = some_users(3, len(data.items)), rows(len(data.items))
    assert not torch.equal(model(batch, *arguments), model(batch, *arguments))
    model.eval()
    assert torch.equal(model(batch, *arguments), model(batch, *arguments))


def test_eager_equals_exported() -> None:
    net = spread(MLCCBackbone(SMALL)).eval()
    number = torch.export.Dim("rows", min=2, max=64)
    exported = torch.export.export(net, (torch.randn(4, 5, 12),), dynamic_shapes=[{0: number}])
    more = torch.randn(9, 5, 12)
    torch.testing.assert_close(exported.module()(more), net(more), atol=1e-5, rtol=1e-5)
