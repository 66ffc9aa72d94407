"""What every gRPC channel within an installation is opened with, and where to."""

from __future__ import annotations

import json

CHANNEL_OPTIONS = (
    # http_proxy in the environment is for the way out; the parts of an installation meet directly.
    ("grpc.enable_http_proxy", 0),
)

# For who asks for lists: a router that is too busy for a request refuses it at once and says when
# to come again. gRPC waits that long and tries again by itself, within the deadline of the call.
_RECOMMEND = {"service": "tandem.v1.Recommender", "method": "Recommend"}
_RETRIES = {
    "maxAttempts": 5,
    "initialBackoff": "0.05s",  # where the answer does not say
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["RESOURCE_EXHAUSTED", "UNAVAILABLE"],
}
_CONFIG = {"methodConfig": [{"name": [_RECOMMEND], "retryPolicy": _RETRIES}]}
CLIENT_OPTIONS = (*CHANNEL_OPTIONS, ("grpc.service_config", json.dumps(_CONFIG)))


def joined(host: str, port: int) -> str:
    """host:port as gRPC and URLs have it: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
