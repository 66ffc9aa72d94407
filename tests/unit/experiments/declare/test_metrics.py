"""Declaring metrics and the plan of an experiment: what is read, and what is refused, and where."""

from dataclasses import replace
from typing import get_args

import jsonschema
import pytest
import yaml

from models.schema.declaration import SERVING, Amount, Count, Declaration, Event, Field, Vocabulary
from services.experiments.declare import config_reader
from services.experiments.declare.config import ExperimentsError, moving_changes
from services.experiments.declare.domain import domain_of
from services.experiments.declare.metrics import (
    Goal,
    Guardrail,
    Having,
    Metric,
    MetricKind,
    allowed_of,
)
from services.experiments.declare.reader.file import json_schema
from tests.domains import FILMS

GOOD = """\
version: 1
metrics:
  - {name: ctr, kind: ratio, of: click, per: impression, better: higher, window_s: 600}
  - {name: liked, kind: binary, of: like, better: higher}
  - {name: p99, kind: quantile, of: latency, quantile: 0.99, better: lower}
  - {name: degraded, kind: ratio, of: degraded, per: request, better: lower}
  - {name: unused, kind: mean, of: request, better: higher}
layers:
  - name: value
    parameters: [rerank.diversity]
    experiments:
      - name: mix
        arms: [{name: first, weight: 50}, {name: second, weight: 50}]
        primary: {metric: ctr, minimal_effect: 0.02}
        secondary:
          - {metric: liked, minimal_effect: 0.05}
        guardrails:
          - {metric: p99, allowed_harm: 0.2}
          - {metric: degraded, allowed_absolute_harm: 0.01}
        observe_s: 3600
        planned_units: 50000
"""
VALIDATOR = jsonschema.Draft7Validator(json_schema(FILMS))


def edited(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, old
    return GOOD.replace(old, new)


def test_metrics_and_the_plan_read_as_written() -> None:
    config = config_reader.parse(GOOD.encode(), "e.yaml", FILMS)
    ctr = Metric("ctr", "ratio", "click", "higher", per="impression", window_s=600.0)
    liked = Metric("liked", "binary", "like", "higher")
    p99 = Metric("p99", "quantile", "latency", "lower", quantile=0.99)
    degraded = Metric("degraded", "ratio", "degraded", "lower", per="request")
    assert config.metrics[:4] == (ctr, liked, p99, degraded)
    experiment = config.layers[0].experiments[0]
    plan = experiment.plan
    assert plan.primary == Goal(ctr, 0.02)
    assert plan.secondary == (Goal(liked, 0.05),)
    assert plan.guardrails == (Guardrail(p99, 0.2), Guardrail(degraded, 0.01, absolute=True))
    assert (plan.observe_s, plan.planned_units) == (3600, 50_000)
    assert plan.metrics == (ctr, liked, p99, degraded)
    assert plan.window_s == 1800  # liked's
    assert experiment.control == "first"
    assert not list(VALIDATOR.iter_errors(yaml.safe_load(GOOD)))


def test_the_arm_named_control_is_the_control_wherever_it_stands() -> None:
    text = edited("name: second", "name: control")
    assert (
        config_reader.parse(text.encode(), "e", FILMS).layers[0].experiments[0].control == "control"
    )


def test_an_experiment_may_use_metrics_of_another_file_of_the_folder() -> None:
    head, tail = GOOD.split("layers:\n")
    sources = {
        "a.yaml": b"version: 1\nlayers:\n" + tail.encode(),
        "b.yaml": head.encode() + b"layers: []\n",
    }
    assert config_reader.parse_all(sources, "d", FILMS) == config_reader.parse(
        GOOD.encode(), "e", FILMS
    )
    with pytest.raises(ExperimentsError) as caught:
        config_reader.parse_all(sources | {"c.yaml": head.encode() + b"layers: []\n"}, "d", FILMS)
    assert len(caught.value.lines()) == 5
    assert caught.value.lines()[0].startswith("d/c.yaml:3: metrics[0].name: metrics[0] of b.yaml")


def test_changing_what_is_judged_moves_nobody() -> None:
    before = config_reader.parse(GOOD.encode(), "e", FILMS)
    after = config_reader.parse(edited("observe_s: 3600", "observe_s: 60").encode(), "e", FILMS)
    assert before != after
    assert moving_changes(before, after) == []


PRIMARY = "{metric: ctr, minimal_effect: 0.02}"


@pytest.mark.parametrize(
    ("text", "line", "path", "reason", "in_schema"),
    [
        (edited("kind: binary", "kind: rate"), 4, "metrics[1].kind", "cannot stand here", True),
        (edited("kind: binary, ", ""), 4, "metrics[1].kind", "missing", True),
        (edited(", of: like, better: higher", ", of: like"), 4, "[1].better", "missing", True),
        (edited("of: like", "of: latency"), 4, "metrics[1].of", "in a binary. Use one of", False),
        (edited("of: like", "of: likes"), 4, "metrics[1].of", "Write `like`", True),
        (edited("of: click, per: impression", "of: click"), 3, "metrics[0].per", "needs", False),
        (edited("per: impression", "per: click"), 3, "metrics[0].per", "divides by itself", False),
        (edited("per: impression", "per: latency"), 3, "metrics[0].per", "cannot stand", True),
        (edited("of: like", "of: like, per: click"), 4, "metrics[1].per", "no use for", False),
        (edited("of: like", "of: like, quantile: 0.5"), 4, "[1].quantile", "no use for", False),
        (edited("quantile: 0.99, ", ""), 5, "metrics[2].quantile", "needs this key", False),
        (edited("quantile: 0.99", "quantile: 1"), 5, "[2].quantile", "above 0 and below 1", True),
        (edited("quantile: 0.99", "quantile: .nan"), 5, "[2].quantile", "not such a num", False),
        (edited("window_s: 600", "window_s: 0"), 3, "metrics[0].window_s", "above 0", True),
        (edited("window_s: 600", "window_s: 10m"), 3, "metrics[0].window_s", "not such a", True),
        (edited("per: request", "per: request, window_s: 5"), 6, "window_s", "no feedback", False),
        (edited("name: liked", "name: ctr"), 4, "metrics[1].name",
         "metrics[0] has the same name 'ctr'. Give it a name of its own", False),
        (edited(PRIMARY, "{metric: crt, minimal_effect: 1}"), 14, "primary.metric",
         "no metric 'crt'. Write `ctr`", False),
        (edited(PRIMARY, "{metric: ctr}"), 14, "primary.minimal_effect", "missing", True),
        (edited(PRIMARY, "{metric: ctr, minimal_effect: 0}"), 14, "minimal_effect", "above", True),
        (edited(PRIMARY, "ctr"), 14, "primary", "not a mapping", True),
        (edited("metric: liked", "metric: ctr"), 16, "secondary[0]", "judged here already", False),
        (edited("metric: degraded", "metric: p99"), 19, "guardrails[1]", "judged here", False),
        (edited(", allowed_harm: 0.2", ""), 18, "guardrails[0]",
         "a guardrail needs a margin. Write `allowed_harm", False),
        (edited("_harm: 0.2", "_harm: 0.2, allowed_absolute_harm: 1"), 18, "guardrails[0]",
         "has one margin", False),
        (edited("allowed_harm: 0.2", "allowed_harm: -0.2"), 18, "allowed_harm", "above 0", True),
        (edited("observe_s: 3600", "observe_s: true"), 20, "observe_s", "not such a", True),
        (edited("planned_units: 50000", "planned_units: 5.5"), 21, "planned_units", "whole", True),
    ],
)  # fmt: skip
def test_a_wrong_declaration_names_its_line_its_path_and_the_reason(
    text: str, line: int, path: str, reason: str, in_schema: bool
) -> None:
    with pytest.raises(ExperimentsError) as caught:
        config_reader.parse(text.encode(), "e.yaml", FILMS)
    (message, *_) = caught.value.lines()
    assert message.startswith(f"e.yaml:{line}: ")
    assert path in message
    assert reason in message
    assert bool(list(VALIDATOR.iter_errors(yaml.safe_load(text)))) == in_schema


def test_a_metric_with_an_error_is_reported_once_and_not_where_it_is_used() -> None:
    with pytest.raises(ExperimentsError) as caught:
        config_reader.parse(edited("quantile: 0.99, ", "").encode(), "e", FILMS)
    assert len(caught.value.lines()) == 1


def test_without_metrics_the_fix_is_to_declare_one() -> None:
    head, tail = GOOD.split("metrics:\n")
    text = head + "layers:\n" + tail.split("layers:\n")[1]
    with pytest.raises(ExperimentsError) as caught:
        config_reader.parse(text.encode(), "e", FILMS)
    assert len(caught.value.lines()) == 4
    assert "Declare it in `metrics`" in caught.value.lines()[0]


def test_every_kind_and_source_that_the_manual_allows_is_read() -> None:
    for kind in get_args(MetricKind):
        for of in allowed_of(kind, FILMS.events):
            extra = {"ratio": ", per: request", "quantile": ", quantile: 0.5"}.get(kind, "")
            text = f"version: 1\nlayers: []\nmetrics: [{{name: m, kind: {kind}, of: {of}{extra}"
            (metric,) = config_reader.parse(
                f"{text}, better: lower}}]".encode(), "e", FILMS
            ).metrics
            assert (metric.kind, metric.of, metric.better) == (kind, of, "lower")


PROPERTIES = (
    Field(name="coupon", type="flag", default=False),
    Field(
        name="channel", type="category",
        vocabulary=Vocabulary(source="values", size=2, values=("app", "web")),
    ),
    Field(name="city", type="category", vocabulary=Vocabulary(source="hashed", size=9)),
    Field(name="pieces", type="number"),
)  # fmt: skip
EVENTS = (
    Event(name="seen", id=1, impression=True),
    Event(name="purchase", id=6, history=True, value=Amount(unit="EUR"), properties=PROPERTIES),
    Event(name="refund", id=200, value=Amount(unit="EUR", low=-100)),
    Event(name="view", id=4),
)
COUNTS = (
    Count(event="purchase", half_life_s=60.0),
    Count(event="purchase", half_life_s=3600.0),
    Count(event="seen"),
    Count(event="purchase", of_value=True),
)
SHOP = domain_of(Declaration(events=EVENTS, user_counts=COUNTS, tasks=(), formula="purchase"))
SHOP_SCHEMA = jsonschema.Draft7Validator(json_schema(SHOP))
BOUGHT = GOOD.replace("of: click, per: impression", "of: refund.value, per: purchase").replace(
    "of: like", "of: purchase"
)


def shop_metric(text: str) -> Metric:
    whole = f"version: 1\nlayers: []\nmetrics: [{{name: m, better: higher, {text}}}]"
    return config_reader.parse(whole.encode(), "e", SHOP).metrics[0]


def test_metrics_are_of_the_events_of_the_domain_and_of_their_values() -> None:
    config = config_reader.parse(BOUGHT.encode(), "e", SHOP)
    ratio, binary, *serving = config.metrics
    assert (ratio.source, ratio.per_source, binary.source) == (-200, 6, 6)
    assert (ratio.amount, binary.amount) == (EVENTS[2].value, None)
    assert [(m.source, m.of_feedback) for m in serving] == [(0, False)] * 3
    assert not list(SHOP_SCHEMA.iter_errors(yaml.safe_load(BOUGHT)))
    assert list(VALIDATOR.iter_errors(yaml.safe_load(BOUGHT)))
    assert shop_metric("kind: mean, of: purchase.value, winsorise: 0.99").winsorise == 0.99
    assert shop_metric("kind: binary, of: purchase.value, at_least: 50").at_least == 50
    assert shop_metric("kind: quantile, of: purchase.value, quantile: 0.5").source == -6
    narrowed = "kind: mean, of: purchase.value, where: {coupon: [true], city: [Oslo, Rome]}"
    expected = (Having("coupon", (True,)), Having("city", ("Oslo", "Rome")))
    assert shop_metric(narrowed).where == expected


@pytest.mark.parametrize(
    ("text", "covariate"),
    [
        ("kind: mean, of: purchase.value", -6),  # its own sum
        ("kind: ratio, of: purchase, per: request", 6),  # its own count, that of the longer memory
        ("kind: mean, of: request", 1),  # what was seen
        ("kind: mean, of: refund.value", 0),  # neither sum nor count is kept
        ("kind: mean, of: error", 0),
        ("kind: quantile, of: purchase.value, quantile: 0.5", 0),
    ],
)
def test_the_covariate_is_what_the_store_keeps_of_the_same(text: str, covariate: int) -> None:
    assert shop_metric(text).covariate == covariate
    assert [kept.name for kept in SHOP.events.kept] == ["purchase", "seen", "purchase.value"]
    assert SHOP.events.kept[0].kept.half_life_s == 3600
    assert SHOP.events.tested == ("seen", "purchase.value")  # what fades is no count of now


def test_an_event_that_the_domain_lacks_is_refused_with_what_it_has() -> None:
    with pytest.raises(ExperimentsError) as caught:
        config_reader.parse(GOOD.encode(), "e", SHOP)
    first = caught.value.lines()[0]
    assert "e:3: metrics[0].of" in first
    assert "purchase" in first


@pytest.mark.parametrize(
    ("text", "key", "reason", "fix"),
    [
        ("kind: mean, of: seen.value", "of", "no value comes with seen", "Write `seen` to count."),
        ("kind: mean, of: view.value", "of", "no value comes with view", "events: view: value"),
        ("kind: mean, of: purchase.price", "of", "cannot stand", "Write `purchase`"),
        ("kind: mean, of: purchase.value.value", "of", "cannot stand", "`purchase.value`"),
        ("kind: mean, of: basket.value", "of", "cannot stand", "Write `purchase.value`"),
        ("kind: mean, of: error.value", "of", "cannot stand", "Write `error`"),
        ("kind: mean, of: .value", "of", "cannot stand", "Write `"),
        ("kind: ratio, of: purchase.value, per: seen.value", "per", "no value", "`seen` to count"),
        ("kind: ratio, of: purchase, per: refund.value", "per", "may be below 0", "`min` of 0"),
        ("kind: quantile, of: refund.value, quantile: 0.5", "of", "may be below 0", "ask for a m"),
        ("kind: ratio, of: latency, per: purchase.value", "per", "cannot stand", "one of request"),
        ("kind: binary, of: purchase, winsorise: 0.9", "winsorise", "no use for", "Delete"),
        ("kind: mean, of: purchase, at_least: 2", "at_least", "no use for", "Delete"),
        ("kind: mean, of: purchase, winsorise: 1", "winsorise", "above 0 and below 1", ""),
        ("kind: binary, of: purchase, at_least: 0", "at_least", "above 0", ""),
        ("kind: binary, of: purchase, at_least: .inf", "at_least", "not such a num", ""),
        ("kind: mean, of: purchase, where: {copon: [true]}", "where.copon", "no such", "`coupon`"),
        ("kind: mean, of: view, where: {coupon: [true]}", "where.coupon", "no such", "Declare it"),
        ("kind: mean, of: request, where: {coupon: [true]}", "where", "is no event", "Delete"),
        ("kind: mean, of: purchase, where: {pieces: [x]}", "where.pieces", "a number", "value"),
        ("kind: mean, of: purchase, where: {coupon: []}", "where.coupon", "no value", "List"),
        ("kind: mean, of: purchase, where: {coupon: true}", "where.coupon", "not a list", "- "),
        ("kind: mean, of: purchase, where: {coupon: [x]}", "where.coupon[0]", "is a flag", "true"),
        ("kind: mean, of: purchase, where: {city: [true]}", "where.city[0]", "category", "text"),
        ("kind: mean, of: purchase, where: {city: [5]}", "where.city[0]", "no text", "quotes"),
        ("kind: mean, of: purchase, where: {channel: [ap]}", "where.channel[0]", "no val", "`app`"),
    ],
)
def test_what_the_domain_lacks_of_values_is_refused_with_the_fix(
    text: str, key: str, reason: str, fix: str
) -> None:
    with pytest.raises(ExperimentsError) as caught:
        shop_metric(text)
    (line,) = caught.value.lines()
    assert line.startswith(f"e:3: metrics[0].{key}: ")
    assert reason in line
    assert fix in line


def test_where_no_event_is_a_choice_nothing_can_be_interleaved() -> None:
    arms = "arms: [{name: a}, {name: b}], interleave: team_draft"
    text = f"version: 1\nlayers: [{{name: l, experiments: [{{name: e, {arms}}}]}}]"
    events = tuple(replace(event, history=False) for event in EVENTS)
    nobody = domain_of(Declaration(events=events, tasks=(), formula="purchase"))
    assert config_reader.parse(text.encode(), "e", SHOP).layers
    with pytest.raises(ExperimentsError, match=r"interleave: .*no event by which users choose"):
        config_reader.parse(text.encode(), "e", nobody)


def test_an_event_called_like_something_of_serving_does_not_take_its_place() -> None:
    assert SHOP.events.sources.keys().isdisjoint(SERVING)
    text = GOOD.replace("of: click, per: impression", "of: error, per: request")
    text = text.replace("of: like", "of: seen").replace(", window_s: 600", "")
    assert config_reader.parse(text.encode(), "e", SHOP).metrics[0].source == 0
