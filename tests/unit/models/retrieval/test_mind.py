"""MIND: size, the trap of equal routing logits, stable serving, K per user."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.inputs import UserBatch
from models.retrieval.mind import MIND, MINDConfig
from tests.unit.models.retrieval import worlds
from tests.unit.models.retrieval.worlds import ITEMS, histories, parameters
from tests.unit.models.users import some_users


def _mind(**changes: object) -> MIND:
    model = worlds.model("mind", **changes)
    assert isinstance(model, MIND)
    return model


def test_the_published_variant_has_its_number_of_parameters() -> None:
    assert parameters(MIND(MINDConfig(10))) == 8_256
    assert parameters(MIND(MINDConfig(10, relu_layer=False))) == 64 * 64


def test_equal_routing_logits_make_all_capsules_equal_for_ever() -> None:
    model, (history, mask) = _mind(), histories(6)
    model.routing_logits.zero_()
    equal = model.extract(history, mask)
    torch.testing.assert_close(equal, equal[:, :1].expand_as(equal))
    different = _mind().extract(history, mask)
    assert not torch.allclose(different[1:, 0], different[1:, 1])


def test_serving_is_deterministic_and_training_redraws() -> None:
    model, (history, mask) = _mind(), histories(6)
    assert torch.equal(model.extract(history, mask), model.extract(history, mask))
    generator = torch.Generator().manual_seed(0)
    first, second = (model.extract(history, mask, generator=generator) for _ in range(2))
    assert not torch.allclose(first, second)
    fixed = _mind(routing_init="fixed_seeded")
    assert torch.equal(fixed.extract(history, mask, generator=generator),
                       fixed.extract(history, mask))  # fmt: skip


def test_the_served_logits_are_of_the_seed_and_travel_with_the_weights() -> None:
    one, same, other = (_mind(routing_seed=s).routing_logits for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert "routing_logits" in _mind().state_dict()
    logits = MIND(MINDConfig(10, history=2000, routing_std=5.0)).routing_logits
    assert logits.abs().max() <= 10
    # A normal cut at two standard deviations has .880 of its spread.
    assert logits.std().item() == pytest.approx(5 * 0.880, rel=0.05)


@pytest.mark.parametrize("interests", [1, 4, 7])
def test_the_number_of_interests_follows_the_history(interests: int) -> None:
    model = _mind(interests=interests, dynamic_k=True, history=50)
    for events in range(1, 51):
        mask = torch.arange(50)[None] < events
        expected = max(1, min(interests, int(np.floor(np.log2(events)))))
        active = model.active(mask)[0]
        assert active.tolist() == [True] * expected + [False] * (interests - expected)


def test_surplus_interests_repeat_the_first_and_change_no_score() -> None:
    model = _mind(dynamic_k=True)
    users = some_users(8, ITEMS)
    vectors, items = model.encode_users(users), model.item_vectors()
    active = model.active(model.rows(users) > 0)
    assert not active.all()
    own = vectors.masked_fill(~active[:, :, None], float("nan"))
    scores = torch.einsum("bkd,nd->bkn", own, items).nan_to_num(-torch.inf).amax(1)
    torch.testing.assert_close(torch.einsum("bkd,nd->bkn", vectors, items).amax(1), scores)
    # A user with one event: the one interest that K = 1 would have routed.
    lonely = UserBatch(*(a[:1] for a in vars(users).values()))
    lonely.history[0, 1:] = 0
    single = _mind(dynamic_k=True, interests=1)
    single.load_state_dict({
        k: v[:1] if k == "routing_logits" else v for k, v in model.state_dict().items()
    })  # fmt: skip
    torch.testing.assert_close(
        model.encode_users(lonely), single.encode_users(lonely).expand(-1, 3, -1)
    )


def test_the_profile_moves_the_vectors_only_when_switched_on() -> None:
    users = some_users(4, ITEMS)
    richer = replace(users, profile=users.profile[::-1])
    plain, with_profile = _mind(), _mind(profile=True)
    assert torch.equal(plain.encode_users(users), plain.encode_users(richer))
    assert not torch.allclose(with_profile.encode_users(users), with_profile.encode_users(richer))


def test_a_large_power_reads_out_as_the_hard_choice() -> None:
    users, targets = some_users(16, ITEMS), torch.arange(1, 17)
    losses = []
    for changes in ({}, {"readout": "power", "readout_power": 100.0}):
        model = _mind(loss="full", relu_layer=False, **changes)
        with torch.no_grad():
            model.item_table.weight *= 8
        losses.append(model.loss(users, targets, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(*losses, rtol=0.02, atol=0)


@pytest.mark.parametrize("changes", [{"routing_std": 0.0}, {"profile": True, "relu_layer": False}])
def test_impossible_settings_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match=r"equal|ReLU"):
        MINDConfig(10, **changes)
