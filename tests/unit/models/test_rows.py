"""Tensors by rows of a catalogue grow in their memory, and their rows do not depend on others."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from models.catalogue import ItemTable
from models.rows import BLOCK, by_blocks, changed_rows, put, rows_in, with_room
from tests.unit.models.catalogues import Catalogue

FIELDS = np.dtype([("size", np.float32)])


def table(*ids: str) -> ItemTable:
    return ItemTable.build(ids, np.zeros(len(ids), FIELDS))


@given(st.data())
def test_what_is_put_is_there_and_the_rest_as_it_was(data: st.DataObject) -> None:
    width = data.draw(st.sampled_from([(), (0,), (3,), (2, 2)]))
    values = torch.zeros(data.draw(st.integers(1, 4)), *width)
    expected = values.numpy().copy()
    for number in range(1, data.draw(st.integers(1, 12))):
        count = len(values) + data.draw(st.integers(0, 5))
        late = set(range(len(values), count))
        rows = np.array(sorted(late | data.draw(st.sets(st.integers(0, count - 1)))), np.int64)
        expected = np.concatenate([expected, np.zeros((len(late), *width), np.float32)])
        expected[rows] = number
        values = put(values, rows, torch.full((len(rows), *width), float(number)), count)
        np.testing.assert_array_equal(values.numpy(), expected)


def test_rows_that_come_one_by_one_are_rarely_copied() -> None:
    values, places = with_room(torch.zeros(1, 8)), set()
    assert torch.equal(values, torch.zeros(1, 8))
    for count in range(2, 1_000):
        values = put(values, np.array([count - 1]), torch.ones(1, 8), count)
        places.add(values.data_ptr())
    assert len(places) <= 4


@given(st.integers(1, 3 * BLOCK), st.data())
def test_values_of_some_rows_are_those_of_all_to_the_last_bit(
    count: int, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(count)
    inputs, weight = (torch.randn(n, 40, generator=generator) for n in (count, 24))

    def compute(rows: torch.Tensor) -> torch.Tensor:
        assert len(rows) == BLOCK
        return functional.normalize(functional.linear(inputs[rows], weight), dim=1)

    device = torch.device("cpu")
    every = by_blocks(compute, np.arange(count), device)
    rows = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=BLOCK + 9)), np.int64)
    assert every.shape == (count, 24)
    assert torch.equal(by_blocks(compute, rows, device), every[rows])
    expected = functional.normalize(functional.linear(inputs, weight), dim=1)
    torch.testing.assert_close(every, expected)


def test_an_item_that_a_table_lacks_is_in_row_0_of_it() -> None:
    known, items = table("a", "b", "c"), table("c", "x", "a")
    assert rows_in(known, items).tolist() == [0, 3, 0, 1]
    assert rows_in(known, items, np.array([2, 3])).tolist() == [0, 1]
    assert rows_in(known, known).tolist() == [0, 1, 2, 3]
    assert rows_in(table(), items).tolist() == [0, 0, 0, 0]


def test_what_changed_is_told_of_states_of_one_catalogue_alone() -> None:
    catalogue, record = Catalogue(FIELDS), np.zeros(1, FIELDS)[0]
    catalogue.write({"a": record, "b": record})
    first = catalogue.items
    catalogue.write({"c": record, "a": None})
    second = catalogue.items
    catalogue.leave_gap()
    with_gap = catalogue.items
    catalogue.write({"d": record})

    def found(before: ItemTable, after: ItemTable) -> list[int] | None:
        rows = changed_rows(before, after)
        return None if rows is None else rows.tolist()

    assert found(first, second) == [1, 3]
    assert found(first, catalogue.items) == [1, 3, 4]
    assert found(second, second) == []
    assert found(second, with_gap) == [4], "a row whose item comes later"
    assert found(with_gap, catalogue.items) == [4]
    assert found(second, first) is None, "it goes back"
    assert found(table("a", "b"), second) is None, "another table"
