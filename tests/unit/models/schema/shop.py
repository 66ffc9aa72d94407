"""A shop: a schema.yaml with every key that there is, and the Declaration that it means."""

from models.schema.declaration import (
    Affinity,
    Amount,
    Condition,
    Count,
    Declaration,
    Event,
    Field,
    History,
    Match,
    OnSurface,
    Pool,
    Position,
    Ratio,
    Since,
    Surface,
    Tables,
    Task,
    Vocabulary,
    Weight,
)

CATEGORIES = ("Shoes", "Hats & Caps")  # of categories.txt
TEXT = """\
format: 1

events:
  impression: {id: 1, role: impression}
  click: {id: 2, history: true}
  purchase:
    id: 6
    history: true
    upgrades: [click]
    value: {unit: EUR, min: 0.5, max: 100000}
    properties:
      coupon: {type: flag}
      rating: {type: number, default: 3}
  return: {id: 7, value: {unit: EUR, repeats: replace}}

user:
  keep: 730d
  given:
    country: {type: category, values: [DE, "NO", "007"], default: "NO"}
  counts:
    impression: {models: none}
    click: {half_lives: [90d, 12h]}
    purchase:
      half_lives: [90d]
  sums:
    purchase: {models: ranking}
  affinities:
    category: {by: [purchase], half_life: 30m}
    brands: {of: countries, by: [click, purchase], models: ranking}

context:
  hour: {type: number, scale: cyclic, period: 24}
  limit: {type: number, scale: standardised, default: 9.5}

item:
  keep: 90d
  display: [title, url]
  fields:
    brand: {type: category, learned: 50000, default: none}
    shade: {type: category, hashed: 512, models: retrieval}
    category: {type: bag, slots: 4, values_file: categories.txt}
    countries: {type: bag, slots: 8, values: [DE, "NO"]}
    price: {type: number, scale: log}
    stars: {type: number, scale: quantiles, buckets: 8}
    in_stock: {type: flag, default: true}
    adult: {type: flag}
    released: {type: time, scale: log, buckets: 16}
    image: {type: vector, length: 384, dtype: float16}
    text: {type: text, slots: 16, buckets: 4096}
    sizes: {type: numbers, length: 3}
  counts:
    click: {}
    purchase: {half_lives: [none, 30d]}
  sums:
    purchase: {half_lives: [20s]}
  eligible:
    - in_stock
    - not adult
    - countries has user.country
    - countries has 'NO'
    - brand != "no name"
    - price <= context.limit
    - price > 1e-1
    - released <= now

derived:
  buys: {ratio: [purchase, click], half_life: 90d}
  sells: {ratio: [purchase, click], side: item, models: none}
  idle: {since: any}
  since_click: {since: click, models: ranking}
  category_match: {match: category}
  chosen: {pool: [any]}
  page: {surface: true}
  place: {position: 30, models: ranking}
  bought: {pool: [purchase], models: retrieval}

history: {length: 20, models_read: 10}

tasks:
  click: {event: click}
  buy: {event: purchase, given: click}
  spend: {event: purchase, target: value, given: buy}
  return: {event: return}

value:
  formula: click * (1 + buy_weight * buy) - return
  weights:
    buy_weight: {default: 1.5, min: -1, max: 20}
    spare: {default: 2}

diversity: category

surfaces:
  home: {}
  cart.side-bar: {seeds: 20, value: spend / 2}

tables: {storage: unified, rows: 1000, lookups: 3}
"""
FORMULA = "click * (1 + buy_weight * buy) - return"
DAY = 86_400.0
VALUES = Vocabulary(source="values", size=2, values=("DE", "NO"))
COUNTRIES = Vocabulary(source="values", size=3, values=("DE", "NO", "007"))

DECLARATION = Declaration(
    events=(
        Event(name="impression", id=1, impression=True),
        Event(name="click", id=2, history=True),
        Event(
            name="purchase",
            id=6,
            history=True,
            upgrades=("click",),
            value=Amount(unit="EUR", low=0.5, high=100_000.0),
            properties=(
                Field(name="coupon", type="flag", default=False),
                Field(name="rating", type="number", default=3.0),
            ),
        ),
        Event(name="return", id=7, value=Amount(unit="EUR", replaces=True)),
    ),
    user_keep_s=730 * 86_400.0,
    item_keep_s=90 * 86_400.0,
    user_given=(Field(name="country", type="category", vocabulary=COUNTRIES, default="NO"),),
    user_counts=(
        Count(event="impression", read_by="none"),
        Count(event="click", half_life_s=90 * DAY),
        Count(event="click", half_life_s=DAY / 2),
        Count(event="purchase", half_life_s=90 * DAY),
        Count(event="purchase", of_value=True, read_by="ranking"),
    ),
    affinities=(
        Affinity(name="category", field="category", by=("purchase",), half_life_s=1_800.0),
        Affinity(name="brands", field="countries", by=("click", "purchase"), read_by="ranking"),
    ),
    context=(
        Field(name="hour", type="number", scale="cyclic", period=24.0, default=0.0),
        Field(name="limit", type="number", scale="standardised", default=9.5),
    ),
    item_fields=(
        Field(
            name="brand",
            type="category",
            vocabulary=Vocabulary(source="learned", size=50_000),
            default="none",
        ),
        Field(
            name="shade",
            type="category",
            vocabulary=Vocabulary(source="hashed", size=512),
            read_by="retrieval",
        ),
        Field(
            name="category",
            type="bag",
            vocabulary=Vocabulary(source="values", size=2, values=CATEGORIES),
            slots=4,
        ),
        Field(name="countries", type="bag", vocabulary=VALUES, slots=8),
        Field(name="price", type="number", scale="log", buckets=32, default=0.0),
        Field(name="stars", type="number", scale="quantiles", buckets=8, default=0.0),
        Field(name="in_stock", type="flag", default=True),
        Field(name="adult", type="flag", default=False),
        Field(name="released", type="time", scale="log", buckets=16),
        Field(name="image", type="vector", length=384, dtype="float16"),
        Field(name="text", type="text", slots=16, buckets=4_096),
        Field(name="sizes", type="numbers", length=3),
    ),
    display=("title", "url"),
    item_counts=(
        Count(event="click"),
        Count(event="purchase"),
        Count(event="purchase", half_life_s=30 * DAY),
        Count(event="purchase", half_life_s=20.0, of_value=True),
    ),
    eligible=(
        Condition("in_stock", "in_stock", "is"),
        Condition("not adult", "adult", "is not"),
        Condition("countries has user.country", "countries", "has", "user", "country"),
        Condition("countries has 'NO'", "countries", "has", constant="NO"),
        Condition('brand != "no name"', "brand", "!=", constant="no name"),
        Condition("price <= context.limit", "price", "<=", "context", "limit"),
        Condition("price > 1e-1", "price", ">", constant=0.1),
        Condition("released <= now", "released", "<=", "now"),
    ),
    derived=(
        Ratio(name="buys", above="purchase", below="click", side="user", half_life_s=90 * DAY),
        Ratio(name="sells", above="purchase", below="click", side="item", read_by="none"),
        Since(name="idle", event="any"),
        Since(name="since_click", event="click", read_by="ranking"),
        Match(name="category_match", affinity="category"),
        Pool(name="chosen", events=("any",)),
        OnSurface(name="page"),
        Position(name="place", places=30, read_by="ranking"),
        Pool(name="bought", events=("purchase",), read_by="retrieval"),
    ),
    history=History(20, 10),
    tasks=(
        Task(name="click", event="click"),
        Task(name="buy", event="purchase", given="click"),
        Task(name="spend", event="purchase", target="value", given="buy"),
        Task(name="return", event="return"),
    ),
    formula=FORMULA,
    weights=(Weight("buy_weight", 1.5, -1.0, 20.0), Weight("spare", 2.0, 0.0, 100.0)),
    diversity="category",
    surfaces=(Surface("home", FORMULA), Surface("cart.side-bar", "spend / 2", 20)),
    tables=Tables("unified", 1_000, 3),
)
