"""What the pipeline works with besides the request itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from feature_store.interface import FeatureStore
from models.catalogue import ItemTable
from services.common.balancer import ReplicaSet
from services.common.settings import RouterSettings
from services.common.value_model import ValueModel
from services.experiments.assign.assignment import Assigner
from services.router.popularity import Popular
from services.router.recent_feedback import RecentFeedback
from services.router.user_rows import UserRows


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the pipeline works with. The callables give what is in force at this moment."""

    rows: UserRows
    store: FeatureStore
    recent: RecentFeedback
    candidate_generation: ReplicaSet
    ranking: ReplicaSet
    items: Callable[[], ItemTable]
    popular: Callable[[], Popular]
    value_model: ValueModel  # how lists are ordered
    blocked: Callable[[], np.ndarray]  # uint64 keys, ascending, of items nobody is shown
    assigner: Callable[[], Assigner]
    settings: RouterSettings
    clock: Callable[[], float] = time.time
