"""MaskNet: published size, the laws of its masks, and that splitting the user off is exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.data.events import Dataset
from models.layers.embedding import log_bucket, share_bucket
from models.layers.instance_guided_mask import (
    FieldNorm,
    InstanceGuidedMask,
    MaskBlock,
    MaskBlockForm,
)
from models.ranking.heads import TaskTowers
from models.ranking.masknet import MaskNetBackbone, MaskNetForm, Variant
from tests.unit.models.ranking.worlds import count, plain_logits, rows, small, spread
from tests.unit.models.users import some_users

SMALL = MaskNetForm(3, width=4, units=6, reduction=1)
FORMS: dict[str, dict[str, Any]] = {
    "paper": {},
    "whole norm": {"emb_norm": "whole"},
    "no embedding norm": {"emb_norm": "off"},
    "Twitter": {"emb_norm": "off", "relu_after_ln": False, "hidden_bias": True},
    "without norms": {"emb_norm": "off", "hidden_norm": False},
    "without masks": {"masked": False},
    "without feed-forward layers": {"feed_forward": False},
}
every_form = pytest.mark.parametrize(
    "form",
    [replace(SMALL, variant=v, **f) for v in ("serial", "parallel") for f in FORMS.values()],
    ids=[f"{v}, {name}" for v in ("serial", "parallel") for name in FORMS],
)


@pytest.mark.parametrize(
    ("fields", "form", "head", "published"),
    [
        (22, {"variant": "serial"}, (), 1_599_901),
        (39, {"variant": "serial"}, (), 2_355_551),
        (39, {"variant": "serial", "reduction": 0.2}, (), 668_249),
        (39, {}, (400, 400, 400), 3_101_491),
        (39, {"blocks": 5}, (400, 400, 400), 4_954_231),
    ],
)
def test_one_task_has_the_published_number_of_parameters(
    fields: int, form: dict[str, Any], head: tuple[int, ...], published: int
) -> None:
    """Section 4.6; what is not given there are the form's defaults: 3 blocks of 400, k=10, r=2."""
    backbone = MaskNetBackbone(MaskNetForm(fields, **form))
    assert count(backbone, TaskTowers(1, backbone.out_width, head)) == published


def test_three_tasks_have_the_published_number_of_parameters() -> None:
    backbone = MaskNetBackbone(MaskNetForm(39))
    assert count(backbone, TaskTowers(3, backbone.out_width, (256, 128))) == 3_321_333


def test_reduction_changes_only_the_two_mask_matrices() -> None:
    def sizes(reduction: float) -> dict[str, torch.Size]:
        block = MaskBlock(12, 12, MaskBlockForm(7, reduction))
        return {name: p.shape for name, p in block.named_parameters()}

    one, two = sizes(1), sizes(2)
    changed = {name for name in one if one[name] != two[name]}
    assert changed == {"mask.aggregate.weight", "mask.aggregate.bias", "mask.project.weight"}


def test_masks_depend_on_the_embedding_and_are_not_bounded() -> None:
    torch.manual_seed(0)
    mask = InstanceGuidedMask(12, 12, 2)
    a, b = mask(torch.randn(50, 12) * 5), mask(torch.randn(50, 12) * 5)
    assert not torch.isclose(a, b).any(dim=1).all()
    assert a.min() < 0
    assert a.max() > 1


def test_every_block_is_masked_by_the_embedding() -> None:
    """In the serial network too: changing the embedding changes the masks of later blocks."""
    torch.manual_seed(0)
    backbone = MaskNetBackbone(replace(SMALL, variant="serial"))
    one, two = torch.randn(1, 12), torch.randn(1, 12)
    fixed = torch.randn(1, 6)
    for block in list(backbone.blocks)[1:]:
        assert isinstance(block, MaskBlock)
        assert block.mask is not None
        assert not torch.allclose(block(block.mask(one), fixed), block(block.mask(two), fixed))


def test_a_block_norms_before_its_relu_and_has_no_hidden_bias() -> None:
    torch.manual_seed(0)
    block = MaskBlock(6, 6, MaskBlockForm(32, 1))
    out = block(torch.ones(20, 6), torch.randn(20, 6))
    assert block.hidden is not None
    assert block.hidden.bias is None
    assert (out >= 0).all()
    # ReLU after a zero-mean norm cuts a good part of the units; the norm of a ReLU would not.
    assert 0.2 < float((out == 0).double().mean()) < 0.8


def test_each_field_is_normed_by_itself() -> None:
    norm = FieldNorm(3, 8)
    fields = torch.randn(5, 3, 8) * torch.tensor([1.0, 100.0, 0.1])[:, None] + 7
    out = norm(fields)
    torch.testing.assert_close(out.mean(-1), torch.zeros(5, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(norm(fields[:, 1:], start=1), out[:, 1:])


def _published(net: MaskNetBackbone, form: MaskNetForm, fields: Tensor) -> Tensor:
    """Section 4.3 with the switches of 4.5, layer norms written out."""

    def normal(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    embedding, value = fields.flatten(1), fields
    if net.norm is not None:
        value = normal(fields) * net.norm.gain + net.norm.bias
    value = value.flatten(1)
    if net.whole_norm is not None:
        value = normal(value) * net.whole_norm.weight + net.whole_norm.bias
    out: list[Tensor] = []
    for block in net.blocks:
        each: Any = block
        inner = value if form.variant == "parallel" or not out else out[-1]
        if form.masked:
            first, second = each.mask.aggregate, each.mask.project
            hidden = torch.relu(embedding @ first.weight.T + first.bias)
            inner = (hidden @ second.weight.T + second.bias) * inner
        if form.feed_forward:
            inner = inner @ each.hidden.weight.T
            inner = inner + each.hidden.bias if form.hidden_bias else inner
            inner = normal(inner) * each.norm.weight + each.norm.bias if form.hidden_norm else inner
            inner = torch.relu(inner) if form.relu_after_ln else inner
        out.append(inner)
    return torch.cat(out, dim=1) if form.variant == "parallel" else out[-1]


@every_form
def test_the_network_is_that_of_the_equations(form: MaskNetForm) -> None:
    net, fields = spread(MaskNetBackbone(form)), torch.randn(6, 3, 4)
    found = net(fields)
    assert found.shape == (6, net.out_width)
    torch.testing.assert_close(found, _published(net, form, fields), atol=1e-4, rtol=1e-4)


@every_form
def test_a_backbone_in_two_parts_equals_the_whole(form: MaskNetForm) -> None:
    net, user, rest = spread(MaskNetBackbone(form)), torch.randn(2, 1, 4), torch.randn(5, 2, 4)
    row_user = torch.tensor([1, 0, 0, 1, 1])
    whole = net(torch.cat([user[row_user], rest], dim=1))
    split = net.from_parts(net.user_part(user), row_user, rest)
    torch.testing.assert_close(split, whole, atol=1e-4, rtol=1e-4)


@every_form
def test_eager_equals_exported(form: MaskNetForm) -> None:
    net = spread(MaskNetBackbone(form)).eval()
    rows = torch.export.Dim("rows", min=2, max=64)
    exported = torch.export.export(net, (torch.randn(4, 3, 4),), dynamic_shapes=[{0: rows}])
    more = torch.randn(9, 3, 4)
    torch.testing.assert_close(exported.module()(more), net(more), atol=1e-5, rtol=1e-5)


def test_switches_cost_the_parameters_that_they_name() -> None:
    form = replace(SMALL, blocks=2)
    size = {
        "": count(MaskNetBackbone(form)),
        "whole": count(MaskNetBackbone(replace(form, emb_norm="whole"))),
        "off": count(MaskNetBackbone(replace(form, emb_norm="off"))),
        "bias": count(MaskNetBackbone(replace(form, hidden_bias=True))),
        "dropout": count(MaskNetBackbone(replace(form, dropout=0.5))),
        "relu": count(MaskNetBackbone(replace(form, relu_after_ln=False))),
    }
    difference = {name: n - size[""] for name, n in size.items()}
    assert difference == {
        "": 0, "whole": 0, "off": -2 * 12, "bias": 2 * form.units, "dropout": 0, "relu": 0
    }  # fmt: skip


@pytest.mark.parametrize("variant", ["serial", "parallel"])
def test_in_training_every_block_drops_out_what_follows_its_relu(variant: Variant) -> None:
    """A unit is 0 or as in evaluation over 1 - p, given the block's input; also of all fields."""
    torch.manual_seed(0)
    net = spread(MaskNetBackbone(replace(SMALL, variant=variant, units=200, dropout=0.25)))
    seen: list[tuple[Any, Tensor, Tensor, Tensor]] = []

    def watch(block: Any, inputs: tuple[Tensor, Tensor], out: Tensor) -> None:
        seen.append((block, *inputs, out))

    hooks = [block.register_forward_hook(watch) for block in net.blocks]
    net.train()(torch.randn(20, 3, 4))
    for hook in hooks:
        hook.remove()
    assert len(seen) == 3
    net.eval()
    for block, mask, value, out in seen:
        kept = block(mask, value)
        torch.testing.assert_close(out, torch.where(out > 0, kept / 0.75, 0.0))
        assert float((out > 0).sum() / (kept > 0).sum()) == pytest.approx(0.75, abs=0.05)


def test_without_the_relu_a_block_puts_out_its_layer_norm() -> None:
    out = MaskBlock(6, 6, MaskBlockForm(32, 1, relu_after_ln=False))(
        torch.ones(20, 6), torch.randn(20, 6)
    )
    torch.testing.assert_close(out.mean(1), torch.zeros(20), atol=1e-5, rtol=0)
    assert out.min() < -0.5


def test_without_feed_forward_layers_a_serial_network_is_a_product_of_masks() -> None:
    net = spread(MaskNetBackbone(replace(SMALL, variant="serial", feed_forward=False)))
    fields = torch.randn(5, 3, 4)
    product = net.norm(fields).flatten(1)
    for block in net.blocks:
        product = product * block.mask(fields.flatten(1))
    torch.testing.assert_close(net(fields), product)
    assert net.out_width == 12
    with pytest.raises(ValueError, match="do nothing"):
        MaskBlockForm(8, masked=False, feed_forward=False)


def test_switches_change_the_weights_that_they_name(data: Dataset) -> None:
    plain = small("masknet", data.items).network.backbone.state_dict()
    block = {"mask.aggregate.weight", "mask.aggregate.bias", "mask.project.weight",
             "mask.project.bias", "hidden.weight", "norm.weight", "norm.bias"}  # fmt: skip
    assert set(plain) == {
        "norm.gain", "norm.bias", *(f"blocks.{i}.{name}" for i in range(3) for name in block)
    }  # fmt: skip
    switched = small("masknet", data.items, emb_norm="whole", hidden_bias=True, dropout=0.1)
    assert set(switched.network.backbone.state_dict()) - set(plain) == {
        "whole_norm.weight", "whole_norm.bias", *(f"blocks.{i}.hidden.bias" for i in range(3))
    }  # fmt: skip


@pytest.mark.parametrize("variant", ["serial", "parallel"])
@pytest.mark.parametrize("switches", [{}, {"emb_norm": "whole"}, {"masked": False}])
def test_a_model_of_either_variant_splits_the_user_off(
    switches: dict[str, Any], variant: Variant, data: Dataset
) -> None:
    n = len(data.items)
    model = spread(small("masknet", data.items, variant=variant, **switches))
    batch, arguments = some_users(3, n), rows(n)
    logits = model(batch, *arguments)
    assert logits.std(0).max() > 1e-3
    expected = plain_logits(model, batch, arguments)
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)


def test_buckets_are_monotone_and_within_their_tables() -> None:
    values = torch.tensor(np.concatenate([[0], np.geomspace(1e-3, 1e12, 300)]))
    buckets = log_bucket(values, 24, 2)
    assert buckets[0] == 0
    assert buckets.max() == 23
    assert (buckets.diff() >= 0).all()
    part = torch.arange(0, 101.0)
    shares = share_bucket(part, torch.full_like(part, 100.0), 20)
    assert (shares.diff() >= 0).all()
    assert int(shares.min()) >= 0
    assert int(shares.max()) <= 19
    assert int(share_bucket(torch.zeros(1), torch.zeros(1), 20)) == 10
