"""MaskNet: published size, the laws of its masks, and that splitting the user off is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from models.layers.embedding import log_bucket, share_bucket
from models.layers.instance_guided_mask import FieldNorm, InstanceGuidedMask, MaskBlock
from models.ranking.masknet import MaskNet, MaskNetBackbone, MaskNetConfig, Variant
from tests.unit.models import synthetic
from tests.unit.models.users import nobody, some_users


def _count(*modules: nn.Module) -> int:
    return sum(p.numel() for m in modules for p in m.parameters())


def test_the_serial_network_has_the_published_number_of_parameters() -> None:
    backbone = MaskNetBackbone(22, 10, blocks=3, units=400, reduction=2, variant="serial")
    assert _count(backbone, nn.Linear(400, 1)) == 1_599_901


def test_the_parallel_network_has_the_published_number_of_parameters() -> None:
    backbone = MaskNetBackbone(39, 10, blocks=3, units=400, reduction=2, variant="parallel")
    towers = [
        nn.Sequential(nn.Linear(1200, 256), nn.Linear(256, 128), nn.Linear(128, 1))
        for _ in range(3)
    ]
    assert _count(backbone, *towers) == 3_321_333


def test_reduction_changes_only_the_two_mask_matrices() -> None:
    def sizes(reduction: float) -> dict[str, torch.Size]:
        block = MaskBlock(12, 12, 7, reduction)
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
    backbone = MaskNetBackbone(3, 4, blocks=3, units=6, reduction=1, variant="serial")
    one, two = torch.randn(1, 12), torch.randn(1, 12)
    fixed = torch.randn(1, 6)
    for block in list(backbone.blocks)[1:]:
        assert isinstance(block, MaskBlock)
        assert not torch.allclose(block(block.mask(one), fixed), block(block.mask(two), fixed))


def test_a_block_norms_before_its_relu_and_has_no_hidden_bias() -> None:
    torch.manual_seed(0)
    block = MaskBlock(6, 6, 32, 1)
    out = block(torch.ones(20, 6), torch.randn(20, 6))
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


@pytest.mark.parametrize("variant", ["serial", "parallel"])
def test_split_equals_whole_and_rows_do_not_mix(variant: Variant) -> None:
    torch.manual_seed(0)
    data = synthetic.dataset(users=40)
    n = len(data.items)
    model = MaskNet(MaskNetConfig(n, width=4, units=12, tower=(8,), variant=variant)).eval()
    model.load_items(data.items)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    users = some_users(3, n)
    row_user = torch.tensor([0, 0, 1, 2, 2, 2])
    rows = torch.tensor([1, 0, 5, n, 2, 0])
    counters = torch.rand(6, 3) * 20
    part = model.user_part(users)
    scores = model.score(part, row_user, rows, counters)
    whole = torch.sigmoid(model(users, row_user, rows, counters))
    assert scores.shape == (6, 2)
    assert scores.std() > 1e-3
    torch.testing.assert_close(scores, whole, atol=1e-5, rtol=1e-4)
    for i in range(6):
        one = slice(i, i + 1)
        alone = model.score(part, row_user[one], rows[one], counters[one])
        torch.testing.assert_close(alone, scores[one], atol=1e-5, rtol=1e-4)


def test_nobody_and_an_unknown_item_get_a_probability() -> None:
    data = synthetic.dataset(users=40)
    model = MaskNet(MaskNetConfig(len(data.items))).eval()
    model.load_items(data.items)
    zero = torch.zeros(1, dtype=torch.long)
    scores = model.score(model.user_part(nobody()), zero, zero, torch.zeros(1, 3))
    assert ((scores > 0) & (scores < 1)).all()


def test_unknown_labels_carry_no_loss() -> None:
    model = MaskNet(MaskNetConfig(5, width=4, units=8))
    logits = torch.tensor([[0.3, -2.0], [1.0, 4.0]])
    labels = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    known = torch.tensor([[True, True], [True, False]])
    expected = (
        nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels[:, 0])
        + nn.functional.binary_cross_entropy_with_logits(logits[:1, 1], labels[:1, 1])
    )  # fmt: skip
    torch.testing.assert_close(model.loss(logits, labels, known), expected)


def test_a_model_refuses_a_table_of_another_size() -> None:
    with pytest.raises(ValueError, match="table of"):
        MaskNet(MaskNetConfig(3)).load_items(synthetic.dataset(users=40).items)


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
