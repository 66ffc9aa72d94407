"""YouTube DNN: size and form of the single-vector baseline."""

from __future__ import annotations

import pytest
import torch

from models.retrieval.youtube_dnn import YouTubeDNN, YouTubeDNNConfig
from tests.unit.models.retrieval import worlds
from tests.unit.models.retrieval.worlds import ITEMS, histories, parameters
from tests.unit.models.users import some_users


def test_it_has_the_published_number_of_parameters() -> None:
    assert parameters(YouTubeDNN(YouTubeDNNConfig(10))) == 4_160


def test_the_vector_is_a_linear_map_of_the_mean_event() -> None:
    model, (history, mask) = worlds.model("youtube_dnn"), histories(4)
    assert isinstance(model, YouTubeDNN)
    for row in range(4):
        mean = history[row, mask[row]].mean(0)
        expected = model.output.weight @ mean + model.output.bias
        torch.testing.assert_close(model.extract(history, mask)[row, 0], expected)


def test_the_normalised_form_scores_by_cosine_and_the_loss_divides_by_the_temperature() -> None:
    users, targets = some_users(8, ITEMS), torch.arange(1, 9)
    model = worlds.model("youtube_dnn", loss="full", normalise=True, temperature=0.1)
    vectors, items = model.encode_users(users)[:, 0], model.item_vectors()
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(8))
    torch.testing.assert_close(items[1:].norm(dim=1), torch.ones(ITEMS))
    logits = vectors @ items[1:].T / 0.1
    expected = torch.nn.functional.cross_entropy(logits, targets - 1)
    torch.testing.assert_close(model.loss(users, targets, torch.Generator()), expected)


def test_it_has_one_interest() -> None:
    with pytest.raises(ValueError, match="one vector"):
        YouTubeDNNConfig(10, interests=2)
