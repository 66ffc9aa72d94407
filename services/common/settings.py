"""Settings: one YAML file, overridden by environment variables, checked by pydantic.

`tandem.yaml` at the repository's root is the reference manual: every key with its meaning, unit and
default (a test compares it with the classes below). `TANDEM_ROUTER__PORT=50051` overrides
`router.port`; `TANDEM_SETTINGS` names another file than ./tandem.yaml.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from models.schema.progress import EVENT_IDS


class SettingsInvalid(ValueError):
    """The file or the environment cannot be used; the message says where and why."""


PREFIX, NESTED = "TANDEM_", "__"

# Settings of earlier versions, and what to do about them.
GONE = {
    "feedback.joiner_metrics_port": "there is no joiner any more: remove this; the numbers per arm"
    " are on experiments.metrics_port",
    "feedback.join_window_s": "there is no joiner any more: remove this; how long feedback counts"
    " is window_s of each metric in the experiments file",
}

# Variables that are no settings: the file's name, and what `tandem serve` marks its processes with.
MARKS = frozenset({"TANDEM_SETTINGS", "TANDEM_RUN_ID", "TANDEM_SUPERVISOR_PID", "TANDEM_RESTARTS"})

# Kubernetes tells every container of the Services beside it, for a Service tandem-router as
# TANDEM_ROUTER_SERVICE_HOST, TANDEM_ROUTER_PORT=tcp://..., TANDEM_ROUTER_PORT_50051_TCP_ADDR.
_SERVICE_LINK = re.compile(r".+(_SERVICE_(HOST|PORT(_\w+)?)|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://")


class Section(BaseModel):
    """A block of tandem.yaml: unknown keys are errors, values are finite and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _bare(host: str) -> str:
    """An IPv6 address without the brackets that it has in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


Host = Annotated[str, AfterValidator(_bare)]


# Kafka's topics have at most 249 characters, and ours (limits.py of the event log) at most 200.
_INSTALLATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,47}")


def _fit_for_names(installation: str) -> str:
    if not _INSTALLATION.fullmatch(installation):
        raise ValueError(
            f"{installation!r} must be 1 to 48 letters, digits, '_' or '-', the first a letter or"
            " digit: the names of Kafka's topics begin with it"
        )
    return installation


class RouterSettings(Section):
    host: Host = "127.0.0.1"
    port: int = Field(50051, ge=0, le=65_535)
    metrics_port: int = Field(9100, ge=0, le=65_535)
    experiments_file: Path = Path("experiments.yaml")
    experiments_reload_s: float = Field(1.0, gt=0)
    blocked_items_file: Path | None = None
    deadline_ms: float = Field(250.0, gt=0)
    respond_reserve_ms: float = Field(5.0, ge=0)
    hydrate_ms: float = Field(25.0, gt=0)
    retrieve_ms: float = Field(100.0, gt=0)
    rank_ms: float = Field(150.0, gt=0)
    max_in_flight: int = Field(1000, ge=1)
    drain_s: float = Field(5.0, ge=0)


class ReplicaSettings(Section):
    """What candidate generation and ranking have in common."""

    host: Host = "127.0.0.1"
    target: str = "announced"
    replicas: int = Field(1, ge=1)
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    threads: int = Field(1, ge=1)
    max_batch_rows: int = Field(4096, ge=1)
    max_queue_rows: int = Field(65_536, ge=1)
    artifact_poll_s: float = Field(1.0, gt=0)
    drain_s: float = Field(5.0, ge=0)


class CandidateGenerationSettings(ReplicaSettings):
    models: tuple[str, ...] = Field(("ssl_two_tower",), min_length=1)
    max_batch_rows: int = Field(64, ge=1)
    max_queue_rows: int = Field(1024, ge=1)


class RankingSettings(ReplicaSettings):
    models: tuple[str, ...] = Field(("masknet", "mc_mlcc"), min_length=1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    counters_refresh_s: float = Field(2.0, gt=0)
    counters_max_age_s: float = Field(60.0, gt=0)


class CatalogueSettings(Section):
    host: Host = "127.0.0.1"
    port: int = Field(50052, ge=0, le=65_535)
    metrics_port: int = Field(9104, ge=0, le=65_535)
    folder: Path | None = None
    max_waiting: int = Field(20_000, ge=1_000)
    drain_s: float = Field(5.0, ge=0)


class FeatureStoreSettings(Section):
    url: str = "lmdb://run/features"
    timeout_ms: float = Field(50.0, gt=0)
    lmdb_map_size_mb: int = Field(4096, ge=16)


class EventLogSettings(Section):
    url: str = "log://run/events"
    partitions: int = Field(4, ge=1, le=64)
    segment_mb: int = Field(64, ge=1)
    retention_days: float = Field(7.0, gt=0)
    max_pending: int = Field(20_000, ge=1)
    append_timeout_s: float = Field(10.0, gt=0)


class FeedbackSettings(Section):
    # A batch that is sent again must be recognised, and it may be one user's.
    max_batch_events: int = Field(1000, ge=1, le=EVENT_IDS)
    max_future_s: float = Field(60.0, ge=0, le=86_400)
    poll_records: int = Field(500, ge=1)
    updater_metrics_port: int = Field(9101, ge=0, le=65_535)


class ExperimentsSettings(Section):
    metrics_port: int = Field(9103, ge=0, le=65_535)
    report_every_s: float = Field(5.0, gt=0)
    act: bool = True


class RaySettings(Section):
    address: str | None = None
    num_cpus: int | None = Field(None, ge=1)
    object_store_mb: int = Field(100, ge=80)


class TelemetrySettings(Section):
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"


class _OnceLoader(yaml.SafeLoader):
    """Takes no key twice: the second would replace the first, and all that stands below it."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:null":
                raise yaml.MarkedYAMLError(None, None, "expected a name", key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    None, None, f"the key {key.value!r} stands there twice", key.start_mark
                )
            seen.add(key.value)
        return {str(key): value for key, value in super().construct_mapping(node, deep).items()}


class _File(YamlConfigSettingsSource):
    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        with file_path.open(encoding="utf-8") as file:
            return yaml.load(file, _OnceLoader) or {}


class Settings(BaseSettings):
    """All settings of a Tandem installation; every process reads the same file."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter=NESTED, extra="forbid", frozen=True
    )

    installation: Annotated[str, AfterValidator(_fit_for_names)] | None = None
    run_dir: Path = Path("run")
    artifacts_dir: Path = Path("run/artifacts")
    schema_file: Path | None = None
    schema_write: int | None = Field(None, ge=1)
    router: RouterSettings = RouterSettings()
    candidate_generation: CandidateGenerationSettings = CandidateGenerationSettings()
    ranking: RankingSettings = RankingSettings()
    catalogue: CatalogueSettings = CatalogueSettings()
    feature_store: FeatureStoreSettings = FeatureStoreSettings()
    event_log: EventLogSettings = EventLogSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    experiments: ExperimentsSettings = ExperimentsSettings()
    ray: RaySettings = RaySettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @property
    def generations_dir(self) -> Path:
        """Where the generations of the catalogue are."""
        return self.catalogue.folder or self.run_dir / "catalogue"

    @classmethod
    def load(cls) -> Settings:
        """The settings of the file and the environment; SettingsInvalid for whatever is wrong."""
        try:
            return cls()
        except ValidationError as error:
            found = ((".".join(map(str, e["loc"])), e["msg"]) for e in error.errors())
            problems = (f"{key}: {GONE.get(key, message)}" for key, message in found)
            raise SettingsInvalid("settings: " + "; ".join(problems)) from None
        except SettingsError as error:
            raise SettingsInvalid(
                f"settings: {error}; in environment variables lists are JSON: '[\"home\"]'"
            ) from None
        except (OSError, yaml.YAMLError) as error:
            raise SettingsInvalid(f"settings: {' '.join(str(error).split())}") from None
        except RecursionError:
            raise SettingsInvalid("settings: a value is nested too deep to be one") from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        if wrong := "; ".join(unknown_variables(os.environ)):
            raise SettingsInvalid(f"settings: {wrong}")
        file = Path(os.environ.get("TANDEM_SETTINGS", "tandem.yaml"))
        if "TANDEM_SETTINGS" in os.environ and not file.is_file():
            raise FileNotFoundError(f"TANDEM_SETTINGS names {file}, which is not a file")
        try:
            from_file = _File(settings_cls, file)
        except (TypeError, ValueError) as error:  # a list, a number, no text at all
            raise SettingsInvalid(f"settings: {file} has no keys with values: {error}") from None
        return init_settings, env_settings, from_file


def unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """A sentence per variable that looks like a setting and is none: it would be ignored.

    The keys within a section are checked with the section itself.
    """
    known = dict(_variables(Settings))
    for name, value in environment.items():
        upper = name.upper()  # pydantic takes either case
        if not upper.startswith(PREFIX) or upper in MARKS or upper in known:
            continue
        section, nested, _ = upper.partition(NESTED)
        if (nested and known.get(section)) or _is_service_link(upper, value):
            continue
        close = get_close_matches(upper, known, 1, 0.0)[0]
        yield f"the environment variable {name} names no setting: unset it, or is it {close}?"


def _is_service_link(name: str, value: str) -> bool:
    is_url = name.endswith("_PORT") and _SERVICE_URL.match(value) is not None
    return is_url or _SERVICE_LINK.fullmatch(name) is not None


def _variables(model: type[BaseModel], prefix: str = PREFIX) -> Iterator[tuple[str, bool]]:
    """The variables that set a key of the model or of its sections; True for a section."""
    for key, field in model.model_fields.items():
        name, kind = f"{prefix}{key.upper()}", field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield name, True
            yield from _variables(kind, name + NESTED)
        else:
            yield name, False
