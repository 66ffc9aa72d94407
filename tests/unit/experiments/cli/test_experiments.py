"""`tandem experiments`, as its user sees it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from services.experiments.cli.experiments import app

GOOD = """\
version: 1
layers:
  - name: value
    parameters: [rerank.diversity]
    experiments:
      - name: mix
        traffic: 40
        arms:
          - {name: control, weight: 50}
          - {name: mixed, weight: 50, parameters: {rerank.diversity: 0.5}}
        allow_list: {42: mixed}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "e.yaml"
    path.write_text(GOOD)
    return path


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in args], env={"COLUMNS": "160"})


def test_validate_says_that_a_good_file_is_good(file: Path) -> None:
    result = run("validate", file)
    assert result.exit_code == 0
    assert "valid; layers: 1, experiments: 1" in result.output


def test_validate_prints_one_line_per_error_and_fails(file: Path) -> None:
    file.write_text(GOOD.replace("version: 1", "version: 7").replace("0.5", "5"))
    result = run("validate", file)
    assert result.exit_code == 1
    first, second = result.output.splitlines()
    assert first.startswith(f"{file}:1: version: ")
    assert second.startswith(f"{file}:10: layers[0].experiments[0].arms[1].parameters.")


def test_validate_refuses_an_arm_whose_model_the_settings_do_not_serve(file: Path) -> None:
    file.write_text(GOOD.replace("rerank.diversity: 0.5", "ranking.model: dcn_v2").replace(
        "[rerank.diversity]", "[ranking.model]"
    ))  # fmt: skip
    result = run("validate", file)
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith(f"{file}:10: layer value, experiment mix, arm mixed: ranking.model: ")
    assert run("describe", file).exit_code == 0


def test_validate_says_that_a_renamed_experiment_deals_all_users_anew(
    file: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new.yaml"
    new.write_text(GOOD.replace("name: mix\n", "name: blend\n"))
    result = run("validate", new, "--running", file)
    assert result.exit_code == 0
    _, note = result.output.splitlines()
    assert note.startswith("note: blend stands in the place of mix under another salt")
    assert "all its users are dealt anew" in note
    assert len(run("validate", file, "--running", file).output.splitlines()) == 1


def test_an_error_shows_control_characters_of_the_file_as_text(file: Path) -> None:
    file.write_text(GOOD.replace("traffic: 40", '"tra\\e[2J\\u202effic": 40'))
    result = run("validate", file)
    assert result.exit_code == 1
    assert r"tra\x1b[2J\u202effic" in result.output
    assert "\x1b" not in result.output


def test_validate_refuses_what_would_move_users_of_the_running_file(
    file: Path, tmp_path: Path
) -> None:
    new = tmp_path / "new.yaml"
    new.write_text(
        GOOD.replace("control, weight: 50", "control, weight: 60").replace(
            "mixed, weight: 50", "mixed, weight: 40"
        )
    )
    assert run("validate", new).exit_code == 0
    result = run("validate", new, "--running", file)
    assert result.exit_code == 1
    assert "new salt" in result.output


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    result = run("describe", tmp_path / "none.yaml")
    assert result.exit_code == 1
    assert "Give the name of an existing file" in result.output


def test_describe_shows_every_arm_with_its_traffic(file: Path) -> None:
    output = run("describe", file).output
    for text in ("value", "mix", "control", "mixed", "50 %", "40 %", "rerank.diversity = 0.5"):
        assert text in output


def test_describe_says_where_to_find_what_the_file_does_not_know(file: Path) -> None:
    assert "tandem experiments audit" in " ".join(run("describe", file).output.split())


def test_assign_prints_arms_and_the_parameters_in_force(file: Path) -> None:
    output = run("assign", "--user", "42", file).output
    assert "value / mix: mixed (by the allow-list)" in output
    assert "rerank.diversity = 0.5  <- experiment" in output
    assert "retrieval.num_candidates = 200\n" in output


TARGETED = GOOD.replace(
    "        traffic: 40\n",
    """\
        start: 2026-12-01T09:00:00Z
        stop: 2026-12-24T00:00:00.250Z
        where: {surface: {in: [home]}, context: {hour: {at_least: 18}}}
""",
)


@pytest.fixture
def targeted(file: Path) -> Path:
    file.write_text(TARGETED)
    return file


def test_validate_refuses_a_condition_on_a_surface_that_the_settings_do_not_list(
    targeted: Path,
) -> None:
    assert run("validate", targeted).exit_code == 0
    targeted.write_text(TARGETED.replace("[home]", "[hmoe]"))
    result = run("validate", targeted)
    assert result.exit_code == 1
    assert result.output.startswith(f"{targeted}:6: layer value, experiment mix: where.surface: ")


def test_describe_shows_state_bounds_conditions_and_the_holdout(targeted: Path) -> None:
    targeted.write_text(
        TARGETED.replace("2026-12-24", "2999-12-24").replace("2026-12-01", "2999-12-01")
        + "holdout: {percent: 2.5}\n"
    )
    output = run("describe", targeted).output
    for text in (
        "mix (scheduled)",
        "from 2999-12-01T09:00:00Z",
        "until 2999-12-24T00:00:00.250Z",
        "where surface in [home]",
        "where context.hour at_least 18",
        "2.5 % of users are held out",
    ):
        assert text in output


@pytest.mark.parametrize(
    ("options", "arm"),
    [
        (["--at", "2026-12-01T09:00:00Z", "--surface", "home", "--context", "hour=18"], "mixed"),
        (["--at", "2026-12-01T08:59:59Z", "--surface", "home", "--context", "hour=18"], None),
        (["--at", "2026-12-01T09:00:00Z", "--surface", "home", "--context", "hour=17"], None),
        (["--at", "2026-12-01T09:00:00Z", "--context", "hour=18"], None),
    ],
)
def test_assign_tries_any_surface_context_and_instant(
    targeted: Path, options: list[str], arm: str | None
) -> None:
    output = run("assign", "--user", "42", *options, targeted).output
    assert output.startswith(f"value / mix: {arm}" if arm else "in no experiment\n")


@pytest.mark.parametrize(("option", "value"), [("--at", "2026-12-01"), ("--context", "hour:18")])
def test_a_wrong_instant_or_context_value_says_how_to_write_it(
    targeted: Path, option: str, value: str
) -> None:
    result = run("assign", "--user", "42", option, value, targeted)
    assert result.exit_code == 2
    assert "write" in result.output


def test_assign_says_who_is_held_out(file: Path) -> None:
    file.write_text(GOOD + "holdout: {percent: 100}\n")
    assert run("assign", "--user", "42", file).output.startswith("in no experiment: held out\n")


KINDS = """\
version: 1
units: [household]
segments: [{name: regulars, where: {user: {click: {at_least: 10}}, context: {hour: {below: 6}}}}]
layers:
  - name: homes
    parameters: [rerank.like_weight]
    experiments:
      - name: by_household
        unit: household
        where: {user: {click: {at_least: 10}}}
        arms: [{name: one, weight: 0}, {name: two, weight: 100, stopped: true}]
        allow_list: {vip: one}
  - name: lists
    parameters: [rerank.diversity]
    experiments:
      - name: mixed
        interleave: team_draft
        ramp: {steps: [50, 100], hold_s: 60}
        arms: [{name: a}, {name: b, parameters: {rerank.diversity: 0.5}}]
"""


@pytest.fixture
def kinds(file: Path) -> Path:
    file.write_text(KINDS)
    return file


def test_describe_shows_ramps_interleaving_stopped_arms_and_segments(kinds: Path) -> None:
    output = run("describe", kinds).output
    for text in (
        "interleaves by team_draft",
        "ramp 50, 100 %",
        "each 60 s, 100 units, no_breach",
        "two (stopped)",
        "household",
        "where user.click at_least 10",
        "segment regulars: context.hour below 6 and user.click at_least 10",
    ):
        assert text in output


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--unit", "household=h1", "--user-feature", "click=12"],
         "homes / by_household: one (its own arm is stopped)"),
        (["--unit", "household=vip", "--user-feature", "click=10"],
         "homes / by_household: one (by the allow-list)"),
        (["--unit", "household=vip", "--user-feature", "click=9"], None),
        (["--unit", "device=vip", "--user-feature", "click=10"], None),
    ],
)  # fmt: skip
def test_assign_tries_any_unit_and_any_count_of_the_users(
    kinds: Path, options: list[str], line: str | None
) -> None:
    output = run("assign", "--user", "1", *options, kinds).output
    assert (line in output) if line else ("by_household" not in output)


def test_assign_shows_what_is_interleaved_with_what(kinds: Path) -> None:
    outputs = [run("assign", "--user", str(i), kinds).output for i in range(20)]
    inside = [o for o in outputs if "lists / mixed: interleaved" in o]
    assert 0 < len(inside) < len(outputs)
    assert all("rerank.diversity = 0.0\n" in o for o in inside)
    assert all(
        "a's; by team_draft with those of b:\n  rerank.diversity = 0.5\n" in o for o in inside
    )


@pytest.mark.parametrize(
    ("option", "value"), [("--unit", "household"), ("--unit", "=h"), ("--user-feature", "click:1")]
)
def test_a_wrong_unit_or_count_says_how_to_write_it(kinds: Path, option: str, value: str) -> None:
    result = run("assign", "--user", "1", option, value, kinds)
    assert result.exit_code == 2
    assert "write" in result.output
