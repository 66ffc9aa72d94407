"""What the demo knows of the installation that it watches."""

from __future__ import annotations

from pathlib import Path

from load_tests.demo.watch import published_versions
from models import artifact
from services.common.settings import Settings
from tests.artifacts import publish_small


def test_every_published_version_is_known_with_its_model(tmp_path: Path) -> None:
    settings = Settings(artifacts_dir=tmp_path, ranking={"models": ["masknet", "infnet"]})  # type: ignore[arg-type]
    for name in ("ssl_two_tower", "masknet", "infnet", "masknet"):
        publish_small(tmp_path, [name])
    models = list(published_versions(settings).values())
    assert models == ["ssl_two_tower", "masknet", "masknet", "infnet"]
    current = artifact.current(tmp_path, "infnet").name
    assert published_versions(settings)[current] == "infnet"
