"""Held-out users as live traffic: they ask for lists, look at them, choose what they truly chose.

A visitor is one held-out user of the data set, or a copy of one under an id of its own: 116 users
are too few units for an experiment. Between requests it also finds some of its next films
by itself (feedback without a request id), so that histories build up.

The click model is a pure function: place r (from 0) is examined with probability
1 / (1 + EXAMINATION_SLOPE * r); an examined item that is among what the user went on to rate is
clicked, and liked if that rating was 4 or more. All draws are seeded per visitor, so a visitor
does the same whenever it gets the same answers.

Not a benchmark: visits begin at a steady rate and latencies are those of single calls.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc

from models.data.backfill import Interaction
from models.data.worlds.films.schema import FILMS
from protos.tandem.v1.recommender_pb2 import (
    RecommendRequest,
    RecommendResponse,
    RecordFeedbackRequest,
)
from protos.tandem.v1.recommender_pb2_grpc import RecommenderStub
from protos.tandem.v1.records_pb2 import CLICK, IMPRESSION, LIKE, Degradation, FeedbackEvent
from services.common.channels import CLIENT_OPTIONS

EXAMINATION_SLOPE = 0.15
RETURNS = (0.15, 0.06, 0.03)  # shares of visitors that ask a second, third and fourth time
PATIENCE_S = 60.0  # of a visitor whom a busy router tells to come again
AT_ONCE = 32  # requests: beyond what the machine can answer, more would only ask again and again
FEEDBACK_TIMEOUT_S = 30.0
VISIBLE_WITHIN_S = 20.0  # after this a visitor no longer waits for its feedback to be visible
ASK_AGAIN_S = 0.02
CLOCK_MS = 2  # rounding of event times and ages
NAMES = {event.id: event.name for event in FILMS.events}


class Visitor(NamedTuple):
    """A user id and what its user really did after the split, oldest first."""

    user_id: str
    future: Sequence[Interaction]


def visitors(futures: Mapping[str, Sequence[Interaction]], count: int) -> list[Visitor]:
    """`count` visitors: the held-out users round after round.

    The first round keeps the users' ids, and with them their histories; "7~3" is user 7's third
    copy, who is new to the system.
    """
    users = sorted(futures, key=lambda user_id: (len(user_id), user_id))
    found = []
    for i in range(count):
        copy, at = divmod(i, len(users))
        user_id = users[at]
        found.append(Visitor(f"{user_id}~{copy}" if copy else user_id, futures[user_id]))
    return found


class Reaction(NamedTuple):
    """What a visitor did with an item that it examined."""

    item_id: str
    clicked: bool
    liked: bool


def reactions(
    item_ids: Sequence[str], wanted: Mapping[str, bool], draw: random.Random
) -> list[Reaction]:
    """The examined items of a list; `wanted`: item id -> whether the user will like it."""
    examined = (
        item_id
        for place, item_id in enumerate(item_ids)
        if draw.random() < 1.0 / (1.0 + EXAMINATION_SLOPE * place)
    )
    return [Reaction(i, i in wanted, wanted.get(i, False)) for i in examined]


@dataclass(frozen=True)
class TrafficConfig:
    """How the visitors come and behave."""

    visits_per_s: float = 60.0
    max_visits_at_once: int = 400
    num_items: int = 10
    surface: str = "home"
    request_timeout_s: float = 5.0
    think_s: float = 1.0  # between an acknowledged feedback and the next request
    probe_share: float = 0.02  # of the visitors ask again at once, until their feedback is visible
    organic_items: int = 2  # found without a list after each request
    seed: int = 0


def requests_of(draw: random.Random) -> int:
    """Requests of one visit: most visitors ask once."""
    u = draw.random()
    return 1 + sum(u < share for share in RETURNS)


class ArmKey(NamedTuple):
    layer: str
    experiment: str
    arm: str


@dataclass
class Tally:
    """What the visitors saw and did: the other side of what the installation says of itself."""

    answers: Counter[str] = field(default_factory=Counter)  # by gRPC status
    degradations: Counter[str] = field(default_factory=Counter)  # answers by kind
    degraded: int = 0  # answers with any degradation
    interleaved: int = 0  # answers that two rankings share
    uneven: int = 0  # of these, in which one contributed over one item more than the other
    latencies_s: list[float] = field(default_factory=list)  # of OK answers
    # What visitors saw of each arm, and did: units, requests, degraded, and events by their names.
    arms: dict[ArmKey, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    exposed: set[tuple[ArmKey, str]] = field(default_factory=set)  # arm and user
    # Answers by arm, service and the version of the model that made them.
    versions: Counter[tuple[ArmKey, str, str]] = field(default_factory=Counter)
    feedback_calls: Counter[str] = field(default_factory=Counter)  # by gRPC status
    events: int = 0  # acknowledged
    visits: int = 0  # ended
    follow_ups: int = 0  # next answers after acknowledged feedback and a moment's thought
    visible_at_once: int = 0  # of these, how many had the feedback in their features
    never_visible: int = 0  # visitors whose feedback stayed invisible for VISIBLE_WITHIN_S
    shown_again: int = 0  # items in a list although the features behind it held their choice
    visible_delays_s: list[float] = field(default_factory=list)  # from acknowledgement, of probes

    @property
    def requests(self) -> int:
        return self.answers.total()

    @property
    def failed(self) -> int:
        return self.requests - self.answers["OK"]

    @property
    def visible(self) -> int:
        """Times that a visitor's feedback was found in the features behind its next answer."""
        return self.visible_at_once + len(self.visible_delays_s)


class Simulator:
    """Runs visitors against one router. All state is in `tally`; used by one event loop."""

    def __init__(self, address: str, config: TrafficConfig, tally: Tally | None = None) -> None:
        """Needs a running event loop."""
        self._config = config
        self._channel = grpc.aio.insecure_channel(address, options=CLIENT_OPTIONS)
        self._asking = asyncio.Semaphore(AT_ONCE)
        self._stub = RecommenderStub(self._channel)
        self.tally = Tally() if tally is None else tally

    async def close(self) -> None:
        await self._channel.close()

    async def run(self, visitors: Iterable[Visitor], stop: asyncio.Event) -> None:
        """Let the visitors come one after another until `stop`; returns when all have left."""
        config = self._config
        at_once = asyncio.Semaphore(config.max_visits_at_once)
        loop = asyncio.get_running_loop()
        started = loop.time()

        async def visit_and_leave(visitor: Visitor) -> None:
            try:
                await self.visit(visitor)
            finally:
                at_once.release()

        async with asyncio.TaskGroup() as group:
            for i, visitor in enumerate(visitors):
                due = started + i / config.visits_per_s
                await asyncio.sleep(max(due - loop.time(), 0))
                await at_once.acquire()
                if stop.is_set():
                    return
                group.create_task(visit_and_leave(visitor))

    async def visit(self, visitor: Visitor) -> None:
        """One visit: requests, and after each of them what the visitor does."""
        config = self._config
        draw = random.Random(f"{config.seed}/{visitor.user_id}")
        wanted = {i.item_id: LIKE in i.kinds for i in visitor.future}
        probe = draw.random() < config.probe_share
        requests = max(requests_of(draw), 2 if probe else 1)
        answer = await self.ask(visitor.user_id)
        for left in reversed(range(requests)):
            if answer is None:
                break
            item_ids = [item.item_id for item in answer.items]
            seen = reactions(item_ids, wanted, draw)
            gone = {r.item_id for r in seen if r.clicked}
            next_ones = (i for i in visitor.future if i.item_id in wanted and i.item_id not in gone)
            found = list(itertools.islice(next_ones, config.organic_items))
            gone |= {i.item_id for i in found}
            for item_id in gone:
                del wanted[item_id]
            now_ms = time.time_ns() // 1_000_000
            taken = [Reaction(i.item_id, True, LIKE in i.kinds) for i in found]
            events = [
                *_events(visitor.user_id, answer.request_id, seen, now_ms),
                *_events(visitor.user_id, answer.request_id, taken, now_ms, found=True),
            ]
            recorded = bool(events) and await self._record(events, answer)
            if left and recorded:
                answer = await self._until_visible(visitor.user_id, now_ms, gone, probe)
            elif left:
                answer = await self.ask(visitor.user_id)
        self.tally.visits += 1

    async def ask(self, user_id: str) -> RecommendResponse | None:
        """One Recommend call, counted; None if it failed."""
        tally, config = self.tally, self._config
        request = RecommendRequest(
            user_id=user_id, surface=config.surface, num_items=config.num_items, explain=True
        )
        async with self._asking:
            started = time.perf_counter()
            try:
                answer = await self._answer(request, started + PATIENCE_S)
            except grpc.aio.AioRpcError as error:
                tally.answers[error.code().name] += 1
                return None
        tally.latencies_s.append(time.perf_counter() - started)
        tally.answers["OK"] += 1
        tally.degradations.update(Degradation.Name(d) for d in answer.degradations)
        tally.degraded += bool(answer.degradations)
        if answer.HasField("interleaving"):
            teams = answer.interleaving.teams
            tally.interleaved += 1
            tally.uneven += abs(2 * sum(teams) - len(teams)) > 1
        for key in _arms(answer):
            counts = tally.arms[key]
            counts["requests"] += 1
            counts["degraded"] += bool(answer.degradations)
            for service, version in answer.explanation.model_versions.items():
                tally.versions[key, service, version] += 1
            if (key, user_id) not in tally.exposed:
                tally.exposed.add((key, user_id))
                counts["units"] += 1
        return answer

    async def _answer(self, request: RecommendRequest, until: float) -> RecommendResponse:
        """The answer, if it comes `until` then: the channel comes again some times when it is told
        to, a visitor until his patience is over."""
        while True:
            try:
                answer: RecommendResponse = await self._stub.Recommend(
                    request, timeout=self._config.request_timeout_s
                )
                return answer
            except grpc.aio.AioRpcError as error:
                refused = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                if not refused or time.perf_counter() >= until:
                    raise

    async def _record(self, events: Sequence[FeedbackEvent], answer: RecommendResponse) -> bool:
        """Send feedback and, once it is acknowledged, count it; whether it was."""
        tally = self.tally
        try:
            await self._stub.RecordFeedback(
                RecordFeedbackRequest(events=events), timeout=FEEDBACK_TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            tally.feedback_calls[error.code().name] += 1
            return False
        tally.feedback_calls["OK"] += 1
        tally.events += len(events)
        of_list = Counter(NAMES[event.event_type] for event in events if event.request_id)
        for key in _arms(answer):
            tally.arms[key] += of_list
        return True

    async def _until_visible(
        self, user_id: str, event_ms: int, gone: set[str], probe: bool
    ) -> RecommendResponse | None:
        """Ask again until the features behind the answer hold the events of `event_ms`.

        That answer must not show the items that were just chosen. None if it never came.
        """
        tally = self.tally
        acknowledged = time.perf_counter()
        if not probe:
            await asyncio.sleep(self._config.think_s)
            tally.follow_ups += 1
        first = not probe
        while time.perf_counter() - acknowledged < VISIBLE_WITHIN_S:
            answer = await self.ask(user_id)
            now_ms = time.time_ns() // 1_000_000
            if answer is not None and holds(answer, event_ms, now_ms):
                tally.visible_at_once += first
                if probe:
                    tally.visible_delays_s.append(time.perf_counter() - acknowledged)
                tally.shown_again += sum(item.item_id in gone for item in answer.items)
                return answer
            first = False
            await asyncio.sleep(ASK_AGAIN_S)
        tally.never_visible += 1
        return None


def _arms(answer: RecommendResponse) -> list[ArmKey]:
    """The arms that the answer counts for."""
    return [
        ArmKey(a.layer, a.experiment, a.arm)
        for a in answer.assignments
        if not (a.overridden or a.unread)
    ]


def holds(answer: RecommendResponse, event_ms: int, now_ms: int) -> bool:
    """Whether the profile behind an explained answer, which every event changes, is as new as one.

    Row and event have the same clock: the row's newest event is at least as late as `event_ms` iff
    its age, at a moment that was not after `now_ms`, reaches back no further.
    """
    age_s = answer.explanation.feature_age_s["profile"]
    return 0 <= age_s * 1000 <= now_ms - event_ms + CLOCK_MS


def _events(
    user_id: str, request_id: str, did: Sequence[Reaction], now_ms: int, *, found: bool = False
) -> Iterator[FeedbackEvent]:
    """Impressions, clicks and likes of items of a list, or of those that the user `found` by itself
    after it: the same events as in training, and of no list."""
    for item_id, clicked, liked in did:
        for kind, happened in ((IMPRESSION, True), (CLICK, clicked), (LIKE, liked)):
            if happened:
                yield FeedbackEvent(
                    event_id=f"{request_id}/{'found/' if found else ''}{item_id}/{kind}",
                    request_id="" if found else request_id,
                    user_id=user_id,
                    item_id=item_id,
                    event_type=kind,
                    event_time_ms=now_ms,
                )
