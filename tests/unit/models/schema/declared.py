"""A shop, declared: most kinds of fields, counts and derivations."""

from __future__ import annotations

from models.schema.declaration import Declaration
from models.schema.read import parse

SHOP = """\
format: 1
events:
  impression: {id: 1, role: impression}
  click: {id: 2, history: true}
  purchase:
    id: 6
    history: true
    upgrades: [click]
    value: {unit: EUR, max: 100000}
    properties: {coupon: {type: flag}}
user:
  given: {country: {type: category, values: [DE, FR, "NO"]}}
  counts: {click: {half_lives: [none, 30d]}, purchase: {}}
  sums: {purchase: {}}
  affinities: {category: {by: [click, purchase], half_life: 90d}}
context: {device: {type: category, values: [phone, desktop], default: phone}}
item:
  display: [title]
  fields:
    brand: {type: category, hashed: 5000}
    price: {type: number, scale: log, default: 9.5}
    category: {type: bag, slots: 4, values: [shoes, hats]}
    text: {type: vector, length: 8, dtype: float16, models: retrieval}
    words: {type: text, slots: 6, buckets: 1000}
    sizes: {type: numbers, length: 3}
    released: {type: time}
    in_stock: {type: flag, default: true}
  counts: {click: {half_lives: [30d]}, purchase: {}}
  eligible: [in_stock, released <= now]
derived: {idle: {since: any}, bought: {since: purchase}}
history: {length: 40, models_read: 10}
tasks: {click: {event: click}, purchase: {event: purchase, given: click}}
value: {formula: click * purchase}
"""


def shop(*changes: tuple[str, str]) -> Declaration:
    """The shop, each (old, new) text replaced."""
    text = SHOP
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return parse(text.encode(), "schema.yaml")
