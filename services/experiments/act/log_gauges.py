"""What the log says of the arms (`exposures.arm_counts`), and how whole it is, for Prometheus."""

from __future__ import annotations

from prometheus_client import Gauge

from services.common.telemetry import OwnedGauge

_ARM = ["experiment", "arm"]
ARM_GAUGES = {
    "requests": Gauge(
        "tandem_exposures",
        "Requests answered with this arm in force: arms must stand in their weights' ratio.",
        _ARM,
    ),
    "units": Gauge(
        "tandem_exposed_units",
        "Users, or whatever the experiment assigns, that this arm was shown to first: what its"
        " rates have a sample of.",
        _ARM,
    ),
    "impressions": Gauge(
        "tandem_arm_impressions", "Items seen from this arm's lists: what rates divide by.", _ARM
    ),
    "clicks": Gauge("tandem_arm_clicks", "Items chosen from this arm's lists.", _ARM),
    "likes": Gauge("tandem_arm_likes", "Items liked from this arm's lists.", _ARM),
    "degraded": Gauge(
        "tandem_arm_degraded_requests",
        "Requests of this arm that a stage failed or came late for: unequal shares make the arms"
        " incomparable.",
        _ARM,
    ),
}
UNMATCHED = OwnedGauge(
    "tandem_experiments_unmatched_events",
    "Feedback that quotes a request of which there is no decision: decisions are lost, or clients"
    " make up request ids.",
)
UNDECODABLE = OwnedGauge(
    "tandem_experiments_undecodable_records",
    "Records that are no valid message, or cannot be meant: a broken writer.",
)
