"""HCN-R: sizes, the laws of specification section 6.8, and every switch."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from models.layers.hierarchical_interests import HierarchicalInterests, InterestRefinement
from models.layers.interest_readout import overlap_penalty
from models.retrieval.comirec import ComiRecSA, ComiRecSAConfig
from models.retrieval.hcn import HCNR, HCNRConfig
from tests.unit.models.retrieval import worlds
from tests.unit.models.retrieval.worlds import ITEMS, READS, TABLE, WIDTH, histories, parameters
from tests.unit.models.users import some_users


def _hcn(**changes: object) -> HCNR:
    model = worlds.model("hcn_r", **changes)
    assert isinstance(model, HCNR)
    return model


def test_it_has_the_specified_number_of_parameters() -> None:
    assert parameters(HierarchicalInterests(64, 4, 20, layers=2)) == 51_844
    assert parameters(HCNR(HCNRConfig(10, history=20, short_history=20))) == 116_040
    default = HCNR(HCNRConfig(10))
    assert parameters(default) == 117_320
    assert parameters(HCNR(HCNRConfig(10, co_output="both"))) == 117_320 + 8_256
    profile = HCNR(HCNRConfig(10, profile=True), READS)
    of_films = 20 + 1 + 1  # shares of genres, clicks, seconds since the newest event
    assert parameters(profile) == 117_320 + of_films * 64


def test_without_layers_and_co_network_it_is_comirec_sa() -> None:
    """The same weights under other names: vectors, loss and gradients are equal to the bit."""
    model = _hcn(layers=0, co_network="off")
    sizes = {
        k: v for k, v in asdict(model.cfg).items() if k in ComiRecSAConfig.__dataclass_fields__
    }
    comirec = ComiRecSA(ComiRecSAConfig(**sizes)).eval()
    comirec.load_state_dict({
        k.replace("long.initial", "extractor"): v for k, v in model.state_dict().items()
    })  # fmt: skip
    comirec.prepare_training(TABLE, worlds.CLICKS)
    users, targets = some_users(8, ITEMS), torch.arange(1, 9)
    assert torch.equal(model.encode_users(users), comirec.encode_users(users))
    losses = [m.loss(users, targets, torch.Generator().manual_seed(0)) for m in (model, comirec)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("layers", [0, 2])
def test_permuting_the_attention_heads_permutes_the_interests(layers: int) -> None:
    model, (history, mask) = _hcn(layers=layers), histories(6)
    before = model.extract(history, mask)
    permutation = torch.tensor([2, 0, 1])
    with torch.no_grad():
        for extractor in (model.long, model.short):
            heads = extractor.initial.heads
            heads.weight.copy_(heads.weight[permutation])
            heads.bias.copy_(heads.bias[permutation])
    torch.testing.assert_close(model.extract(history, mask), before[:, permutation])
    assert not torch.allclose(before, before[:, permutation])


@pytest.mark.parametrize("co_output", ["long", "both"])
def test_an_empty_short_history_leaves_the_long_path(co_output: str) -> None:
    model, (history, mask) = _hcn(co_output=co_output), histories(6)
    short, none = history[:, :4], torch.zeros(6, 4, dtype=torch.bool)
    joined, centres = model.extract_pair(history, mask, short, none)
    long = model.long(history, mask)
    copies = 1 if co_output == "long" else 2
    assert torch.equal(joined, torch.cat([long] * copies, dim=1))
    assert torch.equal(centres[0], long)
    with_short, _ = model.extract_pair(history, mask, short, mask[:, :4])
    assert not torch.allclose(with_short, joined)


def test_one_user_without_short_history_does_not_change_the_others() -> None:
    model, (history, mask) = _hcn(), histories(6)
    short_mask = mask[:, :4].clone()
    whole, _ = model.extract_pair(history, mask, history[:, :4], short_mask)
    short_mask[2] = False
    part, _ = model.extract_pair(history, mask, history[:, :4], short_mask)
    others = torch.arange(6) != 2
    torch.testing.assert_close(part[others], whole[others])
    assert not torch.allclose(part[2], whole[2])


def test_attention_rows_sum_to_one_over_events_and_are_zero_on_padding() -> None:
    torch.manual_seed(0)
    layer, (history, mask) = InterestRefinement(WIDTH), histories(6)
    attention = layer.attention(torch.randn(6, 3, WIDTH), history, mask)
    torch.testing.assert_close(attention.sum(2), torch.ones(6, 3))
    assert not attention.transpose(1, 2)[~mask].any()


def test_a_refinement_by_definition_competes_over_interests() -> None:
    torch.manual_seed(0)
    layer, (history, mask) = InterestRefinement(WIDTH), histories(2)
    centres, keys = torch.randn(2, 3, WIDTH), history + 1
    user = 1
    q, k = centres[user] @ layer.query.weight.T, keys[user] @ layer.key.weight.T
    won = (q @ k.T / WIDTH**0.5).softmax(dim=0) * mask[user]
    update = won / (won.sum(1, keepdim=True) + 1e-8) @ history[user]
    t = torch.sigmoid(layer.gate(torch.cat([centres[user], update], dim=1)))
    values = history.masked_fill(~mask[:, :, None], 0.0)
    torch.testing.assert_close(
        layer(centres, keys, values, mask)[user], t * centres[user] + (1 - t) * update
    )


def test_the_co_network_by_definition() -> None:
    model = _hcn(co_output="both")
    net = model.co_interest
    generator = torch.Generator().manual_seed(0)
    long, short = torch.randn(2, 1, 3, WIDTH, generator=generator)
    assert net.short_gate is not None
    s = (long[0] @ net.affinity.weight.T) @ short[0].T / WIDTH**0.5
    x_long, x_short = s.softmax(1) @ short[0], s.T.softmax(1) @ long[0]
    g = torch.sigmoid(net.gate(torch.cat([long[0], x_long], 1)))
    h = torch.sigmoid(net.short_gate(torch.cat([short[0], x_short], 1)))
    expected = torch.cat([g * long[0] + (1 - g) * x_long, h * short[0] + (1 - h) * x_short])
    torch.testing.assert_close(net(long, short, torch.tensor([True]))[0], expected)


def test_interests_stay_in_the_span_of_the_events() -> None:
    """No layer norm, no output map: with events in a box, interests are in the box."""
    model, (history, mask) = _hcn(), histories(6)
    vectors = model.extract(history.clamp(1, 2), mask)
    assert (vectors > 0.999).all()
    assert (vectors < 2.001).all()


def test_both_outputs_give_twice_the_interests() -> None:
    model = _hcn(co_output="both")
    assert model.num_interests == 6
    assert model.encode_users(some_users(3, ITEMS)).shape == (3, 6, WIDTH)


def test_ablations_drop_their_parts() -> None:
    full, off, no_short, concat = (
        parameters(_hcn(**changes))
        for changes in ({}, {"co_network": "off"}, {"short": False}, {"co_network": "concat"})
    )
    assert off == no_short == parameters(_hcn().long)
    assert concat == off + 4 * WIDTH, "positions of the short history"
    assert full == off + parameters(_hcn().short) + parameters(_hcn().co_interest)
    assert parameters(_hcn(co_network="concat", short=False)) == off


def test_concatenation_reads_the_short_history_before_the_long_one() -> None:
    model, (history, mask) = _hcn(co_network="concat"), histories(6)
    joined = torch.cat([history[:, :4], history], 1)
    expected = model.long(joined, torch.cat([mask[:, :4], mask], 1))
    torch.testing.assert_close(model.extract(history, mask), expected)


def test_learned_centres_start_equal_for_everyone_and_become_personal() -> None:
    model, (history, mask) = _hcn(init="learned", co_network="off"), histories(6)
    start = model.long.initial(history, mask)
    torch.testing.assert_close(start, start[:1].expand_as(start))
    vectors = model.extract(history, mask)
    assert not torch.allclose(vectors[1], vectors[2])


@pytest.mark.parametrize("div_on", ["output", "centres"])
def test_the_diversity_penalty_is_added_and_reaches_the_extractor(div_on: str) -> None:
    users, targets = some_users(8, ITEMS), torch.arange(1, 9)

    def loss(weight: float) -> torch.Tensor:
        model = _hcn(div_weight=weight, div_on=div_on)
        return model.loss(users, targets, torch.Generator().manual_seed(0))

    model = _hcn()
    history, mask = model.item_table(model.rows(users)), model.rows(users) > 0
    vectors, centres = model.extract_pair(history, mask, history[:, :4], mask[:, :4])
    parts = [vectors] if div_on == "output" else centres
    penalty = sum(overlap_penalty(p) for p in parts)
    torch.testing.assert_close(loss(0.5) - loss(0.0), 0.5 * penalty, atol=1e-5, rtol=1e-4)


def test_the_profile_moves_the_gate() -> None:
    users = some_users(4, ITEMS)
    other = replace(users, profile=users.profile[::-1])
    model = _hcn(profile=True)
    assert not torch.allclose(model.encode_users(users), model.encode_users(other))
    assert torch.equal(_hcn().encode_users(users), _hcn().encode_users(other))


@pytest.mark.parametrize(
    "changes",
    [
        {"short_history": 0},
        {"short_history": 51},
        {"co_output": "both", "co_network": "off"},
        {"profile": True, "short": False},
        {"div_weight": 0.1, "interests": 1},
    ],
)
def test_switches_that_contradict_each_other_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match=r"short_history|co-network|more than one"):
        HCNRConfig(10, **changes)


def test_learned_centres_need_a_layer() -> None:
    with pytest.raises(ValueError, match="layer"):
        _hcn(init="learned", layers=0)
