"""A KuaiRand-shaped world of any size whose truth is known: interests, biases, probabilities.

Items live in separated clusters; their category, author, duration and tags depend on the cluster,
their popularity inside it follows Zipf's law. A user has two to four active clusters with a
Dirichlet mix. From one world come

    sequences()   what users consume in order, with test users of the same and of shifted interests
    table()       impressions with click, like, long_view and their true probabilities
    events()      the same impressions as an event table

Shift (specification of the retrieval models, 7.8): clusters 2j and 2j+1 are a related pair. A set
of active clusters is drawn with probability proportional to rho^(related pairs in it); test users
"out of distribution" use 1/rho: what co-occurred in training hardly does any more.

Clicks follow the position-based model: P(click) = examined(position) * relevance, with
examined(p) = p^-position_bias; like and long_view happen to clicked impressions only. Same config,
same seed: same world. Not modelled: change of interests over time and feedback of shown items.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import polars as pl

from models.data.columns import earlier_items
from models.data.errors import DataError
from models.data.sequences import Sequences, Split, from_events, last_fifth_cases
from models.data.tables import BagField, Field, FieldTable, HistoryField, time_split

MAX_INTERESTS = 4
TASKS = ("click", "like", "long_view")
DURATIONS = 6  # buckets
SEGMENTS = 8  # user segments with tastes of their own for durations
TAGS_PER_CLUSTER, TAG_SLOTS = 8, 5
DAY_MS = 86_400_000
START_MS = 1_650_000_000_000
MIN_EVENTS = 5


@dataclass(frozen=True)
class WorldConfig:
    """The knobs of a world; the number of items is clusters * items_per_cluster."""

    clusters: int = 20  # even: they form clusters / 2 related pairs
    items_per_cluster: int = 100
    authors_per_cluster: int = 12
    zipf: float = 1.0  # exponent of popularity inside a cluster
    feature_noise: float = 0.1  # share of item features that ignore the cluster
    dirichlet: float = 1.0  # concentration of a user's mix; large = all interests equal
    stay: float = 0.3  # probability that the next event repeats the previous one's cluster
    rho: float = 5.0  # how much training favours related pairs; 1 = no dependence
    position_bias: float = 0.7
    slate: int = 10  # impressions per request
    explore: float = 0.3  # share of impressions from a uniformly random cluster
    seed: int = 0

    def check(self) -> None:
        if self.clusters < 2 * MAX_INTERESTS or self.clusters % 2:
            raise DataError(f"simulator: clusters={self.clusters}: use an even number from 8 on")
        if min(self.items_per_cluster, self.authors_per_cluster, self.slate) < 1 or self.rho <= 0:
            raise DataError("simulator: items, authors, slate and rho must be positive")


@dataclass(frozen=True)
class World:
    """The items; item index i = cluster * items_per_cluster + rank inside the cluster (0-based)."""

    config: WorldConfig
    cluster: np.ndarray  # int64[n]
    category: np.ndarray  # int64[n] in 0..clusters-1
    author: np.ndarray  # int64[n]
    duration: np.ndarray  # int64[n] in 0..DURATIONS-1
    tags: np.ndarray  # int32[n, TAG_SLOTS], from 1 on, 0 = padding
    quality: np.ndarray  # float64[n, 3]: logit of each task that is the item's own
    rank_probability: np.ndarray  # float64[items_per_cluster]: Zipf
    duration_taste: np.ndarray  # float64[SEGMENTS, DURATIONS]

    @property
    def num_items(self) -> int:
        return len(self.cluster)

    @property
    def item_ids(self) -> tuple[str, ...]:
        return tuple(f"v{i}" for i in range(self.num_items))


@dataclass(frozen=True)
class Users:
    """Latent interests: mix[u, s] is the weight of cluster active[u, s]; unused slots weigh 0."""

    active: np.ndarray  # int64[U, MAX_INTERESTS], -1 = unused
    mix: np.ndarray  # float64[U, MAX_INTERESTS], sums to 1
    segment: np.ndarray  # int64[U]
    bias: np.ndarray  # float64[U, 3]: logit of each task that is the user's own

    def __len__(self) -> int:
        return len(self.active)

    def affinity(self, user: np.ndarray, cluster: np.ndarray) -> np.ndarray:
        """float64[N]: weight of each cluster in the mix of each user."""
        return (self.mix[user] * (self.active[user] == cluster[:, None])).sum(axis=1)


@dataclass(frozen=True)
class ShiftedSequences:
    """Sequences of all users (items share one numbering) and who of them is for what."""

    sequences: Sequences
    users: Users
    train: np.ndarray  # int64 user numbers
    valid: np.ndarray
    iid: np.ndarray  # test users drawn as the training users
    ood: np.ndarray  # test users drawn with 1/rho
    item: np.ndarray  # int64[num_items + 1]: the world's item index of each row; -1 for row 0

    def split(self, test: str = "iid") -> Split:
        """Protocol A over these users: whole users train; a test user's last fifth is asked for."""
        offsets = self.sequences.offsets
        asked = {"iid": self.iid, "ood": self.ood}[test]
        return Split(
            self.sequences, offsets[self.train], offsets[self.train + 1],
            last_fifth_cases(self.sequences, self.valid),
            last_fifth_cases(self.sequences, asked), filter_seen=False,
        )  # fmt: skip


@dataclass(frozen=True)
class SimulatedTable:
    """Impressions and the truth about them; `probabilities` float32[N, 3] in order of TASKS."""

    table: FieldTable
    probabilities: np.ndarray
    examined: np.ndarray  # float32[N]: probability that the position was looked at
    affinity: np.ndarray  # float32[N]: weight of the item's cluster in the user's interests
    users: Users


def build_world(config: WorldConfig | None = None) -> World:
    """The items of a world."""
    config = config or WorldConfig()
    config.check()
    rng = np.random.default_rng([config.seed, 0])
    c, m = config.clusters, config.items_per_cluster
    cluster = np.repeat(np.arange(c), m)
    n = len(cluster)

    def seen_as() -> np.ndarray:
        """The cluster that a feature is drawn from: the item's own but for the noise."""
        noisy = rng.random(n) < config.feature_noise
        return np.where(noisy, rng.integers(0, c, n), cluster)

    category = seen_as()
    author = seen_as() * config.authors_per_cluster + rng.integers(0, config.authors_per_cluster, n)
    usual = rng.integers(0, DURATIONS, c)
    duration = np.clip(usual[seen_as()] + rng.integers(-1, 2, n), 0, DURATIONS - 1)
    tags = np.zeros((n, TAG_SLOTS), np.int32)
    for slot in range(TAG_SLOTS):
        tag = seen_as() * TAGS_PER_CLUSTER + rng.integers(0, TAGS_PER_CLUSTER, n) + 1
        repeated = (tags[:, :slot] == tag[:, None]).any(axis=1)
        tags[:, slot] = np.where(repeated | ((slot > 0) & (rng.random(n) < 0.3)), 0, tag)
    used = np.argsort(tags == 0, axis=1, kind="stable")
    weights = np.arange(1, m + 1, dtype=np.float64) ** -config.zipf
    return World(
        config, cluster, category, author, duration, np.take_along_axis(tags, used, axis=1),
        rng.normal(0, [0.5, 0.5, 0.4], (n, 3)), weights / weights.sum(),
        rng.normal(0, 0.5, (SEGMENTS, DURATIONS)),
    )  # fmt: skip


def draw_users(world: World, count: int, rho: float, rng: np.random.Generator) -> Users:
    """Users whose active clusters are drawn with probability proportional to rho^(related pairs).

    The number of interests is uniform over 2..4, whatever rho is.
    """
    c = world.config.clusters
    size = rng.integers(2, MAX_INTERESTS + 1, count)
    active = np.full((count, MAX_INTERESTS), -1, np.int64)
    most = size // 2 if rho > 1 else np.zeros(count, np.int64)  # the keep probability stays <= 1
    todo = np.arange(count)
    while len(todo):
        proposed = np.argsort(rng.random((len(todo), c)), axis=1)[:, :MAX_INTERESTS]
        proposed[np.arange(MAX_INTERESTS) >= size[todo, None]] = -1
        keep = rng.random(len(todo)) < float(rho) ** (related_pairs(proposed) - most[todo])
        active[todo[keep]] = proposed[keep]
        todo = todo[~keep]
    gamma = rng.gamma(world.config.dirichlet, size=(count, MAX_INTERESTS)) + 1e-9
    gamma[active < 0] = 0
    mix = gamma / gamma.sum(axis=1, keepdims=True)
    # The segment is a visible trace of the main interest, right three times in four.
    main = active[np.arange(count), mix.argmax(axis=1)] % SEGMENTS
    segment = np.where(rng.random(count) < 0.75, main, rng.integers(0, SEGMENTS, count))
    return Users(active, mix, segment, rng.normal(0, 0.4, (count, 3)))


def related_pairs(active: np.ndarray) -> np.ndarray:
    """int64[U]: how many related pairs (clusters 2j and 2j + 1) each set of clusters holds."""
    pair = np.where(active >= 0, active // 2, -1 - np.arange(active.shape[1]))
    pair = np.sort(pair, axis=1)
    return (pair[:, 1:] == pair[:, :-1]).sum(axis=1)


def sequences(
    world: World,
    train_users: int = 4000,
    valid_users: int = 500,
    test_users: int = 1000,
    mean_length: int = 25,
) -> ShiftedSequences:
    """What users consume, each item at most once: 5 events at least, `mean_length` on average.

    The next cluster is the previous one with probability `stay`, else drawn from the user's mix;
    the item follows the popularity inside the cluster. `test_users` are drawn twice: IID and OOD.
    """
    rng = np.random.default_rng([world.config.seed, 1])
    rho = world.config.rho
    groups = [
        draw_users(world, count, knob, rng)
        for count, knob in (
            (train_users, rho), (valid_users, rho), (test_users, rho), (test_users, 1 / rho),
        )
    ]  # fmt: skip
    users = Users(*map(np.concatenate, zip(*(vars(g).values() for g in groups), strict=True)))
    edges = np.cumsum([0, *map(len, groups)])
    user, item = _consumed(world, users, mean_length, rng)
    ids = np.array(world.item_ids, dtype=object)
    categories = world.config.clusters * world.config.authors_per_cluster + world.category
    pairs = zip(world.author.tolist(), categories.tolist(), strict=True)
    found = from_events("simulator", user, ids[item], attributes=dict(zip(ids, pairs, strict=True)))
    numbers = np.array([int(i[1:]) for i in found.item_ids])
    train, valid, iid, ood = (np.arange(a, b) for a, b in itertools.pairwise(edges))
    return ShiftedSequences(found, users, train, valid, iid, ood, np.concatenate([[-1], numbers]))


def _consumed(
    world: World, users: Users, mean_length: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """User and item index of all events, user by user, oldest first, no item twice."""
    wanted = MIN_EVENTS + rng.poisson(max(mean_length - MIN_EVENTS, 0), len(users))
    offered = 3 * wanted  # repeats are dropped below
    user = np.repeat(np.arange(len(users)), offered)
    first = np.cumsum(offered) - offered
    fresh = rng.random(len(user)) >= world.config.stay
    fresh[first] = True
    origin = np.maximum.accumulate(np.where(fresh, np.arange(len(user)), 0))
    cluster = _draw_cluster(users, user, rng)[origin]
    item = _draw_item(world, cluster, rng)
    key = user * world.num_items + item
    kept = np.sort(np.unique(key, return_index=True)[1])
    user, item = user[kept], item[kept]
    length = np.bincount(user, minlength=len(users))
    place = np.arange(len(user)) - np.repeat(np.cumsum(length) - length, length)
    if length.min() < MIN_EVENTS:
        raise DataError(
            f"simulator: {world.config.items_per_cluster} items per cluster are too few for "
            f"sequences of {mean_length}: use more items or shorter sequences"
        )
    short = place < wanted[user]
    return user[short], item[short]


def _draw_cluster(users: Users, user: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64[N]: a cluster from each user's mix."""
    edges = np.cumsum(users.mix, axis=1)[user]
    # The last edge is 1 up to rounding: a slot without weight must not be hit.
    slot = (rng.random(len(user))[:, None] * edges[:, -1:] >= edges).sum(axis=1)
    return users.active[user, np.minimum(slot, MAX_INTERESTS - 1)]


def _draw_item(world: World, cluster: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64[N]: an item of each cluster by popularity."""
    edges = np.cumsum(world.rank_probability)
    rank = np.searchsorted(edges, rng.random(len(cluster)) * edges[-1], side="right")
    m = world.config.items_per_cluster
    return cluster * m + np.minimum(rank, m - 1)


@dataclass(frozen=True)
class _Impressions:
    """N impressions, oldest first."""

    user: np.ndarray
    item: np.ndarray
    position: np.ndarray  # from 1 on
    time_ms: np.ndarray
    probabilities: np.ndarray  # float64[N, 3]
    examined: np.ndarray
    affinity: np.ndarray
    labels: np.ndarray  # bool[N, 3]


def _impressions(world: World, users: Users, count: int, days: int) -> _Impressions:
    config = world.config
    rng = np.random.default_rng([config.seed, 3])
    requests = -(-count // config.slate)
    started = np.sort(rng.integers(0, days * DAY_MS, requests)) + START_MS
    # Activity of users is skewed: half of the requests come from about a fifth of the users.
    activity = np.cumsum(rng.pareto(1.5, len(users)) + 0.2)
    who = np.searchsorted(activity, rng.random(requests) * activity[-1], side="right")
    user = np.repeat(np.minimum(who, len(users) - 1), config.slate)[:count]
    time_ms = np.repeat(started, config.slate)[:count]
    position = np.tile(np.arange(1, config.slate + 1), requests)[:count]
    cluster = np.where(
        rng.random(count) < config.explore,
        rng.integers(0, config.clusters, count),
        _draw_cluster(users, user, rng),
    )
    item = _draw_item(world, cluster, rng)
    affinity = users.affinity(user, cluster)
    logits = world.quality[item] + users.bias[user]
    logits += affinity[:, None] * [4.0, 2.0, 1.5] + [-2.0, -2.5, -0.3]
    taste = world.duration_taste[users.segment[user], world.duration[item]]
    logits += taste[:, None] * [1.0, 0.5, 2.0]
    relevance, like, long_view = (1 / (1 + np.exp(-logits))).T
    examined = position**-config.position_bias
    click = examined * relevance
    probabilities = np.stack([click, click * like, click * long_view], axis=1)
    clicked = rng.random(count) < click
    labels = np.stack(
        [clicked, clicked & (rng.random(count) < like), clicked & (rng.random(count) < long_view)],
        axis=1,
    )
    return _Impressions(user, item, position, time_ms, probabilities, examined, affinity, labels)


def _table_users(world: World, count: int) -> Users:
    return draw_users(world, count, world.config.rho, np.random.default_rng([world.config.seed, 2]))


def table(
    world: World,
    impressions: int = 100_000,
    users: int = 2000,
    history: int = 50,
    days: int = 30,
) -> SimulatedTable:
    """Impressions as a ranking table, split by time 72/8/20, with the true probabilities.

    Ids of users and items that the training part does not hold are 0. The history is the user's
    clicked items of earlier requests, newest first. The dense column `past_completion` is a noisy
    measurement of the item's quality from before the log.
    """
    who = _table_users(world, users)
    log = _impressions(world, who, impressions, days)
    items = world.num_items
    split = time_split(log.time_ms, name="simulator")
    train = split == 0
    known_user, known_item = _known(log.user[train], users), _known(log.item[train], items)
    item_id = np.where(known_item[log.item], log.item + 1, 0)
    columns: list[tuple[Field, np.ndarray]] = [
        (Field("user_id", users + 1, "user"), np.where(known_user[log.user], log.user + 1, 0)),
        (Field("segment", SEGMENTS + 1, "user"), who.segment[log.user] + 1),
        (Field("item_id", items + 1, "item"), item_id),
        (Field("author", int(world.author.max()) + 2, "item"), world.author[log.item] + 1),
        (Field("category", world.config.clusters + 1, "item"), world.category[log.item] + 1),
        (Field("duration", DURATIONS + 1, "item"), world.duration[log.item] + 1),
        (Field("position", world.config.slate + 1, "context"), log.position),
        (Field("hour", 25, "context"), log.time_ms // 3_600_000 % 24 + 1),
    ]
    noise = np.random.default_rng([world.config.seed, 4]).normal(0, 0.5, items)
    completion = 1 / (1 + np.exp(-(world.quality[:, 0] + noise)))
    clicked = log.labels[:, 0]
    past = earlier_items(
        log.user, log.time_ms, log.user[clicked], log.time_ms[clicked], item_id[clicked], history
    )
    tags = BagField(world.tags[log.item], world.config.clusters * TAGS_PER_CLUSTER + 1, "item")
    built = FieldTable.of(
        "simulator",
        tuple(f for f, _ in columns),
        np.stack([ids for _, ids in columns], axis=1).astype(np.int32),
        dict(zip(TASKS, log.labels.T, strict=True)),
        split,
        dense_names=("past_completion",),
        dense=completion[log.item, None].astype(np.float32),
        bags={"tags": tags},
        history={"clicks": HistoryField(past, "item_id")},
        user=log.user.astype(np.int32),
        time_ms=log.time_ms,
    )
    return SimulatedTable(
        built, log.probabilities.astype(np.float32), log.examined.astype(np.float32),
        log.affinity.astype(np.float32), who,
    )  # fmt: skip


def _known(ids: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(ids, minlength=size) > 0


def events(
    world: World, impressions: int = 100_000, users: int = 2000, days: int = 30
) -> pl.DataFrame:
    """The impressions of `table` as events, oldest first: `models/data/events.py` and more.

    Columns user_id, item_id, event_time_ms, click, like, long_view, position.
    """
    log = _impressions(world, _table_users(world, users), impressions, days)
    ids = pl.Series([f"u{u}" for u in range(users)]), pl.Series(world.item_ids)
    return pl.DataFrame(
        {
            "user_id": ids[0].gather(log.user),
            "item_id": ids[1].gather(log.item),
            "event_time_ms": log.time_ms,
            **{task: log.labels[:, t] for t, task in enumerate(TASKS)},
            "position": log.position,
        }
    )
