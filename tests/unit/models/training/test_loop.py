"""The laws of the training loop."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from models.data.errors import DataError
from models.training import optimizers
from models.training.loop import LoopConfig, TrainingError, fit
from tests.unit.models.training.small_training import (
    CONFIG,
    EXAMPLES,
    facts,
    loss_of,
    quality,
    small,
    train,
)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not() -> None:
    torch.manual_seed(0)
    first = facts(*train(None))
    torch.manual_seed(99)  # torch's global state must not matter, dropout or not
    assert facts(*train(None)) == first
    assert facts(*train(None, config=replace(CONFIG, seed=4))) != first


def test_torchs_global_random_numbers_are_left_alone() -> None:
    model = small()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(model, loss_of(model), EXAMPLES, CONFIG)
    assert torch.equal(torch.rand(3), expected)


def test_one_step_of_sgd_is_the_gradient_of_the_batch() -> None:
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    data = torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    def loss(index: np.ndarray, generator: torch.Generator) -> Tensor:
        return model(data[index]).mean()

    fit(model, loss, np.arange(2), LoopConfig(1, 2, 0.1, optimizer="sgd"))
    # The gradient is the mean row, (2, 3).
    torch.testing.assert_close(model.weight.data, torch.tensor([[0.8, 0.7]]))


def test_clipping_shortens_the_gradient_to_the_norm() -> None:
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    config = LoopConfig(1, 1, 1.0, optimizer="sgd", clip_norm=1.0)
    fit(model, lambda i, g: model(torch.tensor([[30.0, 40.0]])).sum(), np.arange(1), config)
    torch.testing.assert_close(model.weight.data, torch.tensor([[-0.6, -0.8]]), atol=1e-6, rtol=0)


def test_every_epoch_sees_every_example_once_in_another_order() -> None:
    model, seen = small(), []
    inner = loss_of(model)

    def loss(index: np.ndarray, generator: torch.Generator) -> Tensor:
        seen.append(index)
        return inner(index, generator)

    fit(model, loss, EXAMPLES, replace(CONFIG, epochs=2))
    first, second = np.concatenate(seen[:8]), np.concatenate(seen[8:])
    assert (np.sort(first) == EXAMPLES).all()
    assert (np.sort(second) == EXAMPLES).all()
    assert (first != second).any()


def _scored(scores: list[float], **changes: object) -> tuple[nn.Module, object, list[Tensor]]:
    """A training whose validations give `scores`; also the weights at each validation."""
    model, weights, left = small(), [], list(scores)

    def validate() -> float:
        weights.append(model.out.weight.detach().clone())
        return left.pop(0)

    config = replace(CONFIG, epochs=len(scores), **changes)  # type: ignore[arg-type]
    return model, fit(model, loss_of(model), EXAMPLES, config, validate), weights


def test_training_ends_with_the_weights_of_the_best_round() -> None:
    model, report, weights = _scored([0.1, 0.4, 0.3, 0.2], patience=4)
    assert report.best_epoch == 2
    assert report.best_step == 16
    assert report.steps == 32
    assert torch.equal(model.out.weight, weights[1])
    assert not model.training


def test_of_equal_rounds_the_first_is_best() -> None:
    model, report, weights = _scored([0.1, 0.4, 0.4], patience=4)
    assert report.best_epoch == 2
    assert torch.equal(model.out.weight, weights[1])


def test_patience_counts_rounds_without_a_better_one() -> None:
    _, report, _ = _scored([0.4, 0.3, 0.2, 0.9], patience=2)
    assert report.validation == (0.4, 0.3, 0.2)
    _, report, _ = _scored([0.4, 0.3, 0.5, 0.1, 0.6], patience=2)
    assert report.validation == (0.4, 0.3, 0.5, 0.1, 0.6)


def test_steps_and_validations_by_steps_do_not_know_epochs() -> None:
    model, at = small(), []
    config = replace(CONFIG, epochs=1, steps=21, validate_every=5)
    report = fit(
        model, loss_of(model), EXAMPLES, config, lambda: at.append(1) or quality(model)
    )  # 8 steps are an epoch
    assert report.steps == 21
    assert len(at) == len(report.losses) == 5  # 5, 10, 15, 20 and the last
    assert report.best_step in (5, 10, 15, 20, 21)


def test_the_mean_loss_of_a_round_weighs_examples_not_batches() -> None:
    model = nn.Linear(1, 1)
    config = LoopConfig(1, 2, 1e-12, optimizer="sgd")

    def loss(index: np.ndarray, generator: torch.Generator) -> Tensor:
        return model.weight.sum() * 0 + torch.from_numpy(index.astype(np.float32)).mean()

    assert fit(model, loss, np.array([1, 2, 6]), config).losses == (3.0,)


def test_the_loss_falls_with_every_optimizer() -> None:
    for name in ("adamw", "adam", "adagrad", "sgd"):
        _, report = train(None, config=replace(CONFIG, optimizer=name, epochs=10))  # type: ignore[arg-type]
        assert report.losses[-1] < report.losses[0], name


def test_bfloat16_keeps_the_weights_in_float32_and_learns_the_same_thing() -> None:
    model, report = train(None, config=replace(CONFIG, precision="bf16"))
    _, full = train(None)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert report.losses != full.losses
    np.testing.assert_allclose(report.losses, full.losses, rtol=0.05)


def test_sparse_tables_leave_rows_that_no_example_looks_up() -> None:
    model = small()
    before = model.table.weight.detach().clone()
    few = np.arange(5)
    config = replace(CONFIG, sparse_embeddings=True, weight_decay=0.5)
    report = fit(model, loss_of(model), few, config)
    assert torch.equal(model.table.weight[5:], before[5:])
    assert not torch.equal(model.table.weight[:5], before[:5])
    assert report.losses[-1] < report.losses[0]


def test_sparse_tables_equal_dense_ones_when_every_row_is_looked_up() -> None:
    """Lazy Adam differs from Adam only in rows without a gradient."""
    examples = np.arange(20)
    config = LoopConfig(5, 20, 1e-3, optimizer="adam")
    found = []
    for sparse in (False, True):
        model = small()
        fit(model, loss_of(model), examples, replace(config, sparse_embeddings=sparse))
        found.append(model.table.weight.detach())
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_sparse_tables_need_an_optimizer_that_knows_them() -> None:
    with pytest.raises(ValueError, match="adamw or adam, not sgd"):
        optimizers.build("sgd", small(), 0.1, sparse_embeddings=True)


def test_no_examples_is_said_in_a_sentence() -> None:
    model = small()
    with pytest.raises(DataError, match="mine: there are no examples to train on"):
        fit(model, loss_of(model), np.array([], np.int64), CONFIG, title="mine")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_or_a_validation_that_is_not_finite_ends_the_training(value: float) -> None:
    model = small()
    with pytest.raises(TrainingError, match=r"the loss is .* after step 8: lower"):
        fit(model, lambda i, g: loss_of(model)(i, g) * value, EXAMPLES, CONFIG)
    model = small()
    with pytest.raises(TrainingError, match="validation gave"):
        fit(model, loss_of(model), EXAMPLES, CONFIG, lambda: value)


def test_weights_that_are_no_longer_finite_are_named_before_anything_is_judged() -> None:
    """The loss of the last step is that of the weights before it."""
    model = small()

    def loss(index: np.ndarray, generator: torch.Generator) -> Tensor:
        return model.out.bias.sum() * (1e38 if len(index) < CONFIG.batch_size else 0.0)

    def validate() -> float:
        raise AssertionError("judged")

    with pytest.raises(TrainingError, match=r"small: weights of out\.bias .* after step 8: lower"):
        fit(model, loss, EXAMPLES, replace(CONFIG, optimizer="sgd", learning_rate=10.0), validate,
            title="small")  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, is 0"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"learning_rate": float("inf")}, "learning_rate must be positive and at most 10, is inf"),
        ({"learning_rate": 1e30}, "learning_rate must be positive and at most 10, is 1e"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"weight_decay": float("nan")}, "weight_decay must be between 0 and 1 / learning_rate"),
        ({"steps": 0}, "steps"),
        ({"clip_norm": -1.0}, "clip_norm"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(CONFIG, **change)  # type: ignore[arg-type]


def test_the_progress_says_loss_validation_and_speed() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    model = small()
    fit(model, loss_of(model), EXAMPLES, CONFIG, lambda: 0.25, console, "small")
    shown = text.getvalue()
    for words in ("small", "loss", "valid 0.2500", "examples/s", "100%"):
        assert words in shown
