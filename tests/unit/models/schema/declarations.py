"""Any valid Declaration, and how a schema.yaml writes it."""

import math
from typing import Any

from hypothesis import strategies as st

from models.schema.declaration import (
    FIELD_TYPES,
    NEVER_FADES,
    Affinity,
    Amount,
    Condition,
    Count,
    Declaration,
    Derived,
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
from models.schema.reader.file import LISTS

DAY_S = 86_400
TRAPS = ("NO", "true", "null", "e1", "return", "None", "y", "X_9")  # of YAML and of Python
names = st.sampled_from(TRAPS) | st.builds(
    "{}{}".format, st.sampled_from("abZ"), st.text("c0_D", max_size=5)
)
values = st.sampled_from(("NO", "007", "1_000", "18:30", "2020-01-01", "~", "a: b", "#", "-")) | (
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn"]), min_size=1, max_size=9).filter(
        lambda text: text == text.strip()
    )
)
numbers = st.integers(-(10**6), 10**6).map(lambda n: n / 8)  # exact, with few decimals
read_by = st.sampled_from(("both", "retrieval", "ranking", "none"))
half_lives = st.sampled_from((NEVER_FADES, 1.0, 5_400.0)) | st.integers(1, 400).map(
    lambda days: float(days * DAY_S)
)


def some(choices: Any, least: int = 0) -> st.SearchStrategy[list[Any]]:
    """Some of the choices, each once, in any order."""
    choices = list(choices)
    if not choices:
        return st.just([])
    return st.lists(st.sampled_from(choices), unique=True, min_size=least, max_size=3)


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    source = draw(st.sampled_from(("values", "learned", "hashed")))
    if source != "values":
        return Vocabulary(source=source, size=draw(st.integers(2, 10**7)))
    declared = draw(st.lists(values, min_size=1, max_size=4, unique=True))
    return Vocabulary(source=source, size=len(declared), values=tuple(declared))


@st.composite
def fields(draw: st.DrawFn, name: str, types: Any = FIELD_TYPES) -> Field:
    kind = draw(st.sampled_from(types))
    made: dict[str, Any] = {"name": name, "type": kind, "read_by": draw(read_by)}
    if kind in ("category", "bag"):
        made["vocabulary"] = vocabulary = draw(vocabularies())
    if kind == "category":
        default = st.sampled_from(vocabulary.values) if vocabulary.values else values
        made["default"] = draw(st.none() | default)
    if kind in ("bag", "text"):
        made["slots"] = draw(st.integers(1, 256))
    if kind in ("number", "time"):
        scales = ("linear", "log", "standardised", "quantiles", "cyclic")[: 5 - (kind == "time")]
        made["scale"] = scale = draw(st.sampled_from(scales))
        made["buckets"] = draw(st.integers(2, 10**6)) if scale in ("log", "quantiles") else 0
        made["period"] = abs(draw(numbers)) + 0.5 if scale == "cyclic" else 0.0
    if kind == "text":
        made["buckets"] = draw(st.integers(2, 10**6))
    if kind in ("number", "flag"):
        made["default"] = draw(numbers if kind == "number" else st.booleans())
    if kind in ("vector", "numbers"):
        made["length"] = draw(st.integers(1, 4_096))
    if kind == "vector":
        made["dtype"] = draw(st.sampled_from(("float16", "float32")))
    return Field(**made)


@st.composite
def events(draw: st.DrawFn) -> tuple[Event, ...]:
    found: list[Event] = []
    named = draw(st.lists(names, min_size=2, max_size=4, unique=True))
    ids = draw(st.lists(st.integers(1, 255), min_size=len(named), max_size=4, unique=True))
    impression = draw(st.integers(1, 4))  # of the events, or none
    for i, (name, number) in enumerate(zip(named, ids, strict=False)):
        properties = draw(st.lists(names, max_size=1))
        kinds = ("category", "number", "flag")
        made: dict[str, Any] = {
            "name": name,
            "id": number,
            "properties": tuple(draw(fields(each, kinds)) for each in properties),
        }
        if i == impression:
            found.append(Event(impression=True, **made))
            continue
        history = draw(st.booleans())
        kept = [event.name for event in found if event.history]
        low = draw(numbers)
        high = draw(st.sampled_from((math.inf, low + 0.5)))
        amount = Amount(unit=draw(values), low=low, high=high, replaces=draw(st.booleans()))
        upgrades = tuple(draw(some(kept))) if history else ()
        value = draw(st.none() | st.just(amount))
        found.append(Event(history=history, upgrades=upgrades, value=value, **made))
    return tuple(found)


@st.composite
def counts(draw: st.DrawFn, of: tuple[Event, ...]) -> tuple[Count, ...]:
    found = []
    for of_value in (False, True):
        for event in draw(some(e.name for e in of if e.value or not of_value)):
            by = draw(read_by)
            for each in draw(st.lists(half_lives, min_size=1, max_size=4, unique=True)):
                made = Count(event=event, half_life_s=each, of_value=of_value, read_by=by)
                found.append(made)
    return tuple(found)


@st.composite
def conditions(draw: st.DrawFn, of: Field, others: dict[str, tuple[Field, ...]]) -> Condition:
    """Of a field that can have one; the first that comes to it if there are several."""
    if of.type == "flag":
        no = draw(st.booleans())
        return Condition(f"not {of.name}" if no else of.name, of.name, "is not" if no else "is")
    ordered = of.type in ("number", "time")
    compares = ("<", "<=", ">", ">=") if ordered else ("has",) if of.type == "bag" else ("==", "!=")
    compare: Any = draw(st.sampled_from(compares))
    alike = of.type if ordered else "category"
    sides: list[tuple[Any, str]] = [
        (side, each.name) for side in others for each in others[side] if each.type == alike
    ]
    if sides and (of.type == "time" or draw(st.booleans())):
        side, name = draw(st.sampled_from(sides))
        return Condition(f"{of.name} {compare} {side}.{name}", of.name, compare, side, name)
    if of.type == "time":
        return Condition(f"{of.name} {compare} now", of.name, compare, "now")
    if of.type == "number":
        number = draw(numbers)
        return Condition(f"{of.name} {compare} {number}", of.name, compare, constant=number)
    declared = of.vocabulary.values if of.vocabulary else ()
    value = draw(st.sampled_from(declared) if declared else values)
    quote = "'" if "'" not in value else '"'
    text = f"{of.name} {compare} {quote}{value}{quote}"
    return Condition(text, of.name, compare, constant=value)


@st.composite
def derivations(draw: st.DrawFn, name: str, of: dict[str, Any]) -> Derived:
    made: dict[str, Any] = {"name": name, "read_by": draw(read_by)}
    kinds = ["since", "pool", "surface"]
    kinds += ["match"] * bool(of["affinities"]) + ["ratio"] * bool(of["pairs"])
    kinds += ["position"] * (of["impression"] and made["read_by"] != "retrieval")
    match draw(st.sampled_from(kinds)):
        case "since":
            return Since(event=draw(st.sampled_from(["any", *of["events"]])), **made)
        case "match":
            return Match(affinity=draw(st.sampled_from(of["affinities"])), **made)
        case "ratio":
            side, above, below, half_life = draw(st.sampled_from(of["pairs"]))
            return Ratio(above=above, below=below, side=side, half_life_s=half_life, **made)
        case "surface":
            return OnSurface(**made)
        case "position":
            return Position(places=draw(st.integers(1, 1_000)), **made)
    kept = draw(some(of["history"])) or ["any"]
    return Pool(events=tuple(kept), **made)


def formulas(tasks: list[str], weights: list[str]) -> st.SearchStrategy[str]:
    part = st.sampled_from([*tasks, *weights, "1", ".5", "2.e-1"])
    nested = st.recursive(
        part, lambda p: st.builds("({}{}{})".format, p, st.sampled_from("+-*"), p)
    )
    return st.builds("{} + {} / 2".format, st.sampled_from(tasks), nested).filter(
        lambda text: len(text) < 200
    )


@st.composite
def declarations(draw: st.DrawFn) -> Declaration:
    made = draw(events())
    event_names = [event.name for event in made]
    free = iter(draw(st.lists(names, min_size=12, max_size=12, unique=True)))
    sent = tuple(kind for kind in FIELD_TYPES if kind not in LISTS)
    sides = [
        tuple(draw(fields(next(free), types)) for _ in range(draw(st.integers(0, most))))
        for most, types in ((2, FIELD_TYPES), (2, sent), (4, FIELD_TYPES))
    ]
    given, context, item = sides
    valued = [f.name for f in item if f.vocabulary and f.vocabulary.values]
    affinities = [
        Affinity(
            name=name,
            field=draw(st.sampled_from(valued)),
            by=tuple(draw(some(event_names, 1))),
            half_life_s=draw(half_lives),
            read_by=draw(read_by),
        )
        for name in (draw(st.lists(names, max_size=2, unique=True)) if valued else ())
    ]
    of_user, of_item = draw(counts(made)), draw(counts(made))
    pairs = [
        (side, a.event, b.event, a.half_life_s)
        for side, kept in (("user", of_user), ("item", of_item))
        for a in kept
        for b in kept
        if a.half_life_s == b.half_life_s and a.event != b.event and not a.of_value | b.of_value
    ]
    of = {
        "events": event_names,
        "history": [event.name for event in made if event.history],
        "affinities": [affinity.name for affinity in affinities],
        "pairs": pairs,
        "impression": any(event.impression for event in made),
    }
    derived = [draw(derivations(next(free), of)) for _ in range(draw(st.integers(0, 3)))]
    comparable = [f for f in item if f.type in ("flag", "bag", "category", "number", "time")]
    others = {"user": given, "context": context}
    tasks: list[Task] = []
    for name in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        event = draw(st.sampled_from([event for event in made if not event.impression]))
        target: Any = draw(st.sampled_from(("happened", "value"))) if event.value else "happened"
        before = draw(st.sampled_from(["", *(task.name for task in tasks)]))
        tasks.append(Task(name=name, event=event.name, target=target, given=before))
    task_names = [task.name for task in tasks]
    weights = [
        Weight(name, low + 0.5, low, low + 1)
        for name in draw(st.lists(names, max_size=2, unique=True))
        if name not in task_names and (low := draw(st.integers(-50, 50).map(float))) is not None
    ]
    any_formula = formulas(task_names, [weight.name for weight in weights])
    formula = draw(any_formula)
    surface_names = st.sampled_from(("0", "home", "a-b", "NO", "1.5", "null"))
    length = draw(st.integers(1, 1_000))
    rows = draw(st.integers(16, 10**8))
    least = int(any(isinstance(each, OnSurface) for each in derived))
    return Declaration(
        events=made,
        user_keep_s=draw(half_lives),
        item_keep_s=draw(half_lives),
        user_given=given,
        user_counts=of_user,
        affinities=tuple(affinities),
        context=context,
        item_fields=item,
        display=tuple(free)[: draw(st.integers(0, 2))],
        item_counts=of_item,
        eligible=tuple(draw(conditions(of=each, others=others)) for each in comparable),
        derived=tuple(derived),
        history=History(length, draw(st.integers(1, min(length, 200)))),
        tasks=tuple(tasks),
        formula=formula,
        weights=tuple(weights),
        diversity=draw(st.sampled_from(["", *(f.name for f in item if f.vocabulary)])),
        surfaces=tuple(
            Surface(name, draw(st.just(formula) | any_formula), draw(st.integers(0, 100)))
            for name in draw(st.lists(surface_names, unique=True, min_size=least, max_size=2))
        ),
        tables=draw(
            st.sampled_from((Tables(), Tables("hashed", rows), Tables("unified", rows, 3)))
        ),
    )
