"""Reading a schema.yaml: what a file means, and what is said of a wrong one."""

import json
import os
from pathlib import Path

import pytest
import yaml

from models.data.own.wanted import TABLES, TableName, wanted_of
from models.schema.declaration import SERVING, Declaration, Event, History, Task
from models.schema.read import SchemaError, load, parse
from models.schema.reader.words import OF_TRAININGS
from models.yaml_reader.problems import Problem
from tests.unit.models.schema.shop import CATEGORIES, DECLARATION, TEXT

FILMS = Path(__file__).parents[4] / "models/data/worlds/films/schema.yaml"
SMALLEST = """\
format: 1
events: {click: {id: 1}}
tasks: {click: {event: click}}
value: {formula: click}
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "categories.txt").write_text("\n".join(CATEGORIES) + "\n")
    return tmp_path


def problems(data: str | bytes, folder: Path | None = None) -> list[Problem]:
    with pytest.raises(SchemaError) as caught:
        parse(data.encode() if isinstance(data, str) else data, "schema.yaml", folder)
    return caught.value.problems


def edited(old: str, new: str) -> str:
    assert TEXT.count(old) == 1, old
    return TEXT.replace(old, new)


def test_a_shop_that_uses_every_key_is_read_as_what_it_means(shop: Path) -> None:
    (shop / "schema.yaml").write_text(TEXT)
    assert load(shop / "schema.yaml") == DECLARATION


@pytest.mark.parametrize(
    "change", [lambda text: "\ufeff" + text, lambda t: t.replace("\n", "\r\n")]
)
def test_neither_the_mark_of_utf8_nor_the_lines_of_windows_change_a_meaning(
    shop: Path, change: object
) -> None:
    for file, text in (("schema.yaml", TEXT), ("categories.txt", "\n".join(CATEGORIES))):
        (shop / file).write_bytes(change(text).encode())  # type: ignore[operator]
    assert load(shop / "schema.yaml") == DECLARATION


def test_what_is_not_declared_has_its_default() -> None:
    assert parse(SMALLEST.encode(), "s") == Declaration(
        events=(Event(name="click", id=1),),
        tasks=(Task(name="click", event="click"),),
        formula="click",
    )


def test_models_read_no_more_of_a_short_history_than_there_is() -> None:
    short = parse(f"{SMALLEST}history: {{length: 7}}".encode(), "s")
    assert short.history == History(7, 7)


def test_the_films_of_movielens_are_a_domain() -> None:
    assert list(load(FILMS).event) == ["impression", "click", "like"]


# (what stands in the shop's file, what is put there, [(path, part of the reason), ...]). All
# problems stand on the line of the change where no line is given in front of the path.
CLICK = "click: {id: 2, history: true}"
COUNTRY = '{type: category, values: [DE, "NO", "007"], default: "NO"}'
HOUR = "{type: number, scale: cyclic, period: 24}"
BRAND = "{type: category, learned: 50000, default: none}"
FORMULA = "formula: click * (1 + buy_weight * buy) - return"
BUYS = "{ratio: [purchase, click], half_life: 90d}"
WEIGHT = "{default: 1.5, min: -1, max: 20}"
WRONG = [
    ("format: 1", "format: 2", [("format", "not known")]),
    ("format: 1", "format: '1'", [("format", "not known")]),
    (CLICK, "click:", [("events.click", "not a mapping")]),
    (CLICK, "click: [2]", [("events.click", "not a mapping")]),
    (CLICK, "click: {id: 1, history: true}", [("events.click.id", "impression has the same id")]),
    (CLICK, "click: {id: 010, history: true}", [("events.click.id", "'010' is not such a number")]),
    (CLICK, "click: {id: 256, history: true}", [("events.click.id", "'256'")]),
    (CLICK, "click: {id: 2, history: yes}", [("events.click.history", "'yes' is not a switch")]),
    (CLICK, CLICK[:-1] + ", role: impression}", [
        ("events.click.role", "impression has this role"), ("events.click.history", "only seen"),
    ]),
    (CLICK, "click: {id: 2}", [("9 events.purchase.upgrades[0]", "click is in no history")]),
    (CLICK, CLICK[:-1] + ", upgrades: [purchase]}", [
        ("events.click.upgrades[0]", "itself"), ("9 events.purchase.upgrades[0]", "itself"),
    ]),
    ("upgrades: [click]", "upgrades: [click, click, clik]", [
        ("events.purchase.upgrades[1]", "twice"), ("events.purchase.upgrades[2]", "'clik'"),
    ]),
    ("min: 0.5, max: 100000", "min: 5, max: 1", [("events.purchase.value.max", "not above")]),
    ("min: 0.5, max: 100000", "max: x", [("events.purchase.value.max", "'x' is not a number")]),
    ("coupon: {type: flag}", "any: {type: time}", [
        ("events.purchase.properties.any", "meaning of its own"),
        ("events.purchase.properties.any.type", "cannot be a time"),
    ]),
    (COUNTRY, "{type: category, values: [DE, NO, 007]}", [
        ("user.given.country.values[1]", "'NO' is not text"),
        ("user.given.country.values[2]", "'007' is not text"),
    ]),
    (COUNTRY, "{type: category, values: [1_000, 18:30, 2020-01-01, null, ~, '', ' a']}", [
        *((f"user.given.country.values[{i}]", "is not text") for i in range(5)),
        ("user.given.country.values[5]", "text is missing"),
        ("user.given.country.values[6]", "begins or ends with a space"),
    ]),
    (COUNTRY, "{type: category, values: [DE, DE]}", [("user.given.country.values[1]", "twice")]),
    (COUNTRY, "{type: category, values: []}", [("user.given.country.values", "no value")]),
    (COUNTRY, "{type: category, values: DE}", [("user.given.country.values", "not a list")]),
    (COUNTRY, "{type: category, values: [DE], default: FR}", [
        ("user.given.country.default", "'FR' is not one of the values"),
    ]),
    (COUNTRY, "{typ: category, values: [DE], default: DE}", [
        ("user.given.country.typ", "not known"), ("user.given.country.type", "missing"),
    ]),
    ("{half_lives: [90d, 12h]}", "{half_lives: [90, 365]}", [
        ("user.counts.click.half_lives[0]", "'90' is not a duration"),
        ("user.counts.click.half_lives[1]", "'365' is not a duration"),
    ]),
    ("{half_lives: [90d, 12h]}", "{half_lives: [90d, 24h, 1d]}", [
        ("user.counts.click.half_lives[2]", "'1d' stands here twice"),
    ]),
    ("{half_lives: [90d, 12h]}", "{half_lives: 90d}", [
        ("user.counts.click.half_lives", "not a list"),
    ]),
    ("impression: {models: none}", "impresion: {}", [("user.counts.impresion", "no event")]),
    ("purchase: {models: ranking}", "click: {}", [("user.sums.click", "no value to sum")]),
    ("of: countries, by", "of: brand, by", [("user.affinities.brands.of", "no declared values")]),
    ("of: countries, by", "off: countries, by", [("user.affinities.brands.off", "not known")]),
    ("by: [purchase]", "by: [NO, NO, clik]", [
        ("user.affinities.category.by[0]", "'NO' is not text"),
        ("user.affinities.category.by[1]", "'NO' is not text"),
        ("user.affinities.category.by[2]", "'clik'"),
    ]),
    (HOUR, "{type: number, scale: cyclic}", [("context.hour.period", "needs this key")]),
    (HOUR, "{type: number, scale: cylic, period: 24}", [("context.hour.scale", "'cylic'")]),
    (HOUR, "{type: time, scale: cyclic}", [("context.hour.scale", "not cyclic")]),
    (HOUR, "{type: number, period: 24}", [("context.hour.period", "linear has no use")]),
    (HOUR, "{type: number, default: .nan}", [("context.hour.default", "no number")]),
    (HOUR, "{type: vector, length: 3}", [("context.hour.type", "a vector is a list")]),
    ("display: [title, url]", "display: [title, title, brand, 5]", [
        ("item.display[1]", "twice"), ("item.display[2]", "brand is a field"),
        ("item.display[3]", "not text"),
    ]),
    (BRAND, "{type: category, learned: 5, hashed: 5}", [
        ("item.fields.brand.hashed", "its values come from `learned`"),
    ]),
    (BRAND, "{type: category}", [("item.fields.brand", "needs its values")]),
    ("{type: numbers, length: 3}", "{type: numbers, slots: 3}", [
        ("item.fields.sizes.slots", "no use"), ("item.fields.sizes.length", "needs this key"),
    ]),
    ("display: [title, url]", "display: [title, item_id]", [
        ("item.display[1]", "item_id is kept of every item"),
    ]),
    ("adult: {type: flag}", "item_id: {type: flag}", [
        ("item.fields.item_id", "item_id is what imported items have of themselves"),
        ("58 item.eligible[1]", "no field of items 'adult'"),
    ]),
    ("adult: {type: flag}", "hour: {type: flag}", [
        ("item.fields.hour", "context.hour has the same name"),
        ("58 item.eligible[1]", "no field of items 'adult'"),
    ]),
    (BUYS, "{ratio: [purchase, clik], half_life: 9d}", [
        ("derived.buys.ratio[0]", "no count of purchase with half-life 9d"),
        ("derived.buys.ratio[1]", "'clik'"),
    ]),
    (BUYS, "{ratio: [purchase, click], half_life: 90}", [("derived.buys.half_life", "'90'")]),
    (BUYS, "{ratio: [purchase], half_life: 90d}", [("derived.buys.ratio", "not a pair")]),
    (BUYS, "{since: clik, side: user, pool: [any]}", [
        ("derived.buys.pool", "a since already"), ("derived.buys.side", "no use"),
        ("derived.buys.since", "'clik'"),
    ]),
    (BUYS, "{}", [("derived.buys", "nothing says what it is")]),
    (BUYS, "{match: brand}", [("derived.buys.match", "no affinity 'brand'")]),
    ("pool: [any]", "pool: [any, click]", [("derived.chosen.pool", "any is all of them")]),
    ("{since: any}", "{surface: false}", [("derived.idle.surface", "nothing would be read")]),
    ("{since: any}", "{position: 0}", [("derived.idle.position", "not")]),
    ("{since: any}", "{position: 9, models: retrieval}", [("derived.idle.models", "no list")]),
    ("{since: any}", "{position: 9, surface: true}", [
        ("derived.idle.position", "a surface already"),
    ]),
    ("pool: [any]", "pool: [return]", [("derived.chosen.pool[0]", "no event of the history")]),
    ("{length: 20, models_read: 10}", "{length: 20, models_read: 30}", [
        ("history.models_read", "only 20 are kept"),
    ]),
    ("{length: 20, models_read: 10}", "{length: 20, models_read: x}", [
        ("history.models_read", "'x' is not such a number"),
    ]),
    ("click: {event: click}", "click: {event: impression, given: click}", [
        ("tasks.click.event", "every item shown"), ("tasks.click.given", "given itself"),
    ]),
    ("click: {event: click}", "click: {event: click, target: value, given: spend}", [
        ("tasks.click.target", "click has no value"), ("tasks.click.given", "by way of others"),
        ("81 tasks.buy.given", "by way of others"), ("82 tasks.spend.given", "by way of others"),
    ]),
    (FORMULA, "formula: klick * buy", [("value.formula", "no task or weight 'klick'")]),
    (FORMULA, "formula: click ** 2", [("value.formula", "no formula")]),
    (FORMULA, "formula: 1 + spare", [("value.formula", "reads no task")]),
    (FORMULA, "formula: click / (2 - spare)", [("value.formula", "not finite")]),
    (FORMULA, "formula: 5", [("value.formula", "not text")]),
    (WEIGHT, "{default: 30, min: -1, max: 20}", [("value.weights.buy_weight.default", "not from")]),
    (WEIGHT, "{min: x}", [
        ("value.weights.buy_weight.min", "'x' is not a number"),
        ("value.weights.buy_weight.default", "missing"),
    ]),
    ("spare: {default: 2}", "buy: {default: 2}", [("value.weights.buy", "there is a task buy")]),
    ("spare: {default: 2}", "epsilon: {default: 2}", [
        ("value.weights.epsilon", "rerank.epsilon is a parameter of every domain"),
    ]),
    ("diversity: category", "diversity: price", [("diversity", "price has no values")]),
    ("home: {}", "ho me: {}", [("surfaces.ho me", "not a name")]),
    ("value: spend / 2", "value: spent / 2", [("surfaces.cart.side-bar.value", "'spent'")]),
    ("storage: unified", "storage: hashed", [("tables.lookups", "only unified")]),
    ("storage: unified", "storage: unifed", [("tables.storage", "'unifed'")]),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "found"), WRONG, ids=lambda part: str(part)[:40])
def test_a_mistake_is_told_where_it_is_with_its_reason_and_nothing_else_is(
    shop: Path, old: str, new: str, found: list[tuple[str, str]]
) -> None:
    text = edited(old, new)
    line = TEXT[: TEXT.index(old)].count("\n") + 1
    expected = []
    for where, reason in found:
        number, _, path = where.rpartition(" ") if where[0].isdigit() else ("", "", where)
        expected.append((int(number or line), path, reason))
    told = problems(text, shop)
    assert sorted((p.line, p.path) for p in told) == sorted(e[:2] for e in expected), told
    for line, path, reason in expected:
        assert any(reason in p.reason for p in told if (p.line, p.path) == (line, path)), told
    assert all(p.fix for p in told)


@pytest.mark.parametrize(
    ("old", "new", "paths"),
    [
        ("\nevents:\n", "\nevents: 5\nother:\n", ["events", "other"]),
        ("\nevents:\n", "\nevnts:\n", ["events", "evnts"]),
        ("\nitem:\n", "\nitme:\n", ["itme"]),
        ("  fields:\n", "  felds:\n", ["item.felds"]),
        ("  purchase:\n    id: 6\n", "  user:\n    id: x\n", ["events.user", "events.user.id"]),
        ("  counts:\n    impr", "  counts: [click]\n  z:\n    impr", ["user.counts", "user.z"]),
        ("  weights:\n", "  weigths:\n", ["value.weigths"]),
        ("\ntasks:\n", "\ntasks: []\nother:\n", ["tasks", "other"]),
    ],
)
def test_nothing_follows_of_names_whose_declaration_is_wrong_itself(
    shop: Path, old: str, new: str, paths: list[str]
) -> None:
    text = edited(old, new).replace("purchase", "user" if "user" in new else "purchase")
    assert {p.path for p in problems(text, shop)} == set(paths)


def test_mistakes_that_have_nothing_to_do_with_each_other_are_told_at_once(shop: Path) -> None:
    text = (
        TEXT.replace("unit: EUR, repeats", "unit: 5, repeats")
        .replace("'NO'", "FR")
        .replace("seeds: 20", "seed: 1")
    )
    text = text.replace("since: any", "since: evr").replace("diversity: category", "diversity: x")
    told = [(p.line, p.path) for p in problems(text, shop)]
    assert told == [
        (14, "events.return.value.unit"),
        (60, "item.eligible[3]"),
        (69, "derived.idle.since"),
        (91, "diversity"),
        (95, "surfaces.cart.side-bar.seed"),
    ]


@pytest.mark.parametrize(
    ("condition", "reason"),
    [
        ("in_stok", "no field of items 'in_stok'"),
        ("price", "no flag but a number"),
        ("not not adult", "no condition"),
        ("in_stock or adult", "no condition"),
        ("price<9", "no condition"),
        ("yes", "not text"),
        ("[adult]", "text is missing"),
        ("adult == true", "no category but a flag"),
        ("brand has x", "no bag but a category"),
        ("countries == DE", "no category but a bag"),
        ("countries has user.contry", "no field of the user 'contry'"),
        ("countries has user.", "no field of the user ''"),
        ("countries has context.hour", "no category but a number"),
        ("countries has FR", "'FR' is not one of the values"),
        ("brand == usr.country", "may not be meant as a value"),
        ("brand == now", "no time but a category"),
        ("brand < 5", "no number or time but a category"),
        ("price < cheap", "no number"),
        ("price < 1e99", "no number"),
        ("price < ٣", "no number"),
        ("price < user.country", "no number but a category"),
        ("released < 5", "no time here"),
        ("released < context.hour", "no time but a number"),
    ],
)
def test_a_condition_that_cannot_hold_is_refused(shop: Path, condition: str, reason: str) -> None:
    (told,) = problems(edited("- in_stock\n", f"- {condition}\n"), shop)
    assert (told.line, told.path) == (57, "item.eligible[0]")
    assert reason in told.reason


@pytest.mark.parametrize("name", [*SERVING, *OF_TRAININGS])
def test_no_event_is_named_like_what_experiments_and_trainings_have_of_themselves(
    name: str,
) -> None:
    text = SMALLEST.replace("{click: {id: 1}}", f"{{click: {{id: 1}}, {name}: {{id: 2}}}}")
    (told,) = problems(text)
    assert (told.path, told.fix) == (f"events.{name}", "Choose another, with an id that none had")
    assert "meaning of its own in every domain" in told.reason


@pytest.mark.parametrize("table", TABLES)
def test_no_field_is_named_like_what_imported_tables_have_of_themselves(table: TableName) -> None:
    block = {"events": "context: %s", "items": "item: {fields: %s}", "users": "user: {given: %s}"}
    events = "{click: {id: 1}, seen: {id: 2, role: impression}}"
    text = SMALLEST.replace("{click: {id: 1}}", events) + "surfaces: {home: {}}\n"
    own = wanted_of(table, parse(text.encode(), "s"))
    for name in {word for each in own for word in (each.name, each.column)}:
        (told,) = problems(text + block[table] % f"{{{name}: {{type: flag}}}}")
        assert (told.line, told.path.rpartition(".")[2]) == (6, name)
        assert f"{name} is what imported {table} have of themselves" in told.reason
        assert told.fix == "Give the field another name"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("none.txt", None, "no file of this name"),
        ("pipe", None, "no file of this name"),  # and nobody waits for it
        (".", None, "no file of this name"),
        ("../values.txt", b"a", "outside the folder"),
        ("/etc/hostname", None, "outside the folder"),
        ('"a\\0b"', None, "cannot be read"),
        ("x" * 300, None, "cannot be read"),
        ("values.txt", b"", "no value"),
        ("values.txt", b"\n\n", "no value"),
        ("values.txt", b"a\n\nb", "line 2 of values.txt is no value"),
        ("values.txt", b"a\n b", "line 2 of values.txt is no value"),
        ("values.txt", b"a\n" + b"b" * 257, "line 2 of values.txt is no value"),
        ("values.txt", b"a\nb\na", "lines 1 and 3 of values.txt are both 'a'"),
        ("values.txt", b"caf\xe9", "cannot be read"),
        ("values.txt", b"a" * 17_000_000, "more than"),
        ("values.txt", "\n".join(map(str, range(65_536))).encode(), "65,536 values"),
    ],
)
def test_a_file_of_values_that_is_none_is_told_where_it_is_named(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    if content is not None:
        (folder / name).write_bytes(content)
    (told,) = problems(edited("categories.txt", name), folder)
    assert (told.line, told.path) == (41, "item.fields.category.values_file")
    assert reason in told.reason


def test_no_other_character_than_the_end_of_a_line_ends_a_value(shop: Path) -> None:
    (shop / "categories.txt").write_text("a\u2028b\nc\x0cd\x85e\n")
    field = parse(TEXT.encode(), "s", shop).item_field["category"]
    assert field.vocabulary is not None
    assert field.vocabulary.values == ("a\u2028b", "c\x0cd\x85e")


def test_without_a_folder_no_file_can_be_named() -> None:
    (told,) = problems(TEXT)
    assert (told.line, told.reason) == (41, "there is no folder to find it in")


@pytest.mark.parametrize(
    ("data", "line", "reason"),
    [
        (b"", 1, "empty"),
        (b"# nothing\n", 1, "empty"),
        (b"~", 1, "not a mapping"),
        (b"- format: 1", 1, "not a mapping"),
        (b"format: 1\n\tevents: {}", 2, "found a tab"),
        (b"format: 1\nx: caf\xe9", 2, "not UTF-8"),
        (SMALLEST.encode("utf-16"), 1, "not UTF-8"),
        (b"format: 1\nx: \x07", 2, "control character"),
        (b"format: 1\nx: [", 2, "did not find"),
        (b'x: "a\n\n', 3, "found unexpected end of stream"),
        (b"[" * 100_000, 1, "nested too deeply"),
        (b"x: &x 1\ny: *x", 2, "aliases"),
        (SMALLEST.encode() + b"---\n", 5, "another document"),
        (SMALLEST.encode() + b"history: {}\nhistory: {}", 6, "twice"),
        (SMALLEST.encode() + b"? [a]\n: 1", 5, "plain text"),
        (SMALLEST.encode() + b"derived: !!set {a}", 5, "not a mapping"),
    ],
)
def test_what_is_no_mapping_in_yaml_is_refused_on_its_line(
    data: bytes, line: int, reason: str
) -> None:
    (told,) = problems(data)
    assert told.line == line
    assert reason in told.reason


EVENTS = {"click": {"id": 1}} | {f"e{i}": {"id": i} for i in range(2, 66)}


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"events": EVENTS}, "65 events"),
        ({"surfaces": {f"s{i}": {} for i in range(65)}}, "65 surfaces"),
        ({"context": {f"c{i}": {"type": "flag"} for i in range(257)}}, "257 names"),
        ({"user": {"counts": {f"c{i}": {} for i in range(257)}}}, "257 names"),
        ({"item": {"display": [f"c{i}" for i in range(257)]}}, "there are 257"),
    ],
    ids=["events", "surfaces", "fields", "counts", "display"],
)
def test_there_is_not_too_much_of_anything(more: dict[str, object], reason: str) -> None:
    (told,) = problems(json.dumps(yaml.safe_load(SMALLEST) | more))
    assert reason in told.reason
