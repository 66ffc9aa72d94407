"""tandem.yaml against the settings' schema, both ways, and the order of sources."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from models.cli import DEMO_MODELS
from services.common.processes.supervisor import MARK, SUPERVISOR
from services.common.settings import FeedbackSettings, RouterSettings, Settings, SettingsInvalid
from services.common.telemetry import RESTARTS_SO_FAR

MANUAL = Path(__file__).parents[3] / "tandem.yaml"


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith("TANDEM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def keys(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_the_manual_has_every_key_with_its_default_and_no_other() -> None:
    assert dict(keys(yaml.safe_load(MANUAL.read_text()))) == dict(
        keys(Settings().model_dump(mode="json"))
    )


def test_every_key_of_the_manual_is_explained_by_the_comment_above_it() -> None:
    lines = MANUAL.read_text().splitlines()
    for above, line in zip(["", *lines], lines, strict=False):
        if line and not line.lstrip().startswith("#"):
            indent = line[: len(line) - len(line.lstrip())]
            assert above.startswith(f"{indent}# "), line


def test_the_manual_is_itself_a_settings_file(monkeypatch: pytest.MonkeyPatch) -> None:
    defaults = Settings()
    monkeypatch.setenv("TANDEM_SETTINGS", str(MANUAL))
    assert Settings() == defaults


@pytest.mark.parametrize("name", ["", "a b", "shop.de", "shop:1", "-shop", "é", "a" * 49, "{a}"])
def test_a_name_that_cannot_begin_those_of_topics_and_keys_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("TANDEM_INSTALLATION", name)
    with pytest.raises(SettingsInvalid, match=r"installation: .* must be 1 to 48 letters, digits"):
        Settings.load()


def test_an_environment_variable_beats_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tandem.yaml").write_text("router: {port: 1, metrics_port: 2}")
    monkeypatch.setenv("TANDEM_ROUTER__PORT", "3")
    assert (Settings().router.port, Settings().router.metrics_port) == (3, 2)


def test_tandem_settings_names_another_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tandem.yaml").write_text("router: {port: 1}")
    other = tmp_path / "other.yaml"
    other.write_text("router: {port: 2}")
    monkeypatch.setenv("TANDEM_SETTINGS", str(other))
    assert Settings().router.port == 2
    other.unlink()
    with pytest.raises(FileNotFoundError, match="TANDEM_SETTINGS"):
        Settings()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("router: {prot: 1}", "router.prot"),
        ("roter: {port: 1}", "roter"),
        ("router: {port: 70000}", "router.port"),
        ("event_log: {partitions: 65}", "event_log.partitions"),
        ("telemetry: {log_level: loud}", "telemetry.log_level"),
    ],
)
def test_an_unknown_key_or_a_bad_value_is_an_error_that_names_it(
    tmp_path: Path, text: str, key: str
) -> None:
    (tmp_path / "tandem.yaml").write_text(text)
    with pytest.raises(ValidationError, match=key.replace(".", r"\.")):
        Settings()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("router: {port: x}", "router.port: "),
        ("router: [", "tandem.yaml"),
        ("- router", "tandem.yaml"),
        ("5", "tandem.yaml"),
        ("router: {port: 1}\nrouter: {metrics_port: 2}", "'router' stands there twice .*line 2"),
        ("router:\n  port: 1\n  port: 2", "'port' stands there twice .*line 3"),
        ("5: 6", "5: Extra inputs"),
        ("null: 6", "expected a name"),
        ("[" * 50_000, "nested too deep"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_in_one_sentence(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "tandem.yaml").write_text(text)
    with pytest.raises(SettingsInvalid, match=f"^settings: .*{said}"):
        Settings.load()


def test_a_list_in_the_environment_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_RANKING__MODELS", '["infnet"]')
    assert Settings.load().ranking.models == ("infnet",)
    monkeypatch.setenv("TANDEM_RANKING__MODELS", "infnet,masknet")
    with pytest.raises(SettingsInvalid, match=r"ranking.*JSON"):
        Settings.load()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("TANDEM_EVENTLOG__URL", "TANDEM_EVENT_LOG__URL"),
        ("TANDEM_FEATURE_STORE_URL", "TANDEM_FEATURE_STORE__URL"),
        ("TANDEM_ROUTR__PORT", "TANDEM_ROUTER__PORT"),
        ("TANDEM_ROUTER_PORT", "TANDEM_ROUTER__PORT"),
        ("TANDEM_ROUTER_PORT_", "TANDEM_ROUTER__PORT"),
        ("TANDEM_RUNDIR", "TANDEM_RUN_DIR"),
        ("tandem_routr__port", "TANDEM_ROUTER__PORT"),
        ("TANDEM_RUN_DIR__X", "TANDEM_RUN_DIR"),
    ],
)
def test_a_variable_that_names_no_setting_is_refused_with_the_one_that_was_meant(
    monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(SettingsInvalid, match=f"{name} names no setting.* {meant}\\?"):
        Settings.load()


def test_a_wrong_key_of_a_section_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_ROUTER__PROT", "1")
    with pytest.raises(SettingsInvalid, match=r"router\.prot"):
        Settings.load()


@pytest.mark.parametrize("key", ["joiner_metrics_port", "join_window_s"])
def test_a_setting_of_an_earlier_version_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str
) -> None:
    said = rf"^settings: feedback\.{key}: there is no joiner any more: remove this; "
    (tmp_path / "tandem.yaml").write_text(f"feedback: {{{key}: 9102}}")
    with pytest.raises(SettingsInvalid, match=said):
        Settings.load()
    (tmp_path / "tandem.yaml").unlink()
    monkeypatch.setenv(f"TANDEM_FEEDBACK__{key.upper()}", "9102")
    with pytest.raises(SettingsInvalid, match=said):
        Settings.load()


def test_what_kubernetes_and_the_supervisor_set_disturbs_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "TANDEM_ROUTER_PORT": "tcp://10.0.0.1:50051",
        "TANDEM_ROUTER_SERVICE_HOST": "10.0.0.1",
        "TANDEM_ROUTER_SERVICE_PORT": "50051",
        "TANDEM_ROUTER_SERVICE_PORT_GRPC": "50051",
        "TANDEM_ROUTER_PORT_50051_TCP": "tcp://10.0.0.1:50051",
        "TANDEM_ROUTER_PORT_50051_TCP_ADDR": "10.0.0.1",
        MARK: "1",
        SUPERVISOR: "2",
        RESTARTS_SO_FAR: "0",
        "tandem_router__port": "4",
    }.items():
        monkeypatch.setenv(name, value)
    assert Settings.load() == Settings(router=RouterSettings(port=4))


@pytest.mark.parametrize(
    "text",
    [
        "router: {deadline_ms: .inf}",
        "event_log: {retention_days: .inf}",
        "feedback: {max_future_s: .nan}",
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tandem.yaml").write_text(text)
    with pytest.raises(SettingsInvalid, match=text.partition(":")[0]):
        Settings.load()


def test_settings_cannot_be_changed_after_loading() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().router.port = 1  # type: ignore[misc]


def test_train_all_trains_what_is_served_by_default() -> None:
    settings = Settings()
    assert settings.candidate_generation.models == DEMO_MODELS["retrieval"]
    assert settings.ranking.models == DEMO_MODELS["ranking"]


def test_a_batch_is_never_larger_than_what_is_recognised_when_it_is_sent_again() -> None:
    with pytest.raises(ValidationError, match="1024"):
        FeedbackSettings(max_batch_events=1025)
