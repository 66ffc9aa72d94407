"""The feature store that settings name."""

from __future__ import annotations

from feature_store.connect import connect
from feature_store.interface import FeatureStore
from services.common.schema import schema_of
from services.common.settings import Settings


def store_of(settings: Settings, least_timeout_ms: float = 0.0) -> FeatureStore:
    """Connect to it; each call waits for the settings' time, and for no less than the one given.

    Raises FeatureStoreUnfit, and ValueError for a URL that names no store.
    """
    how = settings.feature_store.model_dump()
    how["timeout_ms"] = max(how["timeout_ms"], least_timeout_ms)
    groups = schema_of(settings).groups
    return connect(groups=groups, installation=settings.installation, **how)
