"""What every gRPC channel within an installation is opened with, and where to."""

from __future__ import annotations

CHANNEL_OPTIONS = (
    # http_proxy in the environment is for the way out; the parts of an installation meet directly.
    ("grpc.enable_http_proxy", 0),
)


def joined(host: str, port: int) -> str:
    """host:port as gRPC and URLs have it: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
