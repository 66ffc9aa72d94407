"""Whatever history of edits a file has: what `moving_changes` lets through moves nobody.

A history is a sequence of random edits of a configuration. For harmless edits the law is checked
over the whole of it, so that no detour moves a unit either.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from services.experiments.assign.assignment import Assigner
from services.experiments.declare.config import (
    BUCKETS,
    INTERLEAVED,
    Arm,
    Experiment,
    ExperimentsConfig,
    Holdout,
    Layer,
    Ramp,
    moving_changes,
)
from services.experiments.declare.fingerprints import fingerprint_of
from services.experiments.declare.targeting import Condition

USERS = [f"user-{i}" for i in range(120)]
START = ExperimentsConfig((Layer("layer0", "layer0", (), ()),), Holdout("holdout", 500))
WIDTH = 2_000  # of an experiment: a layer has room for five

Edit = Callable[[st.DrawFn, ExperimentsConfig], ExperimentsConfig]


def _arms(draw: st.DrawFn) -> tuple[Arm, ...]:
    cuts = sorted(draw(st.lists(st.integers(1, BUCKETS - 1), unique=True, max_size=3)))
    bounds = list(zip([0, *cuts], [*cuts, BUCKETS], strict=True))
    return tuple(
        Arm(f"a{i}", lo, hi, draw(st.integers(0, BUCKETS)), {}) for i, (lo, hi) in enumerate(bounds)
    )


def _every(config: ExperimentsConfig) -> list[tuple[int, int]]:
    return [(i, j) for i, x in enumerate(config.layers) for j in range(len(x.experiments))]


def _with(
    draw: st.DrawFn, config: ExperimentsConfig, change: Callable[[Experiment], Experiment]
) -> ExperimentsConfig:
    """`config` with one of its experiments changed, if it has any."""
    if not (places := _every(config)):
        return config
    i, j = draw(st.sampled_from(places))
    layer = config.layers[i]
    experiments = [change(e) if k == j else e for k, e in enumerate(layer.experiments)]
    layers = list(config.layers)
    layers[i] = replace(layer, experiments=tuple(experiments))
    return replace(config, layers=tuple(layers))


def add_layer(draw: st.DrawFn, config: ExperimentsConfig) -> ExperimentsConfig:
    name = f"layer{len(config.layers)}"
    return replace(config, layers=(*config.layers, Layer(name, name, (), ())))


def add_experiment(draw: st.DrawFn, config: ExperimentsConfig) -> ExperimentsConfig:
    """On free buckets of a layer, at a random place in the file."""
    i = draw(st.integers(0, len(config.layers) - 1))
    layer = config.layers[i]
    taken = {e.buckets[0] for e in layer.experiments}
    free = [lo for lo in range(0, BUCKETS, WIDTH) if lo not in taken]
    if not free:
        return config
    lo = draw(st.sampled_from(free))
    name = f"{layer.name}-{lo}"
    new = Experiment(name, name, "user", (lo, lo + WIDTH), _arms(draw), {}, True)
    if draw(st.integers(0, 3)) == 0:
        enrolled = draw(st.integers(0, BUCKETS))
        both = (Arm("one", 0, 0, enrolled, {}), Arm("two", 0, 0, enrolled, {}))
        new = replace(new, arms=both, interleave="team_draft")
    at = draw(st.integers(0, len(layer.experiments)))
    experiments = (*layer.experiments[:at], new, *layer.experiments[at:])
    layers = list(config.layers)
    layers[i] = replace(layer, experiments=experiments)
    return replace(config, layers=tuple(layers))


def grow_traffic(draw: st.DrawFn, config: ExperimentsConfig) -> ExperimentsConfig:
    def change(e: Experiment) -> Experiment:
        i = draw(st.integers(0, len(e.arms) - 1))
        if e.interleave:  # both have the experiment's traffic
            enrolled = draw(st.integers(e.arms[0].enrolled, BUCKETS))
            return replace(e, arms=tuple(replace(a, enrolled=enrolled) for a in e.arms))
        grown = replace(e.arms[i], enrolled=draw(st.integers(e.arms[i].enrolled, BUCKETS)))
        return replace(e, arms=(*e.arms[:i], grown, *e.arms[i + 1 :]))

    return _with(draw, config, change)


def change_traffic(draw: st.DrawFn, config: ExperimentsConfig) -> ExperimentsConfig:
    def change(e: Experiment) -> Experiment:
        enrolled = [draw(st.integers(0, BUCKETS)) for _ in e.arms]
        if e.interleave:
            enrolled = enrolled[:1] * 2
        pairs = zip(e.arms, enrolled, strict=True)
        return replace(e, arms=tuple(replace(a, enrolled=n) for a, n in pairs))

    return _with(draw, config, change)


def change_holdout(draw: st.DrawFn, config: ExperimentsConfig) -> ExperimentsConfig:
    holdout = replace(config.holdout, buckets=draw(st.integers(0, BUCKETS // 2)))
    return replace(config, holdout=holdout)


def grow_holdout(draw: st.DrawFn, config: ExperimentsConfig) -> ExperimentsConfig:
    buckets = draw(st.integers(config.holdout.buckets, BUCKETS))
    return replace(config, holdout=replace(config.holdout, buckets=buckets))


def change_bounds(draw: st.DrawFn, config: ExperimentsConfig) -> ExperimentsConfig:
    start, stop = sorted(draw(st.lists(st.integers(0, 9), min_size=2, max_size=2, unique=True)))
    return _with(draw, config, lambda e: replace(e, start_ms=start, stop_ms=stop))


def change_conditions(draw: st.DrawFn, config: ExperimentsConfig) -> ExperimentsConfig:
    where = draw(st.sampled_from([(), (Condition("x", "above", (5.0,)),)]))
    return _with(draw, config, lambda e: replace(e, where=where))


def stop_or_resume_an_arm(draw: st.DrawFn, config: ExperimentsConfig) -> ExperimentsConfig:
    def change(e: Experiment) -> Experiment:
        if e.interleave:
            return replace(e, stopped=not e.stopped)
        i = draw(st.integers(0, len(e.arms) - 1))
        if e.arms[i].name == e.control:
            return e
        arm = replace(e.arms[i], stopped=not e.arms[i].stopped)
        return replace(e, arms=(*e.arms[:i], arm, *e.arms[i + 1 :]))

    return _with(draw, config, change)


def begin_or_step_a_ramp(draw: st.DrawFn, config: ExperimentsConfig) -> ExperimentsConfig:
    """From the largest traffic of any arm on; or the next step."""

    def change(e: Experiment) -> Experiment:
        ramp = e.ramp
        if ramp is None:
            least = max(1, *(a.enrolled for a in e.arms))
            rest = draw(st.lists(st.integers(least, BUCKETS), max_size=4))
            ramp = Ramp(tuple(sorted({least, *rest})), 60.0, 0)
            step = ramp.steps[0]
        else:
            step = ramp.steps[min(e.ramp_step + 1, len(ramp.steps) - 1)]
            step = max(step, *(a.enrolled for a in e.arms))  # other edits may have grown it
        return replace(e, ramp=ramp, arms=tuple(replace(a, enrolled=step) for a in e.arms))

    return _with(draw, config, change)


def switch(draw: st.DrawFn, config: ExperimentsConfig) -> ExperimentsConfig:
    return _with(draw, config, lambda e: replace(e, enabled=not e.enabled))


# Those below may move users: `moving_changes` must find the ones that do.


def change_arms(draw: st.DrawFn, config: ExperimentsConfig) -> ExperimentsConfig:
    return _with(draw, config, lambda e: replace(e, arms=_arms(draw), interleave=None))


def interleave(draw: st.DrawFn, config: ExperimentsConfig) -> ExperimentsConfig:
    both = (Arm("one", 0, 0, BUCKETS, {}), Arm("two", 0, 0, BUCKETS, {}))
    return _with(draw, config, lambda e: replace(e, arms=both, interleave="team_draft"))


def reverse_arms(draw: st.DrawFn, config: ExperimentsConfig) -> ExperimentsConfig:
    return _with(draw, config, lambda e: replace(e, arms=e.arms[::-1]))


def change_parameters(draw: st.DrawFn, config: ExperimentsConfig) -> ExperimentsConfig:
    def change(e: Experiment) -> Experiment:
        i = draw(st.integers(0, len(e.arms) - 1))
        value = draw(st.sampled_from([0.0, 0.3, 0.9]))  # 0 is the default
        arm = replace(e.arms[i], parameters={"rerank.diversity": value})
        return replace(e, arms=(*e.arms[:i], arm, *e.arms[i + 1 :]))

    return _with(draw, config, change)


def change_unit(draw: st.DrawFn, config: ExperimentsConfig) -> ExperimentsConfig:
    return _with(draw, config, lambda e: replace(e, unit="session"))


def remove_experiment(draw: st.DrawFn, config: ExperimentsConfig) -> ExperimentsConfig:
    i = draw(st.integers(0, len(config.layers) - 1))
    layers = list(config.layers)
    layers[i] = replace(layers[i], experiments=layers[i].experiments[1:])
    return replace(config, layers=tuple(layers))


GROWING: list[Edit] = [add_layer, add_experiment, grow_traffic, begin_or_step_a_ramp]
HARMLESS: list[Edit] = [
    *GROWING,
    change_traffic,
    change_holdout,
    grow_holdout,
    change_bounds,
    change_conditions,
    switch,
    stop_or_resume_an_arm,
]
ANY: list[Edit] = [
    *HARMLESS,
    change_arms,
    change_parameters,
    reverse_arms,
    change_unit,
    remove_experiment,
    interleave,
]


@st.composite
def histories(draw: st.DrawFn, edits: list[Edit]) -> list[ExperimentsConfig]:
    config = add_experiment(draw, START)
    history = [config]
    for edit in draw(st.lists(st.sampled_from(edits), min_size=1, max_size=8)):
        config = edit(draw, config)
        history.append(config)
    return history


def arms_by_user(
    config: ExperimentsConfig, now_ms: int = 5, x: float = 9.0
) -> dict[tuple[str, str], str]:
    """(user, salt of the experiment) -> arm, of the users who are counted for one."""
    assigner = Assigner(config)
    salts = {e.name: e.salt for _, e in config.experiments()}
    return {
        (user, salts[a.experiment]): a.arm
        for user in USERS
        for a in assigner.assign(user, f"s-{user}", now_ms=now_ms, context={"x": x}).assignments
        if not a.overridden
    }


def arms_ever(history: list[ExperimentsConfig]) -> dict[tuple[str, str], set[str]]:
    """All arms that a user has had of an experiment, at several instants and contexts."""
    ever: dict[tuple[str, str], set[str]] = defaultdict(set)
    for config in history:
        for now_ms, x in ((5, 9.0), (2, 9.0), (7, 1.0)):
            for key, arm in arms_by_user(config, now_ms, x).items():
                ever[key].add(arm)
    return ever


@given(histories(HARMLESS))
@settings(max_examples=100)
def test_no_history_of_harmless_edits_gives_a_user_two_arms_of_an_experiment(
    history: list[ExperimentsConfig],
) -> None:
    for before, after in pairwise(history):
        assert moving_changes(before, after) == []
    assert all(len(arms) == 1 for arms in arms_ever(history).values())


@given(histories(GROWING))
@settings(max_examples=80)
def test_no_history_of_growth_takes_anybody_out(history: list[ExperimentsConfig]) -> None:
    for before, after in pairwise(history):
        assert arms_by_user(before).items() <= arms_by_user(after).items()


@given(histories([*GROWING, grow_holdout]))
@settings(max_examples=80)
def test_when_the_holdout_grows_too_only_its_users_go_out(
    history: list[ExperimentsConfig],
) -> None:
    for before, after in pairwise(history):
        then, now = arms_by_user(before), arms_by_user(after)
        assigner = Assigner(after)
        for user, salt in then.keys() - now.keys():
            assert assigner.assign(user, now_ms=5).held_out, (user, salt)
        assert all(now[key] == then[key] for key in then.keys() & now.keys())


@given(histories(ANY))
@settings(max_examples=200)
def test_what_moving_changes_lets_through_moves_nobody_and_mixes_no_treatments(
    history: list[ExperimentsConfig],
) -> None:
    """A running process refuses a moving file and goes on with the last good one."""
    in_force = [history[0]]
    for config in history[1:]:
        if not moving_changes(in_force[-1], config):
            in_force.append(config)
    for before, after in pairwise(in_force):
        then, now = arms_by_user(before), arms_by_user(after)
        assert all(now[key] == then[key] for key in then.keys() & now.keys())
        known = {e.salt: fingerprint_of(e) for _, e in before.experiments()}
        for _, e in after.experiments():
            assert known.get(e.salt, fingerprint_of(e)) == fingerprint_of(e)


@given(histories([*HARMLESS, *[stop_or_resume_an_arm] * 3]))
@settings(max_examples=80)
def test_stopping_and_resuming_arms_changes_nothing_for_the_users_of_any_other(
    history: list[ExperimentsConfig],
) -> None:
    """Against the same file with every arm live: who has another arm would have a stopped one."""
    for config in history:
        live, now = _all_live(config), arms_by_user(config)
        stopped = {
            (e.salt, INTERLEAVED if e.stopped else a.name)
            for _, e in config.experiments()
            for a in e.arms
            if a.stopped or e.stopped
        }
        for (user, salt), arm in arms_by_user(live).items():
            assert now.get((user, salt)) == (None if (salt, arm) in stopped else arm)
        assert now.keys() <= arms_by_user(live).keys()


def _all_live(config: ExperimentsConfig) -> ExperimentsConfig:
    return replace(
        config,
        layers=tuple(
            replace(
                layer,
                experiments=tuple(
                    replace(e, stopped=False, arms=tuple(replace(a, stopped=False) for a in e.arms))
                    for e in layer.experiments
                ),
            )
            for layer in config.layers
        ),
    )
