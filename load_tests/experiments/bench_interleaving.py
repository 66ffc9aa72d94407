"""Users that interleaving and an A/B test need to find the better of two rankers, at equal power.

`make bench-interleaving`. Under a minute of one core.

Users differ in how readily they click and how often they come, and see ten of thirty items; they
click what is relevant to them where they look (the demo's click model). Both rankers know the
relevance up to noise, most of which they share; B has less of its own. The gap in NDCG is the mean
over all contexts of the simulator.

Users needed are those of a two-sided test at 5 % with a power of 80 %, from the mean and the
variance of a user's value. The A/B test has the choice of two metrics per visit (ratios, with the
delta method), with the exact difference between the rankers: what is compared is its best. Both
numbers are then tried: so many users, again and again, and how often the better ranker is found.

The ratio is no constant of nature: one table changes one assumption at a time. Users that are
nearly alike are also what a perfect covariate (CUPED) could make of the A/B test.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Annotated

import numpy as np
import typer
from scipy.stats import gamma

from load_tests.demo.visitors import EXAMINATION_SLOPE
from models.figures import console, print_machine, print_table, save
from services.experiments.lists.interleaving import per_unit, team_draft, team_preference

CONTEXTS, CANDIDATES, PLACES = 400, 30, 10
PLACE = np.arange(PLACES)
SHARED_NOISE = 0.6  # of log relevance
EXAMINATIONS = {  # probability that a place is looked at
    "1 / (1 + slope * place)": 1 / (1 + EXAMINATION_SLOPE * PLACE),
    "1 / sqrt(rank)": (PLACE + 1.0) ** -0.5,
    "1 / rank": 1 / (PLACE + 1.0),
}
VISITS = 3.0  # mean, geometric: a third of the users come once
Z_95 = NormalDist().inv_cdf(0.975)  # of a two-sided interval of 95 %
Z = Z_95 + NormalDist().inv_cdf(0.8)
POOL = 40_000  # users from whom means and variances are taken
LISTS = 160  # interleaved lists per context, from which every visit takes one
MEANS = 50  # visits to each of these lists
DISCOUNTS = 1 / np.log2(PLACE + 2)
METRICS = {"clicks per visit": np.ones(PLACES), "discounted clicks per visit": DISCOUNTS}
TIMED = 2_000


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """What the comparison assumes.

    share: of A's own noise that B has. own_noise: of A, beside the shared. examination: a key of
    EXAMINATIONS. clickable: click probability of an examined item of relevance 1 for the mean user.
    alike: shape of the gamma distribution of how readily users click (the larger the more alike).
    """

    share: float = 0.5
    own_noise: float = 0.4
    examination: str = "1 / (1 + slope * place)"
    clickable: float = 0.35
    alike: float = 1.5

    @property
    def click_at(self) -> np.ndarray:
        """float64[10]: click probability by place, for relevance 1 and the mean user."""
        return self.clickable * EXAMINATIONS[self.examination]


GAPS = (Setting(0.75), Setting(0.5), Setting(0.0))
VARIATIONS = {
    "as above": Setting(),
    "rankers more alike": Setting(own_noise=0.2),
    "rankers less alike": Setting(own_noise=0.8),
    "clicks twice as likely": Setting(clickable=0.7),
    "clicks half as likely": Setting(clickable=0.175),
    "users nearly alike": Setting(alike=20),
    "users less alike": Setting(alike=0.5),
    "examination 1 / sqrt(rank)": Setting(examination="1 / sqrt(rank)"),
    "examination 1 / rank": Setting(examination="1 / rank"),
}


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """relevance: float64[contexts, candidates]; a, b: int64[contexts, 10], the best items."""

    setting: Setting
    relevance: np.ndarray
    a: np.ndarray
    b: np.ndarray

    def ndcg(self, ranking: np.ndarray) -> float:
        """Mean NDCG@10 with the relevance as gain."""
        gains = np.take_along_axis(self.relevance, ranking, axis=1) @ DISCOUNTS
        ideal = -np.sort(-self.relevance, axis=1)[:, :PLACES] @ DISCOUNTS
        return float((gains / ideal).mean())

    @property
    def gap(self) -> float:
        return self.ndcg(self.b) - self.ndcg(self.a)

    @property
    def overlap(self) -> float:
        """Share of the shown items that both rankings show."""
        pairs = zip(self.a.tolist(), self.b.tolist(), strict=True)
        return statistics.fmean(len({*a} & {*b}) / PLACES for a, b in pairs)


def world(setting: Setting, seed: int) -> World:
    generator = np.random.default_rng(seed)
    relevance = generator.beta(0.6, 2.5, size=(CONTEXTS, CANDIDATES))
    known = np.log(relevance + 0.02) + SHARED_NOISE * generator.normal(size=relevance.shape)
    own = setting.own_noise * generator.normal(size=(2, *relevance.shape))
    scores = (known + own[0], known + setting.share * own[1])
    a, b = ((-score).argsort(axis=1)[:, :PLACES] for score in scores)
    return World(setting, relevance, a, b)


@dataclass(frozen=True, slots=True, eq=False)
class Visitors:
    """units: int64[v], contexts: int64[v] and eagerness float64[v] of visits."""

    units: np.ndarray
    contexts: np.ndarray
    eagerness: np.ndarray


def visitors(setting: Setting, users: int, generator: np.random.Generator) -> Visitors:
    """Users with their visits, each in a context of its own."""
    units = np.repeat(np.arange(users), generator.geometric(1 / VISITS, size=users))
    eagerness = generator.gamma(setting.alike, 1 / setting.alike, size=users)
    return Visitors(units, generator.integers(CONTEXTS, size=len(units)), eagerness[units])


def clicks(
    world: World, who: Visitors, shown: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """bool[v, 10] for lists int64[v, 10]."""
    relevance = world.relevance[who.contexts[:, None], shown]
    probability = relevance * world.setting.click_at * who.eagerness[:, None]
    return generator.random(probability.shape) < probability


# The A/B test.


def differences(world: World) -> dict[str, float]:
    """Expected difference B - A of a visit, by metric: exact in contexts and items, and over 200
    quantiles of how readily users click."""
    shape = world.setting.alike
    eagerness = gamma.ppf((np.arange(200) + 0.5) / 200, shape, scale=1 / shape)
    by_place = []
    for ranking in (world.a, world.b):
        relevance = np.take_along_axis(world.relevance, ranking, axis=1) * world.setting.click_at
        probability = np.minimum(relevance[:, :, None] * eagerness, 1)
        by_place.append(probability.mean(axis=(0, 2)))
    return {name: float((by_place[1] - by_place[0]) @ w) for name, w in METRICS.items()}


def arm(
    world: World, ranking: np.ndarray, users: int, generator: np.random.Generator
) -> dict[str, tuple[float, float]]:
    """(mean, its variance) per visit by metric, of an arm that shows one ranking."""
    who = visitors(world.setting, users, generator)
    clicked = clicks(world, who, ranking[who.contexts], generator)
    found = {}
    for name, weights in METRICS.items():
        values = clicked @ weights
        mean = float(values.mean())
        # Delta method: sums of residuals by user over the mean number of visits.
        residuals = np.bincount(who.units, weights=values - mean)
        variance = float(residuals @ residuals) / (users - 1) * users / len(values) ** 2
        found[name] = (mean, variance)
    return found


def users_of_ab(world: World, generator: np.random.Generator) -> dict[str, float]:
    """Users in both arms together, by metric."""
    arms = [arm(world, r, POOL, generator) for r in (world.a, world.b)]
    return {
        name: 2 * Z**2 * POOL * sum(made[name][1] for made in arms) / difference**2
        for name, difference in differences(world).items()
    }


def power_of_ab(
    world: World, metric: str, users: int, trials: int, generator: np.random.Generator
) -> float:
    """Share of trials whose interval of B - A lies above 0; half of the users in each arm."""
    found = 0
    for _ in range(trials):
        (a, a_var), (b, b_var) = (
            arm(world, r, users // 2, generator)[metric] for r in (world.a, world.b)
        )
        found += b - a > Z_95 * (a_var + b_var) ** 0.5
    return found / trials


# Interleaving.


@dataclass(frozen=True, slots=True, eq=False)
class Library:
    """Interleaved lists of every context: items int64[contexts, LISTS, 10], and whose they are."""

    items: np.ndarray
    teams: np.ndarray

    def preferences(self, at: tuple[np.ndarray, np.ndarray], clicked: np.ndarray) -> np.ndarray:
        """float64[v] of the lists at (contexts, numbers)."""
        lists, places = np.nonzero(clicked)
        return team_preference(lists, self.teams[at][lists, places], len(clicked))


def library(world: World, generator: np.random.Generator) -> Library:
    made = [
        team_draft(a, b, PLACES, generator)
        for a, b in zip(world.a, world.b, strict=True)
        for _ in range(LISTS)
    ]
    shape = (CONTEXTS, LISTS, PLACES)
    items, teams = np.stack([m.items for m in made]), np.stack([m.teams for m in made])
    return Library(items.reshape(shape), teams.reshape(shape))


def user_preferences(
    world: World, lists: Library, users: int, generator: np.random.Generator
) -> np.ndarray:
    """Users' mean preferences."""
    who = visitors(world.setting, users, generator)
    at = (who.contexts, generator.integers(LISTS, size=len(who.units)))
    clicked = clicks(world, who, lists.items[at], generator)
    return per_unit(who.units, lists.preferences(at, clicked))[1]


def users_of_interleaving(
    world: World, lists: Library, generator: np.random.Generator
) -> tuple[float, float]:
    """(mean preference, users)."""
    variance = float(user_preferences(world, lists, POOL, generator).var(ddof=1))
    # The mean is small beside the spread: over all lists, many times, instead of over users.
    contexts, numbers = (x.reshape(-1) for x in np.indices((CONTEXTS, LISTS)))
    means = []
    for _ in range(MEANS):
        eagerness = generator.gamma(
            world.setting.alike, 1 / world.setting.alike, size=len(contexts)
        )
        who = Visitors(np.arange(len(contexts)), contexts, eagerness)
        clicked = clicks(world, who, lists.items[contexts, numbers], generator)
        means.append(float(lists.preferences((contexts, numbers), clicked).mean()))
    mean = statistics.fmean(means)
    return mean, Z**2 * variance / mean**2


def trials_of(
    world: World, lists: Library, users: int, trials: int, generator: np.random.Generator
) -> tuple[float, float]:
    """(share of trials whose interval lies above 0, share whose interval excludes 0)."""
    made = [user_preferences(world, lists, users, generator) for _ in range(trials)]
    z = np.array([p.mean() / p.std(ddof=1) * len(p) ** 0.5 for p in made])
    return float((z > Z_95).mean()), float((np.abs(z) > Z_95).mean())


def compare(setting: Setting, trials: int, seed: int) -> tuple[list[list[str]], list[str]]:
    """Rows of the table of the A/B test and the one of interleaving for one gap."""
    made = world(setting, seed)
    generator = np.random.default_rng(seed + 1)
    needed_ab = users_of_ab(made, generator)
    best = min(needed_ab, key=lambda m: needed_ab[m])
    gap = f"{made.gap:+.4f}"
    ab_rows = []
    for metric, users_ab in needed_ab.items():
        tried = ""
        if metric == best:
            tried = f"{power_of_ab(made, metric, round(users_ab), trials // 4, generator):.0%}"
        row = [gap, f"{made.ndcg(made.a):.4f}", f"{made.overlap:.0%}", metric]
        ab_rows.append([*row, f"{users_ab:,.0f}", tried])
    lists = library(made, generator)
    mean, users = users_of_interleaving(made, lists, generator)
    power, _ = trials_of(made, lists, round(users), trials, generator)
    return ab_rows, [gap, f"{mean:+.3f}", f"{users:,.0f}", f"{power:.0%}",
                     f"{needed_ab[best] / users:.0f}x"]  # fmt: skip


def variation(name: str, setting: Setting, seed: int) -> list[str]:
    """A row of the table of what the ratio depends on."""
    made = world(setting, seed)
    generator = np.random.default_rng(seed + 1)
    users_ab = min(users_of_ab(made, generator).values())
    lists = library(made, generator)
    _, users = users_of_interleaving(made, lists, generator)
    return [name, f"{made.gap:+.4f}", f"{made.overlap:.0%}", f"{users_ab:,.0f}", f"{users:,.0f}",
            f"{users_ab / users:.0f}x"]  # fmt: skip


def false_alarms(trials: int, seed: int) -> float:
    """How often a ranker is preferred to itself, of 200 users each."""
    generator = np.random.default_rng(seed)
    made = world(Setting(), seed)
    twice = replace(made, b=made.a)
    return trials_of(twice, library(twice, generator), 200, trials, generator)[1]


def timing(seed: int) -> float:
    """CPU µs of a list of 20 from two rankings of 200."""
    generator = np.random.default_rng(seed)
    a = generator.permutation(200)
    b = a.copy()
    b[:50] = generator.permutation(b[:50])
    start = time.process_time()
    for _ in range(TIMED):
        team_draft(a, b, 20, generator)
    return (time.process_time() - start) / TIMED * 1e6


def main(
    trials: Annotated[int, typer.Option(help="of each measured power; a quarter for A/B")] = 300,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    print_machine()
    started = time.process_time()
    ab_rows, rows = [], []
    for setting in GAPS:
        ab, interleaved = compare(setting, trials, seed)
        ab_rows += ab
        rows.append(interleaved)
    print_table(
        "A/B test: users of both arms for a power of 80 %",
        ("NDCG gap", "NDCG of A", "overlap", "metric", "users", "power measured"),
        ab_rows,
    )
    print_table(
        "Interleaving (team draft): users for a power of 80 %",
        ("NDCG gap", "preference", "users", "power measured", "A/B needs"),
        rows,
    )
    print_table(
        "What the ratio depends on (one change each)",
        ("", "NDCG gap", "overlap", "A/B users", "users", "A/B needs"),
        [variation(name, setting, seed) for name, setting in VARIATIONS.items()],
    )
    console.print(
        "A ranker against itself has an interval without 0 in "
        f"{false_alarms(2 * trials, seed):.1%} of the trials (5 % expected)."
    )
    console.print(f"A list of 20 from two rankings of 200 takes {timing(seed):.0f} µs of CPU.")
    console.print(f"took {time.process_time() - started:.0f} s of CPU")
    save("bench_interleaving", {})


if __name__ == "__main__":
    typer.run(main)
