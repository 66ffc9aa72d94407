"""The HTML page: what it says, that it needs nothing else, and that names stay text."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from services.experiments.cli.experiments import app
from services.experiments.report.findings import ChangeReport, Report
from services.experiments.report.html.answer import answer, stopped_arms
from services.experiments.report.html.forests import duration, typeset
from services.experiments.report.html.page import page
from services.experiments.report.html.scale import Scale, around_values, around_zero, round_values
from tests.unit.experiments.report import sample_reports
from tests.unit.experiments.report.sample_reports import ALL, HOSTILE

VOID = {"meta", "br", "img", "hr", "input", "link"}


class Parsed(HTMLParser):
    """Elements with attributes, the text, and whether every tag is closed where it belongs."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert len(given) == len(attrs), f"an attribute twice in {tag}"
        self.elements.append((tag, given))
        if name := given.get("id"):
            self.ids.append(name)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@cache
def sample(name: str) -> Report:
    return ALL[name]()


@cache
def parsed(name: str) -> Parsed:
    return Parsed(page(sample(name)))


def plain(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", ALL)
def test_a_page_is_well_formed_and_every_label_points_at_something(name: str) -> None:
    found = parsed(name)
    assert len(found.ids) == len(set(found.ids))
    for _, attributes in found.elements:
        if target := attributes.get("aria-labelledby"):
            assert target in found.ids
    assert [attributes["lang"] for attributes in found.all("html")] == ["en"]


@pytest.mark.parametrize("name", ALL)
def test_a_page_needs_nothing_from_anywhere(name: str) -> None:
    text = page(sample(name))
    found = parsed(name)
    for tag in ("script", "link", "img", "iframe", "object", "use", "image"):
        assert not found.all(tag)
    for _, attributes in found.elements:
        assert not {"src", "href", "xlink:href", "style"} & attributes.keys()
        assert not any(key.startswith("on") for key in attributes)
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.parametrize("name", ALL)
def test_every_plot_says_in_words_what_it_shows_or_is_hidden(name: str) -> None:
    for attributes in parsed(name).all("svg"):
        if attributes.get("role") == "img":
            assert attributes["aria-label"]
        elif "overflow" not in attributes:  # a symbol inside of a plot
            assert attributes["aria-hidden"] == "true"


@pytest.mark.parametrize("name", ALL)
def test_every_header_cell_has_a_scope(name: str) -> None:
    assert all(attributes.get("scope") in ("row", "col") for attributes in parsed(name).all("th"))


@pytest.mark.parametrize("name", ALL)
def test_equal_reports_give_equal_bytes_without_a_number_that_is_none(name: str) -> None:
    text = page(sample(name))
    assert text == page(ALL[name]())
    drawn = re.findall(r"<(?:line|rect|circle|text|path|svg)[^>]*>", text)
    assert not [tag for tag in drawn if re.search(r"\b(nan|inf)\b", tag)]


def test_no_name_gets_out_of_its_text() -> None:
    found = parsed("hostile")
    assert not found.all("script")
    assert not found.all("img")
    assert found.text.count(HOSTILE) >= 30


@given(st.text(min_size=1, max_size=30))
def test_whatever_the_names_are_the_page_has_the_same_elements(name: str) -> None:
    base = sample("empty")
    arms = (base.arms[0], replace(base.arms[1], arm=name))
    renamed = replace(base, experiment=name, layer=name, arms=arms, warnings=(name,))
    control = replace(base, warnings=("x",))
    assert [tag for tag, _ in Parsed(page(renamed)).elements] == [
        tag for tag, _ in Parsed(page(control)).elements
    ]


# What it says.


@pytest.mark.parametrize(
    ("name", "headline", "todo"),
    [
        ("winner", "treatment is better than control", "Use treatment: click_rate is better"),
        ("undecided", "Undecided so far", "Keep it running"),
        ("breached", "The data cannot be trusted yet", "treatment is stopped already"),
        ("interleaved", "mc_mlcc is preferred to masknet", "Go on with mc_mlcc"),
        ("empty", "Nothing to see yet", "look whether requests come in"),
    ],
)
def test_the_page_begins_with_the_answer(name: str, headline: str, todo: str) -> None:
    said = answer(sample(name))
    assert said.headline == headline
    assert todo in " ".join(said.todo)
    text = plain(parsed(name).text)
    assert text.index(headline) < text.index("What was tested") < text.index("How to read this")
    for sentence in (*said.tested, *said.known, *said.todo):
        assert plain(typeset(sentence)) in text


def without_doubt(report: Report) -> Report:
    return replace(report, sample_ratio=None, changes=())


def test_a_breach_outranks_a_win_and_asks_to_stop_the_arm() -> None:
    broken = replace(sample("winner").guardrails[0], safety="breached", sentence="BREACHED.")
    base = without_doubt(sample("winner"))
    said = answer(replace(base, guardrails=(broken, base.guardrails[1])))
    assert said.headline == "treatment harms latency_p99: stop it"
    assert said.tone == "bad"
    assert "BREACHED." in said.known


def test_who_doubts_the_data_is_not_told_to_use_an_arm() -> None:
    base = sample("winner")
    assert base.sample_ratio is not None
    said = answer(replace(base, sample_ratio=replace(base.sample_ratio, broken=True)))
    assert said.headline == "The data cannot be trusted yet"
    assert len(said.todo) == 1


def test_a_win_with_an_undecided_guardrail_says_which_is_not_shown_to_hold() -> None:
    open_one = replace(sample("winner").guardrails[0], safety="undecided")
    base = without_doubt(sample("winner"))
    (todo,) = answer(replace(base, guardrails=(open_one, base.guardrails[1]))).todo
    assert "latency_p99 is not shown to hold yet" in todo


@pytest.mark.parametrize(
    ("change", "headline"),
    [
        ({"verdict": "worse"}, "treatment is worse than control"),
        (
            {"verdict": "no difference that matters"},
            "treatment makes no difference that matters",
        ),
        ({"implausible": True}, "treatment looks too good or too bad to be true"),
        ({"verdict": "undecided"}, "Undecided so far"),
    ],
)
def test_the_headline_follows_the_verdict(change: dict[str, object], headline: str) -> None:
    base = without_doubt(sample("winner"))
    goals = (replace(base.goals[0], **change), *base.goals[1:])  # type: ignore[arg-type]
    assert answer(replace(base, goals=goals)).headline == headline


def test_an_ended_experiment_is_not_asked_to_go_on() -> None:
    said = answer(replace(sample("undecided"), state="ended"))
    assert said.headline == "It ended undecided"
    assert "Keep it running" not in " ".join(said.todo)


def test_without_a_primary_metric_the_answer_asks_for_one() -> None:
    base = without_doubt(sample("winner"))
    said = answer(replace(base, goals=base.goals[1:]))
    assert said.headline == "There is no metric that decides"


def test_an_arm_is_stopped_until_it_is_resumed() -> None:
    changes = sample("breached").changes
    assert stopped_arms(sample("breached")) == ("treatment",)
    assert stopped_arms(replace(sample("breached"), changes=changes[:2])) == ()
    assert stopped_arms(replace(sample("breached"), changes=changes[::-1])) == ("treatment",)


def test_all_parts_of_a_full_report_are_on_the_page() -> None:
    text = plain(parsed("winner").text)
    for part in (
        "with CUPED, correlation 0.",
        "without CUPED",
        "served undegraded",
        "By day of first exposure",
        "new_users",
        "Where units get lost",
        "served → joined",
        "only valid if you look once",
        "changes too small to matter",
        "more harm than is allowed",
        "Held for 48 h with 5,101 units",
        "ramp advanced",
        "3,120 of 5,000 units",
    ):
        assert part in text
    assert [a for _, a in parsed("winner").elements if a.get("aria-current") == "step"]


def test_the_page_says_what_each_arm_changes() -> None:
    winner = sample("winner")
    assert [dict(arm.parameters) for arm in winner.arms] == [
        {"ranking.model": "masknet"},
        {"ranking.model": "mc_mlcc"},
    ]
    text = plain(parsed("winner").text)
    assert "treatment: ranking.model = mc_mlcc." in text
    assert text.count("ranking.model = mc_mlcc") == 2  # and in the table of arms
    bare = replace(winner, arms=(replace(winner.arms[0], parameters={}), *winner.arms[1:]))
    assert "control: production defaults." in plain(Parsed(page(bare)).text)


def test_both_rankings_of_an_interleaving_experiment_say_what_they_change() -> None:
    mixed = sample("interleaved")
    assert mixed.preference is not None
    text = plain(parsed("interleaved").text)
    assert f"{mixed.preference.arm_b}: ranking.model = mc_mlcc." in text
    assert "production defaults" not in text


def test_a_parameters_text_does_not_get_out_of_its_place() -> None:
    base = sample("empty")
    evil = replace(base, arms=(replace(base.arms[0], parameters={"x": "<script>"}), base.arms[1]))
    assert "x = <script>" in Parsed(page(evil)).text
    assert not Parsed(page(evil)).all("script")


def test_the_row_that_the_verdict_rests_on_stands_first() -> None:
    goal = sample("winner").goals[0]
    assert goal.cuped is not None
    text = plain(parsed("winner").text)
    judged, bare = (f"{100 * e.lift:+.3g} %" for e in (goal.cuped, goal.all_units))
    assert judged != bare
    assert text.index(judged) < text.index("without CUPED") < text.index(bare)


def test_units_that_a_stop_cut_short_are_told() -> None:
    base = sample("breached")
    arms = (base.arms[0], replace(base.arms[1], cut=321))
    text = plain(Parsed(page(replace(base, arms=arms))).text)
    assert "321" in text
    assert "cut short because their arm was stopped" in text
    assert "cut short" not in plain(parsed("breached").text)


def test_a_guardrail_says_for_how_long_it_observes() -> None:
    base = sample("winner")
    short = replace(base.guardrails[0], observe_s=600.0)
    text = plain(Parsed(page(replace(base, guardrails=(short,)))).text)
    assert "within 10 minutes" in text


def test_what_a_report_does_not_have_is_not_on_its_page() -> None:
    text = plain(parsed("interleaved").text)
    for part in ("CUPED", "Guardrails", "Segments", "By day", "History", "warning"):
        assert part not in text
    assert "team draft interleaving" in text


def test_warnings_stand_before_every_number() -> None:
    text = plain(parsed("breached").text)
    assert text.index("Sample ratio mismatch") < text.index("The metric that decides")
    assert "✗ mismatch" in text


def test_changes_are_told_in_the_order_in_which_they_happened() -> None:
    base = sample("breached")
    assert page(replace(base, changes=base.changes[::-1])) == page(base)


def test_an_unknown_kind_of_change_is_shown_by_its_name() -> None:
    change = ChangeReport(
        at_ms=sample_reports.START_MS, actor="dana", kind="ARM_PAINTED", arm="b", reason="why not"
    )
    assert "arm painted" in Parsed(page(replace(sample("empty"), changes=(change,)))).text


def test_a_metric_without_a_lift_shows_its_change_and_no_place_on_the_axis() -> None:
    base = sample("winner")
    bare = replace(base.goals[0].all_units, lift=float("nan"))
    goals = (replace(base.goals[0], all_units=bare, undegraded=bare, cuped=None),)
    text = plain(Parsed(page(replace(base, goals=goals))).text)
    assert "not known yet" in text
    assert f"{bare.effect:+.3g}" in text


# Numbers and axes.


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(86_400, "1 day"), (129_600, "1.5 days"), (1800, "30 minutes"), (5, "5 seconds")],
)
def test_spans_are_told_in_their_largest_unit(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_typeset_changes_minus_signs_and_spaces_and_no_names() -> None:
    assert typeset("a-1 is -2 % (x -3)") == ("a-1 is \N{MINUS SIGN}2\u00a0% (x \N{MINUS SIGN}3)")


values = st.floats(-1e6, 1e6).filter(lambda v: v == 0 or abs(v) > 1e-6)


@given(st.lists(values, min_size=1, max_size=8), st.lists(values, max_size=8))
def test_an_axis_holds_zero_all_points_and_few_ticks(
    points: list[float], bounds: list[float]
) -> None:
    scale = around_zero(points, [*bounds, float("inf")], [])
    assert scale.holds(0)
    assert all(scale.holds(point) for point in points)
    assert len(scale.ticks()) <= 9
    assert all(
        -1e-9 <= scale.clipped(v) <= 100 + 1e-9 for v in (*bounds, float("inf"), -float("inf"))
    )


def test_one_wide_interval_does_not_hide_the_others() -> None:
    scale = around_zero([0.01, 0.02], [-0.03, 0.05, -0.04, 0.06, -40.0, 40.0], [])
    assert scale.high < 1
    assert not scale.holds(40)


@given(st.floats(-100, 100), st.floats(1e-6, 1e9), st.integers(1, 10))
def test_ticks_are_few_round_and_within(start: float, width: float, about: int) -> None:
    low, high = start * width, start * width + width
    ticks = round_values(low, high, about)
    assert all(low - width / 1e3 <= tick <= high + width / 1e3 for tick in ticks)
    assert len(ticks) <= about + 1
    for one, next_one in pairwise(ticks):
        assert f"{next_one - one:.3e}".split("e")[0] in ("1.000", "2.000", "2.500", "5.000")


def test_nothing_seen_stands_at_the_bottom_of_an_axis_that_goes_up() -> None:
    scale = around_values([0.0, 0.0], [0.0, 0.0])
    assert 0 < scale.place(0.0) < 10
    assert all(tick >= 0 for tick in scale.ticks())


@pytest.mark.parametrize("value", [0.08, -3.0])
def test_values_that_are_all_the_same_stand_in_the_middle(value: float) -> None:
    scale = around_values([value, value * (1 + 1e-15)], [value, value])
    assert scale.place(value) == pytest.approx(50)


def test_places_are_percent_of_the_width() -> None:
    scale = Scale(-1, 3)
    assert [scale.place(v) for v in (-1, 0, 3)] == [0, 25, 100]


def test_the_builders_are_all_different() -> None:
    builders: list[Callable[[], Report]] = list(ALL.values())
    assert len({page(build()) for build in builders}) == len(ALL)


FILE = """\
version: 1
layers:
  - name: value
    parameters: [rerank.diversity]
    experiments:
      - name: mix
        arms: [{name: control, weight: 100}]
"""


def test_the_command_writes_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # without settings the log is here, and empty
    Path("e.yaml").write_text(FILE)
    result = CliRunner().invoke(app, ["report", "mix", "e.yaml", "--html", "mix.html"])
    assert result.exit_code == 0, result.output
    assert "Nothing to see yet" in Parsed(Path("mix.html").read_text("utf-8")).text
    result = CliRunner().invoke(app, ["report", "mix", "e.yaml", "--html", "no/mix.html"])
    assert result.exit_code == 1
    assert "no/mix.html: cannot be written" in result.output
