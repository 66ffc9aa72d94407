"""A process that assigns follows the changes, and outlives a log that it cannot read."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from services.common.settings import EventLogSettings
from services.event_log.connect import connect
from services.event_log.interface import EventLog, LogUnavailable, Record
from services.event_log.topics import EXPERIMENTS
from services.experiments.assign.experiments_file import ExperimentsFile
from services.experiments.assign.following import STATES, Follower, save_states, saved_states
from services.experiments.changes import actions
from services.experiments.changes.log import ChangeLog
from services.experiments.changes.state import AT_START, LiveState, Pause, state_of
from services.experiments.declare.config import Experiment
from tests.domains import FILMS

TEXT = """\
version: 1
layers:
  - name: value
    parameters: [rerank.diversity]
    experiments:
      - name: mix
        traffic: {traffic}
        arms:
          - {{name: control, weight: 50}}
          - {{name: mixed, weight: 50, parameters: {{rerank.diversity: 0.5}}}}
"""
NOW_MS = 1_000_000.0
PATIENCE_S = 60.0


@pytest.fixture
def event_log(tmp_path: Path) -> Iterator[EventLog]:
    log = connect(EventLogSettings(url=f"log://{tmp_path}/events"), None)
    yield log
    log.close()


@pytest.fixture
def file(tmp_path: Path) -> ExperimentsFile:
    path = tmp_path / "experiments.yaml"
    path.write_text(TEXT.format(traffic=100))
    return ExperimentsFile(path, FILMS)


def experiment_of(file: ExperimentsFile) -> Experiment:
    ((_, experiment),) = file.assigner().config.experiments()
    return experiment


def stopped(file: ExperimentsFile) -> bool:
    return experiment_of(file).arms[1].stopped


def followed() -> float | None:
    return REGISTRY.get_sample_value("tandem_experiments_changes_followed")


def stop(log: EventLog, file: ExperimentsFile, at_ms: float = NOW_MS) -> LiveState:
    change = actions.stop(
        experiment_of(file), AT_START, "mixed", actions.By("ann", "a test", at_ms)
    )
    ChangeLog(log).append([change], at_ms)
    return state_of(change.state)


def test_what_is_stopped_before_the_start_and_after_it_is_in_force(
    event_log: EventLog, file: ExperimentsFile, tmp_path: Path
) -> None:
    follower = Follower(event_log, file, tmp_path)
    follower.begin()
    assert followed() == 1
    before = file.assigner()
    follower.refresh()
    assert file.assigner() is before  # nothing has changed
    state = stop(event_log, file)
    assert not stopped(file)
    follower.refresh()
    assert stopped(file)
    another = ExperimentsFile(file.path, FILMS)
    late = Follower(event_log, another, tmp_path)
    late.begin()
    assert stopped(another)
    assert saved_states(tmp_path / STATES) == {"mix": state}
    for each in (follower, late):
        each.close()
    assert list((tmp_path / "events" / EXPERIMENTS / "groups").iterdir()) == []


def test_a_changed_file_keeps_what_is_stopped_and_is_compared_with_the_file_before(
    event_log: EventLog, file: ExperimentsFile, tmp_path: Path
) -> None:
    stop(event_log, file)
    follower = Follower(event_log, file, tmp_path)
    follower.begin()
    file.path.write_text(TEXT.format(traffic=30))
    file.reload_if_changed()
    assert stopped(file)
    assert experiment_of(file).arms[1].traffic == 30
    follower.close()


class Unreadable:
    """A log that is down, until it is given one that is up."""

    def __init__(self) -> None:
        self.up: EventLog | None = None

    def __getattr__(self, name: str) -> object:
        if self.up is None:
            raise LogUnavailable("the broker is down")
        return getattr(self.up, name)


def test_without_the_log_the_saved_states_hold_until_it_is_back(
    event_log: EventLog, file: ExperimentsFile, tmp_path: Path
) -> None:
    save_states(tmp_path / STATES, {"mix": LiveState({"mixed": (Pause(5),)})})
    log = Unreadable()
    follower = Follower(log, file, tmp_path)  # type: ignore[arg-type]
    follower.begin(0.0)
    assert followed() == 0
    assert stopped(file)
    follower.refresh()
    assert stopped(file)
    log.up = event_log  # in which nothing is stopped
    follower.refresh()
    assert followed() == 1
    assert not stopped(file)
    assert saved_states(tmp_path / STATES) == {}
    follower.close()


def test_what_was_stopped_stays_so_when_the_topic_is_made_anew_and_goes_back_into_it(
    event_log: EventLog, file: ExperimentsFile, tmp_path: Path
) -> None:
    follower = Follower(event_log, file, tmp_path)
    follower.begin()
    stop(event_log, file)
    changes = ChangeLog(event_log)
    changes.read_all(PATIENCE_S)
    follower.refresh()
    shutil.rmtree(tmp_path / "events" / EXPERIMENTS)
    restarted = connect(EventLogSettings(url=f"log://{tmp_path}/events"), None)
    assert restarted.end_offsets(EXPERIMENTS) == [0, 0, 0, 0]
    with pytest.raises(LogUnavailable, match="made anew"):
        changes.read_all(PATIENCE_S)
    changes.read_all(PATIENCE_S)
    assert changes.repeat({"mix"}, NOW_MS, NOW_MS / 2) == 1
    assert sum(restarted.end_offsets(EXPERIMENTS)) == 1
    follower.begin(PATIENCE_S)
    assert followed() == 0
    follower.begin(PATIENCE_S)
    assert followed() == 1
    assert stopped(file)
    follower.close()
    changes.close()
    restarted.close()


def test_saved_states_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    file = tmp_path / STATES
    assert saved_states(file) == {}
    deep = '{"mix": ' + "[" * 100_000 + "]" * 100_000 + "}"
    for broken in ("", "[]", '{"mix": 1}', '{"mix": {"pauses": 3}}', deep, deep.replace("[", "{")):
        file.write_text(broken)
        assert saved_states(file) == {}


def test_a_record_that_is_no_change_is_counted_and_passed_over(
    event_log: EventLog, file: ExperimentsFile
) -> None:
    event_log.append(EXPERIMENTS, [Record(b"mix", b"\xff\xff", 1), Record(b"mix", b"", 1)]).result()
    stop(event_log, file)
    changes = ChangeLog(event_log)
    changes.read_all(10.0)
    assert changes.undecodable == 2
    assert [c.reason for c in changes.changes.all()] == ["a test"]
    changes.close()


def test_changes_are_repeated_as_they_are_before_the_log_forgets_them(
    event_log: EventLog, file: ExperimentsFile
) -> None:
    stop(event_log, file, at_ms=1000)
    changes = ChangeLog(event_log)
    changes.read_all(10.0)
    assert changes.repeat({"another"}, 9000, after_ms=100) == 0
    assert changes.repeat({"mix"}, 2000, after_ms=1000) == 0  # is not that old
    assert changes.repeat({"mix"}, 2001, after_ms=1000) == 1
    assert changes.repeat({"mix"}, 3001, after_ms=1000) == 0  # was written anew
    (known,) = changes.changes.all()
    changes.close()
    again = ChangeLog(event_log)
    again.read_all(10.0)
    assert again.changes.all() == [known]
    assert known.event_time_ms == 1000
    assert again.repeat({"mix"}, 3001, after_ms=1000) == 0  # as the log itself says
    again.close()


def test_reading_to_the_end_has_a_bound(event_log: EventLog) -> None:
    changes = ChangeLog(event_log)
    changes.read = lambda wait_s=0.0: False  # type: ignore[method-assign]  # an end that recedes
    ticks = iter([0.0, 1.0, 2.0])
    with pytest.raises(LogUnavailable, match="was not read in 2 s"):
        changes.read_all(2.0, lambda: next(ticks))
