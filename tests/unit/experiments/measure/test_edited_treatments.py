"""What is edited under a running experiment: two treatments or two tests never count as one."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pytest

from protos.tandem.v1.records_pb2 import CLICK, DecisionRecord
from services.experiments.act.snapshot import declared
from services.experiments.assign.assignment import Assigner
from services.experiments.declare import config_reader
from services.experiments.declare.config import ExperimentsConfig, moving_changes, remarks
from services.experiments.declare.fingerprints import fingerprint_of, known_fingerprint
from services.experiments.measure.measure import measured
from services.experiments.measure.results import Measured
from services.experiments.report.build import build_report
from services.experiments.report.findings import Coverage, Report
from tests.domains import FILMS
from tests.unit.experiments.messages import T0, Message, event, folded

TEXT = """\
version: 1
metrics:
  - {name: clicks, kind: mean, of: click, better: higher, window_s: 60}
  - {name: liked, kind: binary, of: like, better: higher}
  - {name: failed, kind: ratio, of: error, per: request, better: lower}
  - {name: p99, kind: quantile, of: latency, quantile: 0.99, better: lower}
  - {name: unused, kind: mean, of: request, better: higher}
layers:
  - name: value
    parameters: [rerank.diversity, rerank.like_weight]
    experiments:
      - name: mix
        arms:
          - {name: control, weight: 50}
          - {name: mixed, weight: 50, parameters: {rerank.diversity: 0.3}}
          - {name: invited, weight: 0, parameters: {rerank.diversity: 0.1}}
        primary: {metric: clicks, minimal_effect: 0.02}
        secondary: [{metric: liked, minimal_effect: 0.02}]
        guardrails: [{metric: failed, allowed_absolute_harm: 0.01}]
        observe_s: 60
        planned_units: 5000
"""
CONTROL, MIXED = (
    "{name: control, weight: 50}",
    "{name: mixed, weight: 50, parameters: {rerank.diversity: 0.3}}",
)
PRIMARY = "        primary: {metric: clicks, minimal_effect: 0.02}\n"
SECONDARY = "        secondary: [{metric: liked, minimal_effect: 0.02}]\n"
GUARDRAILS = "guardrails: [{metric: failed, allowed_absolute_harm: 0.01}"
LATER = T0 + 10**9


def edited(*changes: tuple[str, str]) -> str:
    text = TEXT
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def parsed(text: str) -> ExperimentsConfig:
    return config_reader.parse(text.encode(), "e.yaml", FILMS)


EXCHANGED = edited(
    (CONTROL, "{name: control, weight: 50, parameters: {rerank.diversity: 0.3}}"),
    (MIXED, "{name: mixed, weight: 50}"),
)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (edited(("0.3}", "0.9}")), "what its arms set (mixed)"),
        (edited(("0.3}", "0.3, rerank.like_weight: 3}")), "what its arms set (control, mixed)"),
        (edited((CONTROL, CONTROL[:-1] + ", parameters: {rerank.like_weight: 3}}")), "its arms"),
        (EXCHANGED, "what its arms set (control, mixed)"),
        (edited((PRIMARY, PRIMARY.replace("clicks", "unused"))), "primary metric"),
        (edited((PRIMARY, "")), "primary metric"),
        (edited(("of: click, better: higher", "of: click, better: lower")), "metric clicks"),
        (edited(("window_s: 60", "window_s: 61")), "metric clicks"),
        (edited(("kind: binary, of: like", "kind: mean, of: like")), "metric liked"),
        (edited(("per: request, better: lower", "per: request, better: higher")), "failed"),
        (edited(("planned_units: 5000", "planned_units: 500")), "planned_units"),
        (edited(("        planned_units: 5000\n", "")), "planned_units"),
    ],
)
def test_an_edit_that_makes_one_of_two_treatments_or_tests_wants_a_new_salt(
    text: str, what: str
) -> None:
    (problem,) = moving_changes(parsed(TEXT), parsed(text))
    assert what in problem.reason
    assert "new salt" in problem.fix
    afresh = text.replace("name: mix\n", "name: mix\n        salt: again\n")
    assert moving_changes(parsed(TEXT), parsed(afresh)) == []


@pytest.mark.parametrize(
    "text",
    [
        edited((CONTROL, CONTROL[:-1] + ", parameters: {rerank.diversity: 0.0}}")),  # the default
        edited(("0.1}", "0.2}")),  # of an arm that nobody gets
        edited(("name: unused, kind: mean, of: request", "name: unused, kind: mean, of: click")),
        edited((GUARDRAILS, GUARDRAILS + ", {metric: p99, allowed_harm: 0.2}")),
        edited((GUARDRAILS, "guardrails: [")),
        edited(("allowed_absolute_harm: 0.01", "allowed_absolute_harm: 0.02")),
        edited((SECONDARY, SECONDARY.replace("liked", "unused"))),
        edited((PRIMARY, PRIMARY.replace("0.02", "0.05"))),
        edited(("observe_s: 60", "observe_s: 600")),
        edited(("        observe_s: 60\n", "        observe_s: 60\n        traffic: 10\n")),
        edited(("  - {name: p99", "  # a line more\n  - {name: p99")),
    ],
)
def test_what_leaves_treatments_and_tests_as_they_are_is_allowed(text: str) -> None:
    assert parsed(text) != parsed(TEXT) or "a line more" in text
    assert moving_changes(parsed(TEXT), parsed(text)) == []


def test_a_first_primary_metric_may_be_declared_on_the_way() -> None:
    without = edited((PRIMARY, ""), (SECONDARY, ""))
    assert moving_changes(parsed(without), parsed(TEXT)) == []


def test_two_interleaved_rankings_have_parameters_that_stay_too() -> None:
    text = """\
version: 1
layers:
  - name: l
    parameters: [rerank.diversity]
    experiments:
      - name: e
        interleave: team_draft
        arms: [{name: a}, {name: b, parameters: {rerank.diversity: 0.3}}]
"""
    (problem,) = moving_changes(parsed(text), parsed(text.replace("0.3", "0.4")))
    assert "what its arms set (b)" in problem.reason


def test_an_experiment_under_another_name_or_salt_is_said_to_begin_afresh() -> None:
    for afresh in (
        TEXT.replace("name: mix\n", "name: blend\n"),
        TEXT.replace("name: mix\n", "name: mix\n        salt: again\n"),
    ):
        assert moving_changes(parsed(TEXT), parsed(afresh)) == []
        (said,) = remarks(parsed(TEXT), parsed(afresh))
        assert "all its users are dealt anew" in said
        assert "write `salt: mix` in it" in said
    kept = TEXT.replace("name: mix\n", "name: blend\n        salt: mix\n")
    assert remarks(parsed(TEXT), parsed(kept)) == remarks(parsed(TEXT), parsed(TEXT)) == []
    (said,) = remarks(parsed(TEXT), parsed(edited(("observe_s: 60", "observe_s: 600"))))
    assert "observe_s" in said


# The fingerprint.


def fingerprint(text: str) -> str:
    ((_, own),) = parsed(text).experiments()
    return fingerprint_of(own)


def test_two_fingerprints_are_the_same_exactly_if_all_arms_do_the_same() -> None:
    arm = "{{name: {}, weight: 50, parameters: {{rerank.diversity: {}}}}}"
    values = (0.0, 0.3, 0.9)
    texts = {
        (control, mixed): edited(
            (CONTROL, arm.format("control", control)), (MIXED, arm.format("mixed", mixed))
        )
        for control in values
        for mixed in values
    }
    assert len({fingerprint(text) for text in texts.values()}) == len(texts)
    assert fingerprint(texts[0.0, 0.3]) == fingerprint(TEXT)  # a default that is written down
    for text in texts.values():
        assert known_fingerprint(fingerprint(text)) == fingerprint(text)
        free = moving_changes(parsed(TEXT), parsed(text)) == []
        assert free == (fingerprint(text) == fingerprint(TEXT))


def test_a_snapshot_of_other_parameters_is_of_another_declaration() -> None:
    ((_, one),) = parsed(TEXT).experiments()
    ((_, other),) = parsed(edited(("0.3}", "0.9}"))).experiments()
    assert declared(one) != declared(other)


# Records of two treatments: a process was started with the edited file, or has the old one still.


def lived(
    seed: int,
    routers: Sequence[tuple[float, str, float]],
    *,
    users: int = 1500,
    visits: int = 1,
) -> list[Message]:
    """Users who come at random times in 40,000 s. `routers`: those that assign, one at random each
    time: since when, by which file, and how many clicks more its treatment brings."""
    rng = random.Random(seed)
    assigners = [(since, Assigner(parsed(text)), more) for since, text, more in routers]
    messages: list[Message] = []
    came = sorted((rng.random() * 40_000, user) for user in range(users) for _ in range(visits))
    for i, (at, user) in enumerate(came):
        _, assigner, more = rng.choice([r for r in assigners if at >= r[0]])
        decided = assigner.assign(f"u{user}", now_ms=T0 + at * 1000)
        messages.append(
            DecisionRecord(
                request_id=f"r{seed}-{i}",
                user_id=f"u{user}",
                event_time_ms=T0 + round(at * 1000),
                assignments=decided.messages,
            )
        )
        mean = 1.4 + more * (decided.assignments[0].arm == "mixed")
        clicks = int(mean) + (rng.random() < mean % 1)
        messages += [event(f"r{seed}-{i}", at + 1, CLICK, f"u{user}", n) for n in range(clicks)]
    return messages


def seen(messages: Sequence[Message], text: str) -> tuple[Measured, Report]:
    ((_, own),) = parsed(text).experiments()
    result = measured(folded(messages).settled(), own, LATER)
    return result, build_report("value", own, result, LATER, Coverage())


def unmarked(messages: Sequence[Message]) -> list[Message]:
    """As an older router would have written them."""
    found = [type(message).FromString(message.SerializeToString()) for message in messages]
    for message in found:
        if isinstance(message, DecisionRecord):
            for assignment in message.assignments:
                assignment.ClearField("fingerprint")
    return found


STRONGER = edited(("0.3}", "0.9}"))


def exposed_units(result: Measured) -> int:
    return sum(cell.exposed for cell in result.cells.values())


def test_units_of_two_treatments_are_never_pooled() -> None:
    """0.3 brings a click more, 0.9 brings none: a file edited half way, and a restart."""
    before = lived(1, [(0, TEXT, 1.0)], visits=2)
    after = lived(2, [(0, STRONGER, 0.0)], users=3000)
    for m in after:
        m.event_time_ms += 40_000_000
    result, found = seen([*before, *after], STRONGER)
    goal = found.goals[0]
    assert goal.verdict != "better"
    assert goal.all_units.sequence.low < 0 < goal.all_units.sequence.high
    assert goal.all_units.sequence.high < 0.5
    assert result.edited == 1500
    assert exposed_units(result) == 1500  # who came for the first time after the edit
    (said,) = [w for w in found.warnings if "were left out; a new salt starts afresh" in w]
    assert said.endswith(": 1,500.")
    assert Measured.from_json(json.loads(json.dumps(result.to_json()))) == result
    # The file as it was before is judged by its own units; they have met the other since.
    result, found = seen([*before, *after], TEXT)
    assert found.goals[0].verdict == "better"
    assert (result.edited, result.mixed) == (1500, 1500)
    assert result.elsewhere_ms > result.first_ms
    # Without the fingerprint the two would have been taken for one.
    _, careless = seen(unmarked([*before, *after]), STRONGER)
    assert careless.goals[0].verdict == "better"


def test_control_and_treatment_that_exchanged_their_parameters_do_not_cancel_out() -> None:
    before = lived(1, [(0, TEXT, 1.0)])
    after = lived(2, [(0, EXCHANGED, -0.5)])
    for m in after:
        m.user_id = f"other-{m.user_id}"
        m.event_time_ms += 40_000_000
    assert seen([*before, *after], TEXT)[1].goals[0].verdict == "better"
    assert seen([*before, *after], EXCHANGED)[1].goals[0].verdict == "worse"


def test_a_router_that_has_the_old_file_for_ever_leaves_both_files_something_to_tell() -> None:
    messages = lived(3, [(0, TEXT, 1.0), (10_000, STRONGER, 0.0)], users=3000, visits=3)
    old, told = seen(messages, TEXT)
    new, told_new = seen(messages, STRONGER)
    assert exposed_units(old) + exposed_units(new) == 3000 == old.edited + new.edited
    assert min(old.mixed, new.mixed) > 300
    assert any("met arms with other parameters later" in warning for warning in told.warnings)
    assert told.goals[0].verdict == "better"
    assert told_new.goals[0].verdict != "better"
    for found in (told, told_new):
        assert found.sample_ratio is not None
        assert not found.sample_ratio.broken


def test_older_records_count_with_the_files_as_long_as_there_is_no_other_treatment() -> None:
    messages = lived(4, [(0, TEXT, 0.0)], users=1000)
    older = unmarked(messages)
    for m in older:
        m.user_id = f"older-{m.user_id}"
        m.event_time_ms -= 40_000_000
        if isinstance(m, DecisionRecord):
            m.request_id = f"older-{m.request_id}"
    result, found = seen([*older, *messages], TEXT)
    assert (exposed_units(result), result.edited) == (2000, 0)
    assert not any("parameters" in warning for warning in found.warnings)
    another = lived(5, [(0, STRONGER, 0.0)], users=2000)[-3:]  # some of the last to come
    result, _ = seen([*older, *messages, *another], TEXT)
    assert exposed_units(result) == 1000
    assert result.edited >= 1000


@pytest.mark.parametrize("text", ["", "x", "0" * 15, "0" * 17, "0" * 15 + "G", "\u0660" * 16])
def test_what_is_no_fingerprint_counts_as_that_of_the_file(text: str) -> None:
    messages = lived(6, [(0, TEXT, 0.0)], users=100)
    for m in messages:
        if isinstance(m, DecisionRecord):
            m.assignments[0].fingerprint = text
    result, _ = seen(messages, TEXT)
    assert (exposed_units(result), result.edited) == (100, 0)
