"""Every model by name: its part in a request, its config and how it is built.

Training, `tandem train` and the services' loaders (`models/serving.py`) look models up here, so a
model is added in one place. Configs are frozen dataclasses of JSON-ready values; `settings` turns
texts (`--set key=value`) into their values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError
from torch import nn

from models.configs import ModelConfig
from models.layers.embedding_tables import EmbeddingOptions
from models.nearest import nearest
from models.ranking.dcn_v2 import DCNV2, DCNV2Config
from models.ranking.deepfm import DeepFM, DeepFMConfig
from models.ranking.din import DIN, DINConfig
from models.ranking.dnn import DNN, DNNConfig
from models.ranking.fm import FM, FMConfig
from models.ranking.infnet import INFNet, INFNetConfig
from models.ranking.logistic_regression import LogisticRegression, LogisticRegressionConfig
from models.ranking.masknet import MaskNet, MaskNetConfig
from models.ranking.mlcc import MLCC, MLCCConfig
from models.ranking.mmoe import MMoE, MMoEConfig
from models.ranking.model import RankingModel, TableRanker
from models.retrieval.comirec import ComiRecDR, ComiRecDRConfig, ComiRecSA, ComiRecSAConfig
from models.retrieval.desmil import DESMILR, DESMILRConfig
from models.retrieval.hcn import HCNR, HCNRConfig
from models.retrieval.mind import MIND, MINDConfig
from models.retrieval.sasrec import SASRec, SASRecConfig
from models.retrieval.ssl_two_tower import SSLTwoTower, SSLTwoTowerConfig
from models.retrieval.youtube_dnn import YouTubeDNN, YouTubeDNNConfig
from models.schema.inputs import FeatureSchema, Reads

Part = Literal["retrieval", "ranking"]

# Config fields that follow from the data; they cannot be set.
OF_DATA = ("num_items",)


class UnknownModel(ValueError):
    """No model of that name; the message lists those there are."""


class SettingError(ValueError):
    """A setting cannot be used; the message names the key and what is accepted."""


@dataclass(frozen=True)
class ModelKind:
    """One model: of retrieval a module that is made of its config, of ranking a network that is
    made of a schema and its config. `settings` differ from the config's own defaults."""

    name: str
    part: Part
    config: type[Any]
    module: Callable[..., nn.Module]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def configure(self, **parameters: Any) -> Any:
        """The config of `parameters` over this model's settings."""
        return self.config(**{**self.settings, **parameters})

    def make(self, config: ModelConfig) -> nn.Module:
        """A new module."""
        if self.part == "ranking":
            network: Any = self.module
            return RankingModel(config, network)
        return self.module(config.settings, config.reads)

    def table_ranker(
        self,
        schema: FeatureSchema,
        settings: Mapping[str, Any] | None = None,
        options: EmbeddingOptions | None = None,
        l2: float = 0.0,
    ) -> TableRanker:
        """This network over the features of a prepared table; ValueError names an unknown setting.

        `settings` differ from the config's defaults, not from this model's own."""
        known = [f.name for f in dataclasses.fields(self.config)]
        if wrong := sorted(set(settings or {}) - set(known)):
            raise ValueError(
                f"{self.name} has no settings {', '.join(wrong)}; it has "
                f"{', '.join(known) or 'none'}"
            )
        network: Any = self.module
        return TableRanker(schema, network, self.config(**_tuples(settings or {})), options, l2)

    def build(self, parameters: Mapping[str, Any], reads: Reads) -> nn.Module:
        """The module of a published config; lists stand for tuples, which JSON does not have.

        TypeError or ValueError for a config that is not this model's."""
        if self.part == "retrieval":
            return self.make(ModelConfig(reads, self.configure(**_tuples(parameters))))
        if lacking := {"settings", "options"} - set(parameters):
            raise ValueError(f"config has no {min(lacking)}: another build made it")
        settings = self.configure(**_tuples(parameters["settings"]))
        return self.make(ModelConfig(reads, settings, EmbeddingOptions(**parameters["options"])))


def of_data(kind: ModelKind, num_items: int) -> dict[str, Any]:
    """The values of OF_DATA that a model's config has."""
    known = [each.name for each in dataclasses.fields(kind.config)]
    return {"num_items": num_items} if "num_items" in known else {}


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


_KINDS = (
    ModelKind("ssl_two_tower", "retrieval", SSLTwoTowerConfig, SSLTwoTower),
    ModelKind("hcn_r", "retrieval", HCNRConfig, HCNR),
    ModelKind("desmil_r", "retrieval", DESMILRConfig, DESMILR),
    ModelKind("comirec_sa", "retrieval", ComiRecSAConfig, ComiRecSA),
    ModelKind("comirec_dr", "retrieval", ComiRecDRConfig, ComiRecDR),
    ModelKind("mind", "retrieval", MINDConfig, MIND),
    ModelKind("youtube_dnn", "retrieval", YouTubeDNNConfig, YouTubeDNN),
    ModelKind("sasrec", "retrieval", SASRecConfig, SASRec),
    ModelKind("masknet", "ranking", MaskNetConfig, MaskNet),
    ModelKind("infnet", "ranking", INFNetConfig, INFNet),
    ModelKind("mlcc", "ranking", MLCCConfig, MLCC, {"channels": 1}),
    ModelKind("mc_mlcc", "ranking", MLCCConfig, MLCC, {"channels": 4}),
    ModelKind("fm", "ranking", FMConfig, FM),
    ModelKind("deepfm", "ranking", DeepFMConfig, DeepFM),
    ModelKind("dnn", "ranking", DNNConfig, DNN),
    ModelKind("dcn_v2", "ranking", DCNV2Config, DCNV2),
    ModelKind("din", "ranking", DINConfig, DIN),
    ModelKind("mmoe", "ranking", MMoEConfig, MMoE),
    ModelKind("logistic_regression", "ranking", LogisticRegressionConfig, LogisticRegression),
)
MODELS: Mapping[str, ModelKind] = {kind.name: kind for kind in _KINDS}


def names(part: Part) -> tuple[str, ...]:
    """The models of a part of the request."""
    return tuple(kind.name for kind in _KINDS if kind.part == part)


def kind_of(name: str, part: Part | None = None) -> ModelKind:
    """The model `name`, of `part` if given; UnknownModel names the nearest."""
    known = [kind.name for kind in _KINDS if part in (None, kind.part)]
    if name in known:
        return MODELS[name]
    if name in MODELS:
        raise UnknownModel(
            f"model {name!r} is a {MODELS[name].part} model; {part} models: {', '.join(known)}"
        )
    raise UnknownModel(
        f"model {name!r} does not exist{nearest(name, known)}; there are {', '.join(known)}"
    )


def settings(
    pairs: Sequence[str], configs: Sequence[Callable[..., Any]], fixed: Sequence[str] = OF_DATA
) -> tuple[dict[str, Any], ...]:
    """The values that texts "key=value" give to the fields of configs (a function's: arguments).

    One dict per config: a key belongs to every config that has it. Values are checked against the
    field's type: tuples are written with commas (`tower=128,64`), an optional value may be `none`.
    SettingError names the key, the accepted values and the nearest known key.
    """
    fields = [
        {name: hint for name, hint in get_type_hints(config).items() if name not in fixed}
        for config in configs
    ]
    known = sorted(set().union(*fields))
    found: tuple[dict[str, Any], ...] = tuple({} for _ in configs)
    seen: set[str] = set()
    for pair in pairs:
        key, equals, text = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            raise SettingError(f"setting {pair!r} has no value: write key=value")
        if key in fixed:
            raise SettingError(f"setting {key}: follows from the data and cannot be set")
        if key not in known:
            raise SettingError(
                f"setting {key!r} does not exist{nearest(key, known)}; known: {', '.join(known)}"
            )
        if key in seen:
            raise SettingError(f"setting {key} is given twice: once is enough")
        seen.add(key)
        for values, hints in zip(found, fields, strict=True):
            if key in hints:
                values[key] = _value(key, text.strip(), hints[key])
    return found


def checked(config: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    """`config(**values)`; what the config itself refuses becomes a SettingError."""
    try:
        return config(**values)
    except ValueError as error:
        raise SettingError(str(error)) from error


def _value(key: str, text: str, hint: Any) -> Any:
    """The value of type `hint` that `text` writes."""
    written: list[Any] = [None] if text.lower() in ("none", "null") else []
    parts = [part.strip() for part in text.strip("()[]").split(",")]
    written.append([p for p in parts if p] if get_origin(hint) is tuple else text)
    for value in written:
        with contextlib.suppress(ValidationError):
            return TypeAdapter(hint).validate_python(value)
    raise SettingError(f"setting {key}: {text!r} is not {_accepted(hint)}")


def _accepted(hint: Any) -> str:
    """What a field takes, in words."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text",
             type(None): "none"}  # fmt: skip
    origin = get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(get_args(hint))
    if origin is tuple:
        inner = {int: "whole numbers", float: "numbers"}.get(get_args(hint)[0], "texts")
        return f"{inner} separated by commas"
    if origin in (Union, types.UnionType):
        return " or ".join(_accepted(option) for option in get_args(hint))
    return names.get(hint, str(hint))


def defaults(config: type[Any]) -> dict[str, Any]:
    """The settable fields of a config with their default values, for help texts."""
    return {
        field.name: field.default
        for field in dataclasses.fields(config)
        if field.name not in OF_DATA and field.default is not dataclasses.MISSING
    }
