"""What every gRPC channel within an installation is opened with."""

from __future__ import annotations

CHANNEL_OPTIONS = (
    # http_proxy in the environment is for the way out; the parts of an installation meet directly.
    ("grpc.enable_http_proxy", 0),
)
