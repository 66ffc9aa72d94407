"""What the router measures. Labels come from the code and from experiments.yaml only."""

from __future__ import annotations

import structlog
from prometheus_client import Counter

from feature_store.codec import RowStatus
from protos.tandem.v1.records_pb2 import ANSWERED, Degradation
from services.common.loop_metrics import LoopCounters, LoopHistograms
from services.common.telemetry import AGE_BUCKETS, LATENCY_BUCKETS, OwnedGauge
from services.router.request import RequestState

log = structlog.get_logger()

STAGES = ("assign", "hydrate", "retrieve", "filter", "rank", "rerank", "respond")

STAGE_SECONDS = LoopHistograms(
    "tandem_router_stage_seconds",
    "Time per stage of Recommend; the stage that grows is the one to scale or to give less budget.",
    ["stage"],
    buckets=LATENCY_BUCKETS,
)
AT_WORK = OwnedGauge(
    "tandem_router_requests_at_work",
    "Requests that wait for the models; held at what can be answered in time, more replicas help.",
)
SECONDS_PER_REQUEST = OwnedGauge(
    "tandem_router_seconds_per_request",
    "Time to a whole answer per request at work, as learned; a rise means capacity was lost.",
)
RESERVE_SECONDS = OwnedGauge(
    "tandem_router_reserve_seconds",
    "Time kept back for answering; above router.respond_reserve_ms the machine is contended.",
)
DEGRADATIONS = Counter(
    "tandem_router_degradations_total",
    "Degraded answers by kind; a rise pages the owner of the stage that is missing.",
    ["kind"],
)
STAGE_FAILURES = Counter(
    "tandem_router_stage_failures_total",
    "Calls to a model service that failed, by status: DEADLINE_EXCEEDED and RESOURCE_EXHAUSTED ask"
    " for replicas, UNAVAILABLE and NO_REPLICA for a look at why they are gone, MALFORMED to roll a"
    " version back (scores that are not finite, fields that do not fit: the log names it), the"
    " rest is a bug.",
    ["stage", "status"],
)
FEATURE_AGE = LoopHistograms(
    "tandem_router_feature_age_seconds",
    "Age of the user features served; a shift to the right means the updater is behind.",
    ["group"],
    buckets=AGE_BUCKETS,
)
FEATURE_STATUS = LoopCounters(
    "tandem_router_feature_rows_total",
    "User feature rows by what was found (fresh, missing, expired, ...); all but fresh are served"
    " as declared defaults: new users raise missing, a schema change raises schema_mismatch.",
    ["group", "status"],
)
EXPOSURES = LoopCounters(
    "tandem_router_exposures_total",
    "Requests answered per arm that read a parameter of the experiment: whether this router serves"
    " it. Statistics are the experiments worker's.",
    ["experiment", "arm"],
)
DECISIONS_LOST = Counter(
    "tandem_router_decisions_lost_total",
    "Decision records the event log did not take; above 0 experiment results are incomplete.",
)
ITEMS = LoopCounters(
    "tandem_router_items_total",
    "Items served by candidate source; a source that fades has stopped contributing.",
    ["source"],
)

_STAGE_SECONDS = {stage: STAGE_SECONDS.labels(stage) for stage in STAGES}
_SERVED = ("profile", "history")  # groups
_FEATURE_AGE = {group: FEATURE_AGE.labels(group) for group in _SERVED}
_FEATURE_STATUS = {
    group: [FEATURE_STATUS.labels(group, s.name.lower()) for s in RowStatus] for group in _SERVED
}
_DEGRADATION_NAMES = {value: name for name, value in Degradation.items() if value}
_DEGRADATIONS = {
    value: DEGRADATIONS.labels(name.lower()) for value, name in _DEGRADATION_NAMES.items()
}
# A replica of a newer version may know kinds that this one does not.
_UNKNOWN_DEGRADATION = DEGRADATIONS.labels("unknown")


def count(state: RequestState) -> None:
    """Count a request that is over; of one without an answer only its stages, the open one, too.

    Such requests are often the slow ones: leaving them out would flatter every stage.
    """
    for stage, ms in state.stage_ms.items():
        _STAGE_SECONDS[stage].observe(ms / 1000.0)
    shown = state.shown
    if state.outcome != ANSWERED or shown is None:
        return
    for name, served in (("profile", state.user.profile), ("history", state.user.history)):
        _FEATURE_STATUS[name][served.status].value += 1
        if served.row:
            _FEATURE_AGE[name].observe(served.age_s)
    for arm in state.exposure.arms:
        EXPOSURES.labels(*arm).value += 1
    sources = shown.ranking.pool.candidates.sources
    if len(sources) == 1:  # mostly
        ITEMS.labels(sources[0]).value += len(shown.item_ids)
    else:
        source_of = shown.source.tobytes()
        for i, source in enumerate(sources):
            ITEMS.labels(source).value += source_of.count(i)
    if shown.degradations:
        for degradation in shown.degradations:
            _DEGRADATIONS.get(degradation, _UNKNOWN_DEGRADATION).inc()
        log.debug(
            "degraded",
            request_id=state.request.request_id,
            kinds=[_DEGRADATION_NAMES.get(d, str(d)) for d in shown.degradations],
        )
