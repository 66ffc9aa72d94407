"""The keys of an experiments file: one definition for the reader and for editors.

Each `Section`, here and in reader/, is a mapping of the file: its keys, their kinds and defaults,
and what must hold between them. The reader makes the types of config.py of them; `json_schema`
makes of the same classes the JSON Schema that `tandem experiments schema` prints. It accepts
whatever the reader accepts and is coarser: it knows keys, types and ranges, but not what spans
several values (weights that add up, buckets that overlap, who owns a parameter, moving changes).
`tandem experiments validate` knows everything.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from models.schema.declaration import SERVING
from models.yaml_reader.places import Place, Wrong
from models.yaml_reader.section import inlined
from models.yaml_reader.values import INT, Many, Name, Reads, Schema
from services.experiments.declare.config import NO_HOLDOUT, Holdout, Layer
from services.experiments.declare.domain import Domain
from services.experiments.declare.parameters import ParameterError
from services.experiments.declare.reader.conditions import MAX_SEGMENTS, SegmentBlock
from services.experiments.declare.reader.exclusion import check_exclusion, check_interleaving
from services.experiments.declare.reader.experiments import (
    UNITS,
    ExperimentBlock,
    parameter_schema,
)
from services.experiments.declare.reader.metrics import MetricBlock
from services.experiments.declare.reader.section import (
    NamedSection,
    SaltedSection,
    Section,
)
from services.experiments.declare.reader.values import ParameterName, Percent

VERSION = 1
MAX_DECLARED_UNITS = 8  # as many as a request may give ids of


def _version(place: Place) -> int:
    if place.plain == (INT, str(VERSION)):
        return VERSION
    raise Wrong("this version is not known", f"Write `version: {VERSION}`")


class LayerBlock(NamedSection, SaltedSection):
    required = ("name", "experiments")
    experiments: Many[ExperimentBlock] = ()
    """Experiments that exclude each other."""
    parameters: Many[ParameterName] = ()
    """The parameters that the layer owns: no other layer may touch them."""

    def check(self) -> None:
        known = []
        for name, place in self.listed("parameters"):
            try:
                known.append(name and self.files.domain.parameters.spec_of(name).name)
            except ParameterError as error:
                self.files.add(place, error.reason, error.fix)
                known.append("")
        self.parameters = tuple(known)

    def layer(self) -> Layer:
        salt = self.own_salt(self.own_name())
        owners, owned = self.files.owners, []
        for name, place in self.listed("parameters"):
            if name in owners:
                self.files.add(
                    place,
                    f"{owners[name]} already owns {name!r}",
                    "Let one layer own it and move its experiments into that layer",
                )
            elif name:
                owners[name] = str(Place(place.node, f"layer {self.name!r}", place.file))
            owned.append(name)
        experiments = tuple(block.experiment(self.name, owned) for block in self.experiments)
        places = [block.place for block in self.experiments]
        check_exclusion(experiments, places, self.files)
        check_interleaving(experiments, places, self.files)
        return Layer(self.name, salt, tuple(owned), experiments)


class HoldoutBlock(SaltedSection):
    required = ("percent",)
    percent: Percent = None
    """Percent of users who are in no experiment at all, at most two decimals."""
    salt: Name = NO_HOLDOUT.salt
    """What users are hashed with."""

    def declare(self) -> None:
        if (first := self.files.holdout) is not None:
            reason = f"{first.file} has a holdout already"
            self.wrong("", reason, "Declare the one holdout in one of the files")
            return
        salt = self.own_salt(NO_HOLDOUT.salt)
        self.files.holdout = Holdout(salt, self.percent or 0, self.place.line, self.place.file)


class FileBlock(Section):
    required = ("version", "layers")
    version: Annotated[int, Reads(_version, {"const": VERSION})] = VERSION
    """Of this format."""
    layers: Many[LayerBlock] = ()
    """Layers deal units independently of each other."""
    holdout: HoldoutBlock | None = None
    """Users kept out of all experiments, in one file only."""
    metrics: Many[MetricBlock] = ()
    """What experiments are judged by; in any file."""
    units: Many[Name] = Field((), json_schema_extra={"maxItems": MAX_DECLARED_UNITS})
    """Units beside user and session by whose ids experiments may assign (household, device), whose
    ids requests may carry; in any file."""
    segments: Many[SegmentBlock] = Field((), json_schema_extra={"maxItems": MAX_SEGMENTS})
    """Parts of the requests, to look at effects in; in any file."""

    def declare(self) -> None:
        """Declare what experiments of any file may use."""
        for metric in self.metrics:
            metric.declare()
        units = self.files.units
        for name, place in self.listed("units"):
            if name in UNITS:
                self.files.add(place, f"{name!r} is always a unit", "Delete it from this list")
            elif name in units:
                reason = f"{units[name]} has the same name {name!r}"
                self.files.add(place, reason, "Declare a unit once")
            elif name:
                units[name] = place
                if len(units) == MAX_DECLARED_UNITS + 1:
                    reason = f"there are more than {MAX_DECLARED_UNITS} units"
                    self.files.add(place, reason, "Delete some: a request carries no more ids")


def json_schema(domain: Domain) -> Schema:
    """The JSON Schema (draft 7, which editors know best) of an experiments file in a domain."""
    schema = FileBlock.model_json_schema()
    metric, layer, arm = (
        schema["$defs"][block]["properties"] for block in ("MetricBlock", "LayerBlock", "ArmBlock")
    )
    sources, specs = domain.events.sources, domain.parameters.by_name
    metric["of"]["enum"], metric["per"]["enum"] = [*sources, *SERVING], [*sources, "request"]
    user = schema["$defs"]["WhereBlock"]["properties"]["user"]
    tests, user["additionalProperties"] = user["additionalProperties"], False
    user["properties"] = {
        name: {"description": f"What must hold of the user's {name}.", "allOf": [tests]}
        for name in domain.events.tested
    }
    layer["parameters"]["items"]["enum"] = list(specs)
    arm["parameters"] |= {
        "properties": {name: parameter_schema(spec) for name, spec in specs.items()},
        "additionalProperties": False,
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Tandem experiments",
    } | inlined(schema, schema["$defs"])
