"""DESMIL-R: ComiRec-SA's loss under learned sample weights."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from models.layers.stable_weights import StableWeights, dependence
from models.retrieval.comirec import ComiRecSA, ComiRecSAConfig
from models.retrieval.desmil import DESMILR, DESMILRConfig
from tests.unit.models.retrieval import worlds
from tests.unit.models.retrieval.worlds import CLICKS, ITEMS, TABLE, parameters
from tests.unit.models.users import some_users

USERS, TARGETS = some_users(16, ITEMS), torch.arange(1, 17)


def _desmil(**changes: object) -> DESMILR:
    model = worlds.model("desmil_r", **({"start_epoch": 0} | changes))
    assert isinstance(model, DESMILR)
    return model


def _comirec(model: DESMILR) -> ComiRecSA:
    fields = ComiRecSAConfig.__dataclass_fields__
    comirec = ComiRecSA(
        ComiRecSAConfig(**{k: v for k, v in asdict(model.cfg).items() if k in fields})
    )
    weights = {k: v for k, v in model.state_dict().items() if k != "trained"}
    comirec.load_state_dict(weights)
    comirec.prepare_training(TABLE, CLICKS)
    return comirec.eval()


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_it_has_comirecs_parameters_and_inference() -> None:
    assert parameters(DESMILR(DESMILRConfig(10))) == 18_948
    model = _desmil()
    assert torch.equal(model.encode_users(USERS), _comirec(model).encode_users(USERS))


def test_uniform_weights_give_comirecs_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _desmil()
    expected = _comirec(model).loss(USERS, TARGETS, _generator())
    zero = torch.zeros(())

    def uniform(interests: torch.Tensor, generator: torch.Generator) -> tuple:
        return StableWeights(torch.full((16,), 1 / 16), zero, zero), zero

    monkeypatch.setattr(model, "learn_weights", uniform)
    torch.testing.assert_close(model.loss(USERS, TARGETS, _generator()), expected)
    before_start = _desmil(start_epoch=1).loss(USERS, TARGETS, _generator())
    assert torch.equal(before_start, expected)


def test_the_loss_is_the_weighted_mean_and_the_weights_are_constant() -> None:
    model = _desmil(loss="full")
    loss = model.loss(USERS, TARGETS, _generator())
    learned = model.last_weights
    assert learned is not None
    assert not learned.weights.requires_grad
    assert learned.weights.std() > 1e-4
    losses = model.interest_losses(model.user_vectors(model.rows(USERS)), TARGETS, _generator())
    torch.testing.assert_close(loss, (learned.weights * losses).sum())
    got = torch.autograd.grad(loss, model.extractor.hidden.weight)[0]
    expected = torch.autograd.grad((learned.weights * losses).sum(), model.extractor.hidden.weight)
    torch.testing.assert_close(got, expected[0])


def test_random_features_are_redrawn_for_every_batch() -> None:
    model, generator = _desmil(), _generator()
    drawn = []
    for _ in range(2):
        model.loss(USERS, TARGETS, generator)
        assert model.last_weights is not None
        drawn.append(model.last_weights.weights)
    assert not torch.equal(*drawn)


def test_weights_start_after_the_declared_epochs_and_follow_their_rhythm() -> None:
    model = _desmil(start_epoch=1, weight_every=2).train()
    model.prepare_training(TABLE, torch.full((64 + 1,), 1).numpy() * 0 + 1)  # 65 clicks an epoch
    learned = []
    for _ in range(9):
        model.loss(USERS, TARGETS, _generator())
        learned.append(model.last_weights is not None)
    # 65 clicks are 5 batches of 16; then every second batch, counted from the first of all.
    assert learned == [False] * 5 + [False, True, False, True]


def test_a_resumed_training_goes_on_where_it_was() -> None:
    model = _desmil(start_epoch=1).train()
    epoch = int(CLICKS.sum())
    for _ in range(epoch // 16 + 1):
        model.trained += torch.tensor([1, 16])
    resumed = _desmil(start_epoch=1)
    assert not resumed.weighting
    resumed.load_state_dict(model.state_dict())
    assert resumed.weighting


def test_validation_does_not_count_as_training() -> None:
    model = _desmil().eval()
    model.loss(USERS, TARGETS, _generator())
    assert model.trained.tolist() == [0, 0]


def test_the_direct_penalty_adds_the_dependence_and_trains_the_extractor() -> None:
    plain, direct = _desmil(), _desmil(beta_direct=3.0)
    losses = [m.loss(USERS, TARGETS, _generator()) for m in (plain, direct)]
    assert plain.last_weights is not None
    added = 3 * plain.last_weights.after
    torch.testing.assert_close(losses[1] - losses[0], added, atol=1e-5, rtol=1e-4)
    gradients = [
        torch.autograd.grad(loss, m.extractor.hidden.weight)[0]
        for loss, m in zip(losses, (plain, direct), strict=True)
    ]
    assert not torch.allclose(*gradients)


def test_what_weighting_achieves_is_logged() -> None:
    model = _desmil()
    assert set(model.diagnostics(USERS)) == {"interest_cosine"}
    model.loss(USERS, TARGETS, _generator())
    figures = model.diagnostics(USERS)
    assert figures["dependence_weighted"] < figures["dependence_uniform"]
    assert 0 < figures["effective_share"] <= 1


def test_the_weights_are_those_of_the_batchs_interests() -> None:
    model = _desmil()
    interests = model.user_vectors(model.rows(USERS))
    learned, direct = model.learn_weights(interests, _generator())
    torch.testing.assert_close(direct, learned.after)
    assert dependence(interests, learned.weights) > 0


@pytest.mark.parametrize("changes", [{"features": 0}, {"inner_steps": 0}, {"start_epoch": -1}])
def test_impossible_settings_are_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match="positive"):
        DESMILRConfig(10, **changes)
