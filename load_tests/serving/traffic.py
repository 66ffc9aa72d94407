"""The requests of the whole-installation benchmarks: request i of a run, as method and bytes.

Users and items are those of the bundled data set, so that the feature store knows them.
"""

from __future__ import annotations

import random
import time
from functools import cache

from models.data.worlds.films import dataset as films
from protos.tandem.v1.recommender_pb2 import (
    RecommendRequest,
    RecommendResponse,
    RecordFeedbackRequest,
)
from protos.tandem.v1.records_pb2 import CLICK, IMPRESSION, Degradation, FeedbackEvent

RECOMMEND = "/tandem.v1.Recommender/Recommend"
FEEDBACK = "/tandem.v1.Recommender/RecordFeedback"
NUM_ITEMS = 20
EVENTS = 5  # per RecordFeedback: impressions and one click
_RUN = random.SystemRandom().randrange(2**32)  # makes event ids differ between processes


@cache
def _population() -> tuple[list[str], list[str]]:
    dataset = films.load()
    users = sorted(dataset.train["user_id"].unique().to_list())
    random.Random(1).shuffle(users)
    return users, dataset.items.ids[1:]


def recommend(i: int) -> tuple[str, bytes]:
    """Recommend for the users in turn."""
    users, _ = _population()
    request = RecommendRequest(user_id=users[i % len(users)], surface="home", num_items=NUM_ITEMS)
    return RECOMMEND, request.SerializeToString()


def mixed(i: int) -> tuple[str, bytes]:
    """Three lists, then feedback on one, for ever more users: every fourth is a new one."""
    users, items = _population()
    if i % 4 < 3:
        return recommend(i)
    user = users[i % len(users)] if i % 16 < 12 else f"new-{_RUN}-{i}"
    now_ms = int(time.time() * 1000)
    feedback = [
        FeedbackEvent(
            event_id=f"{_RUN}-{i}-{place}",
            user_id=user,
            item_id=items[(i * 31 + place) % len(items)],
            event_type=CLICK if place == EVENTS - 1 else IMPRESSION,
            event_time_ms=now_ms,
        )
        for place in range(EVENTS)
    ]
    return FEEDBACK, RecordFeedbackRequest(events=feedback).SerializeToString()


def judge(method: str, answer: bytes) -> str:
    """OK, or the degradations of the answer."""
    if method != RECOMMEND:
        return "OK"
    degradations = RecommendResponse.FromString(answer).degradations
    return " ".join(Degradation.Name(d).lower() for d in degradations) or "OK"
