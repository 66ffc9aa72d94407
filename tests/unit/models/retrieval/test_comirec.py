"""ComiRec-SA and -DR: published sizes and the laws of specification section 4.8."""

from __future__ import annotations

import pytest
import torch

from models.layers.self_attentive_interests import SelfAttentiveInterests
from models.retrieval.comirec import ComiRecDR, ComiRecDRConfig, ComiRecSA, ComiRecSAConfig
from tests.unit.models.retrieval.worlds import WIDTH, histories, parameters


@pytest.mark.parametrize(
    ("n", "interests", "count"), [(20, 4, 18_948), (50, 4, 20_868), (20, 1, 18_177)]
)
def test_sa_has_the_published_number_of_parameters(n: int, interests: int, count: int) -> None:
    assert parameters(ComiRecSA(ComiRecSAConfig(10, interests=interests, history=n))) == count


@pytest.mark.parametrize(("n", "count"), [(20, 327_680), (50, 819_200)])
def test_dr_has_the_published_number_of_parameters(n: int, count: int) -> None:
    assert parameters(ComiRecDR(ComiRecDRConfig(10, history=n))) == count


def test_the_item_table_of_beauty_has_its_size() -> None:
    model = ComiRecSA(ComiRecSAConfig(12_101))
    assert model.item_table.weight.numel() == 774_528
    assert not model.item_table.weight[0].any()


def test_dropping_the_biases_drops_nothing_else() -> None:
    full, bare = (ComiRecSA(ComiRecSAConfig(10, sa_bias=bias)) for bias in (True, False))
    assert parameters(full) - parameters(bare) == 4 * 64 + 4


def _extractor(**changes: bool) -> SelfAttentiveInterests:
    torch.manual_seed(0)
    return SelfAttentiveInterests(WIDTH, 3, 12, **changes)


def test_attention_sums_to_one_over_events_and_is_zero_on_padding() -> None:
    history, mask = histories(6)
    attention = _extractor().attention(history, mask)
    torch.testing.assert_close(attention.sum(2), torch.ones(6, 3))
    assert not attention.transpose(1, 2)[~mask].any()
    nothing = _extractor().attention(history, torch.zeros_like(mask))
    assert not nothing.any()


def test_positions_change_the_attention_but_are_not_values() -> None:
    history, mask = histories(6)
    extractor = _extractor()
    before = extractor.attention(history, mask)
    with torch.no_grad():
        extractor.position += torch.randn(extractor.position.shape)
    after = extractor.attention(history, mask)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(extractor(history, mask), after @ history)


def test_values_with_positions_are_a_switch() -> None:
    history, mask = histories(6)
    extractor = _extractor(values_with_position=True)
    attention = extractor.attention(history, mask)
    expected = attention @ (history + extractor.position)
    torch.testing.assert_close(extractor(history, mask), expected)


def test_one_event_is_every_interest() -> None:
    history, mask = histories(4)
    mask = torch.arange(12).expand(4, -1) == 0
    interests = _extractor()(history, mask)
    torch.testing.assert_close(interests, history[:, :1].expand(-1, 3, -1))


def test_dr_votes_through_a_matrix_per_position_and_interest() -> None:
    """One routing round by the definition: c = 1/K, so v_k = squash(sum_i W_ik e_i / K)."""
    torch.manual_seed(0)
    model = ComiRecDR(ComiRecDRConfig(10, width=4, interests=2, history=3, iterations=1))
    history, mask = histories(1, n=3, d=4)
    mask[:] = torch.tensor([True, True, False])
    for k in range(2):
        s = (model.weight[0, k] @ history[0, 0] + model.weight[1, k] @ history[0, 1]) / 2
        square = s.square().sum()
        expected = square / (1 + square) * s / torch.sqrt(square + 1e-9)
        torch.testing.assert_close(model.extract(history, mask)[0, k], expected)


def test_dr_starts_from_the_declared_spread() -> None:
    torch.manual_seed(0)
    for std in (1.0, 0.125):
        weight = ComiRecDR(ComiRecDRConfig(10, dr_init_std=std)).weight
        assert weight.std().item() == pytest.approx(std, rel=0.01)
