"""What the router measures. Labels come from the code and from experiments.yaml only."""

from __future__ import annotations

from prometheus_client import Counter

from services.common.loop_metrics import LoopCounters, LoopHistograms
from services.common.telemetry import AGE_BUCKETS, LATENCY_BUCKETS, OwnedGauge

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
    "Requests answered per arm that read a parameter of the experiment; shares off the declared"
    " weights stop the experiment (SRM).",
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
