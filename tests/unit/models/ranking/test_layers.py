"""The layers of the ranking models, each by its own law."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from models.layers.cross_attention import CrossAttention
from models.layers.cross_layer import CrossNetwork
from models.layers.experts import MultiGateMixture
from models.layers.factorization import Moments
from models.layers.infnet_block import EVERY_PART, ProxySource, live_parts
from models.layers.proxy_gate import ProxyGate
from models.layers.split_linear import SplitLinear, SplitMLP
from models.layers.target_attention import TargetAttention
from models.ranking.heads import Head, TaskTowers, probabilities, task_losses
from tests.unit.models.ranking.worlds import count, spread


@settings(max_examples=20)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.booleans())
def test_attention_equals_that_of_keys_and_values(
    heads: int, queries: int, length: int, out_proj: bool
) -> None:
    """Applying the key map to the queries changes nothing: torch's own attention is the judge."""
    torch.manual_seed(0)
    layer = spread(CrossAttention(6 * heads, heads, out_proj))
    q, tokens = torch.randn(3, queries, 6 * heads), torch.randn(3, length, 6 * heads)
    keep = torch.rand(3, length) < 0.5
    keep[:, 0] = True
    parts = [
        part(x).unflatten(2, (heads, 6)).transpose(1, 2)
        for part, x in ((layer.query, q), (layer.key, tokens), (layer.value, tokens))
    ]
    expected = functional.scaled_dot_product_attention(*parts, attn_mask=keep[:, None, None])
    expected = expected.transpose(1, 2).flatten(2)
    if layer.out is not None:
        expected = layer.out(expected)
    torch.testing.assert_close(layer(q, tokens, keep), expected, atol=1e-4, rtol=1e-4)


def test_attention_on_nothing_is_nothing() -> None:
    layer = CrossAttention(8)
    q, tokens = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    keep = torch.tensor([[True] * 5, [False] * 5])
    out = layer(q, tokens, keep)
    assert not out[1].any()
    assert out[0].any()


def test_attention_refuses_heads_that_do_not_divide_its_width() -> None:
    with pytest.raises(ValueError, match="3 heads"):
        CrossAttention(8, heads=3)


def test_a_proxy_gate_is_one_vector_for_all_tokens_of_a_row() -> None:
    gate = spread(ProxyGate(2, 4))
    tokens, proxies = torch.randn(3, 5, 4), torch.randn(3, 2, 4)
    ratio = gate(tokens, proxies) / tokens
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert ((ratio > 0) & (ratio < 1)).all()
    assert not torch.allclose(ratio[0], ratio[1])


@pytest.mark.parametrize("source", ["updated", "stale"])
def test_every_block_keeps_its_task_tokens_and_only_the_end_is_pruned(source: ProxySource) -> None:
    for blocks in (2, 3, 5):
        live = [live_parts(i, blocks, source) for i in range(blocks)]
        assert all("task" in part.cross and part.gate >= {"task"} for part in live)
        assert all(part == EVERY_PART for part in live[:-2])
        assert live[-1].gate == {"task"}


def test_split_maps_equal_whole_maps() -> None:
    user, rest, row_user = torch.randn(2, 3), torch.randn(4, 5), torch.tensor([0, 1, 1, 0])
    whole = torch.cat([user[row_user], rest], dim=1)
    for layer in (SplitLinear(8, 6), SplitLinear(8, 6, bias=False), SplitMLP(8, (6, 4))):
        split = layer.from_parts(layer.user_part(user)[row_user], rest)
        torch.testing.assert_close(split, layer(whole))
    mixture = MultiGateMixture(8, experts=3, hidden=(6, 4), tasks=2)
    split = mixture.from_parts(mixture.user_part(user), row_user, rest)
    torch.testing.assert_close(split, mixture(whole))


def test_a_split_perceptron_is_a_perceptron() -> None:
    net, x = SplitMLP(8, (6, 4)), torch.randn(5, 8)
    hidden = torch.relu(functional.linear(x, net.first.weight, net.first.bias))
    torch.testing.assert_close(net(x), torch.relu(net.rest[0](hidden)))
    assert (net(x) >= 0).all()


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(0, 4))
def test_moments_of_disjoint_fields_add_up_to_all_pairs(left: int, right: int) -> None:
    torch.manual_seed(0)
    fields = torch.randn(3, left + right, 4)
    moments = Moments.of(fields[:, :left]).plus(Moments.of(fields[:, left:]))
    pairs = sum(
        (fields[:, i] * fields[:, j] for j in range(left + right) for i in range(j)),
        torch.zeros(3, 4),
    )
    torch.testing.assert_close(moments.products(), pairs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_l_cross_layers_are_a_polynomial_of_degree_l_plus_1(layers: int) -> None:
    """Along a line the differences of order L + 2 vanish, those of order L + 1 do not."""
    net = CrossNetwork(5, layers).double()
    start, step = torch.randn(5).double(), torch.randn(5).double()
    values = net(torch.stack([start + i * step for i in range(layers + 4)]))
    for _ in range(layers + 1):
        values = values.diff(dim=0)
    assert values.abs().max() > 1e-3
    assert values.diff(dim=0).abs().max() < 1e-9


def test_cross_layers_are_those_of_the_equation() -> None:
    net, x = spread(CrossNetwork(5, 2)), torch.randn(4, 5)
    value = x
    for layer in net.maps:
        value = x * (value @ layer.weight.T + layer.bias) + value
    torch.testing.assert_close(net(x), value)


def test_target_attention_is_not_normalised_and_ignores_padding() -> None:
    layer = spread(TargetAttention(4, (6, 5)))
    query, keys = torch.randn(3, 4), torch.randn(3, 7, 4)
    keep = torch.tensor([[True] * 7, [True] * 3 + [False] * 4, [False] * 7])
    out = layer(query, keys, keep)
    assert not out[2].any()
    twice = layer(query, torch.cat([keys, keys], dim=1), torch.cat([keep, keep], dim=1))
    torch.testing.assert_close(twice, 2 * out)
    junk = torch.where(keep[..., None], keys, torch.full_like(keys, 1e3))
    torch.testing.assert_close(layer(query, junk, keep), out)
    torch.testing.assert_close(layer(query, keys, keep, layer.key_part(keys)), out)
    assert not torch.allclose(layer(query + 1, keys, keep)[0], out[0])


def test_a_mixture_is_the_gated_sum_of_its_experts() -> None:
    net, x = spread(MultiGateMixture(6, experts=3, hidden=(5, 4), tasks=2)), torch.randn(7, 6)
    hidden = torch.relu(net.first(x)).view(7, 3, 5)
    each = [torch.relu(hidden[:, e] @ net.weights[0][e] + net.biases[0][e]) for e in range(3)]
    gates = torch.softmax(net.gates(x).view(7, 2, 3), dim=2)
    expected = torch.stack(
        [sum(gates[:, t, e, None] * each[e] for e in range(3)) for t in range(2)], dim=1
    )
    torch.testing.assert_close(net(x), expected)
    assert net.gates.bias is None


def test_a_tower_reads_the_shared_input_or_its_own() -> None:
    towers = TaskTowers(3, 4, (5,))
    shared = torch.randn(6, 4)
    own = shared[:, None].expand(-1, 3, -1).clone()
    torch.testing.assert_close(towers(shared), towers(own))
    own[:, 1] += 1
    assert torch.isclose(towers(shared), towers(own)).all(0).tolist() == [True, False, True]
    assert count(towers) == 3 * (4 * 5 + 5 + 5 + 1)


def test_a_tower_drops_out_after_every_relu() -> None:
    kinds = [type(layer).__name__ for layer in TaskTowers(1, 4, (5, 3), dropout=0.2)[0]]
    assert kinds == ["Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert count(TaskTowers(1, 4, (5, 3), dropout=0.2)) == count(TaskTowers(1, 4, (5, 3)))


def test_the_loss_of_a_task_is_the_mean_over_its_known_rows() -> None:
    logits = torch.tensor([[0.3, -2.0, 5.0], [1.0, 4.0, 5.0]], requires_grad=True)
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    known = torch.tensor([[True, True, False], [True, False, False]])
    losses = task_losses(logits, labels, known)
    click = functional.binary_cross_entropy_with_logits(logits[:, 0], labels[:, 0])
    like = functional.binary_cross_entropy_with_logits(logits[:1, 1], labels[:1, 1])
    torch.testing.assert_close(losses, torch.stack([click, like, torch.zeros(())]))
    losses.sum().backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad != 0, known)


def test_a_value_is_learned_by_the_squares_of_its_logarithm() -> None:
    """The loss is least where the value is predicted, which is what its logit says."""
    values = torch.tensor([[0.0], [3.0], [-7.5], [1e6]])
    logits = values.sign() * values.abs().log1p()
    known = torch.ones(4, 1, dtype=torch.bool)
    assert task_losses(logits, values, known, (True,)).item() == 0
    torch.testing.assert_close(task_losses(logits + 2, values, known, (True,)), torch.tensor([2.0]))
    torch.testing.assert_close(probabilities(logits, (True,)), values, rtol=1e-4, atol=1e-6)


def test_only_tasks_of_a_value_predict_one() -> None:
    logits = torch.tensor([[2.0, 2.0], [1e9, -1e9]])
    found = probabilities(logits, (False, True))
    assert torch.equal(found[:, 0], torch.sigmoid(logits[:, 0]))
    assert found[0, 1].item() == pytest.approx(2.718281828**2 - 1, rel=1e-5)
    assert found.isfinite().all()
    assert torch.equal(probabilities(logits), torch.sigmoid(logits))


def test_a_head_drops_out_what_the_tasks_share_unless_that_has_been_done() -> None:
    shared = torch.ones(1, 400)
    for drop_shared in (True, False):
        head = Head(2, 400, (), 0.25, drop_shared)
        read: list[torch.Tensor] = []
        head.towers.register_forward_pre_hook(lambda _, inputs, to=read: to.append(inputs[0]))
        head.train()(shared)
        kept = float((read[0] > 0).double().mean())
        assert kept == pytest.approx(0.75 if drop_shared else 1.0, abs=0.08)
