"""A domain with a field of every type, and changes of its items."""

from __future__ import annotations

from hypothesis import strategies as st

from models.schema import read
from models.schema.compiled import compiled
from protos.tandem.v1.records_pb2 import FieldValue, Numbers, Texts
from services.catalogue.merging import Change, Kind

YAML = """\
format: 1
events:
  impression: {id: 1, role: impression}
  buy: {id: 2, history: true}
item:
  display: [title]
  fields:
    brand: {type: category, learned: 100}
    colour: {type: category, values: [red, green, blue]}
    kinds: {type: bag, slots: 3, values: [a, b, c, d]}
    price: {type: number, scale: log, buckets: 4}
    released: {type: time}
    in_stock: {type: flag}
    about: {type: text, slots: 4, buckets: 50}
    shape: {type: vector, length: 3}
    sizes: {type: numbers, length: 2}
tasks: {buy: {event: buy}}
value: {formula: buy}
diversity: kinds
"""
DECLARATION = read.parse(YAML.encode(), "schema.yaml")
SCHEMA = compiled(DECLARATION)
T0 = 1_700_000_000_000

TEXT = st.sampled_from(["red", "green", "blue", "mauve", "a", "b"])
VALUES = {
    "title": st.builds(FieldValue, text=TEXT),
    "brand": st.builds(FieldValue, text=TEXT),
    "colour": st.builds(FieldValue, text=TEXT),
    "kinds": st.builds(
        lambda v: FieldValue(texts=Texts(values=v)), st.lists(st.sampled_from("abcdx"), max_size=5)
    ),
    "price": st.builds(FieldValue, number=st.floats(-1e6, 1e6)),
    "released": st.builds(FieldValue, number=st.integers(T0, T0 * 2).map(float)),
    "in_stock": st.builds(FieldValue, flag=st.booleans()),
    "about": st.builds(FieldValue, text=TEXT),
    "shape": st.builds(
        lambda v: FieldValue(numbers=Numbers(values=v)),
        st.lists(st.floats(-9, 9, width=16), min_size=3, max_size=3),
    ),
    "sizes": st.builds(
        lambda v: FieldValue(numbers=Numbers(values=v)),
        st.lists(st.floats(-9, 9, width=16), min_size=2, max_size=2),
    ),
}
FIELDS = st.fixed_dictionaries({}, optional=VALUES)
IDS = [f"item {i}" for i in range(8)]


TIMES = st.integers(T0, T0 + 20)


def changes(times: st.SearchStrategy[int] = TIMES) -> st.SearchStrategy[Change]:
    """Any change of a few items at a few times."""
    made = st.one_of(
        st.tuples(st.just(Kind.UPSERT), st.sampled_from(IDS), times, FIELDS),
        st.tuples(
            st.just(Kind.PATCH),
            st.sampled_from(IDS),
            times,
            st.fixed_dictionaries(
                {}, optional={name: v | st.just(FieldValue()) for name, v in VALUES.items()}
            ).filter(bool),
        ),
        st.tuples(st.just(Kind.REMOVE), st.sampled_from(IDS), times, st.just({})),
    )
    return made.map(lambda parts: Change(*parts))
