"""Every tunable of a request: a typed, named parameter with its production default.

Parameters are the unit of experimentation. The router reads a `Parameters` and never an arm; the
experiments file overrides parameters by their dotted names (`rerank.diversity`). Some are those of
every domain; the weights of the value formula are what schema.yaml declares (`rerank.WEIGHT`).
Names and values are checked against a domain's `ParameterSpecs` when the file is loaded, and never
while a request waits.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

from models.schema.declaration import Weight

Value: TypeAlias = bool | int | float | str

NO_EXPLORATION, EPSILON, PLACKETT_LUCE = "none", "epsilon", "plackett_luce"
# The parameter that says how strongly each kind explores.
STRENGTH_OF = {EPSILON: "rerank.epsilon", PLACKETT_LUCE: "rerank.temperature"}

# Steps of a request at which the router reads parameters (`ParameterSpec.read_in`). Beside them:
# the kinds of exploration, of a list that is drawn by one; and each weight's own name, of a list
# that is ordered by a formula with it (surfaces have formulas of their own).
RETRIEVE = "retrieve"  # the first: whatever comes of a request, it has read what is read here
TO_RANK = "to_rank"  # there are candidates to rank
RANK = "rank"  # ranking is asked
RERANK = "rerank"  # ranking has answered, so that the value model orders the list
EXPLORE = "explore"  # of such a list, unless it is interleaved: whether and how to draw it

MODEL_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
OF_WEIGHTS = "rerank."  # what their names begin with


class ParameterError(ValueError):
    """A value that a parameter cannot take; `reason` and `fix` are sentences without the name."""

    def __init__(self, reason: str, fix: str) -> None:
        super().__init__(f"{reason}. {fix}.")
        self.reason = reason
        self.fix = fix


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """What a parameter is called, means and accepts. Its type is the type of its default."""

    name: str
    default: Value
    meaning: str
    read_in: tuple[str, ...]  # the steps at which a request reads it, one or the other
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()  # of a text; none: a model's name
    weight: str = ""  # of the value formula: its name there

    @property
    def attribute(self) -> str:
        """The field of `Parameters` that has it: its dotted name with underscores, or `weights`."""
        return "weights" if self.weight else self.name.replace(".", "_")

    @property
    def accepts(self) -> str:
        """The accepted values in words."""
        match self.default:
            case bool():
                return "true or false"
            case int():
                return f"a whole number from {self.low:g} to {self.high:g}"
            case float():
                return f"a number from {self.low:g} to {self.high:g}"
            case _ if self.choices:
                return f"one of {', '.join(self.choices)}"
            case _:
                return "a model's name (small letters, digits and underscores)"

    def check(self, value: Any) -> Value:
        """`value` as this parameter's type; ParameterError when it is of another type or range."""
        kind = type(self.default)
        fits = isinstance(value, (int, float) if kind is float else kind)
        if fits and kind is str:
            fits = value in self.choices if self.choices else bool(MODEL_NAME.fullmatch(value))
        elif fits:  # a bool is an int to Python; NaN is in no range
            fits = isinstance(value, bool) == (kind is bool) and self.low <= value <= self.high
        if not fits:
            raise ParameterError(f"{value!r} is not {self.accepts}", f"Give it {self.accepts}")
        return kind(value)


def _parameter(
    name: str,
    default: Value,
    meaning: str,
    *read_in: str,
    low: float = -math.inf,
    high: float = math.inf,
    choices: tuple[str, ...] = (),
) -> Any:
    spec = ParameterSpec(name, default, meaning, read_in, low, high, choices)
    return field(default=default, metadata={"spec": spec})


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of one request; `ParameterSpecs.production` are those without any experiment.

    Shared by all requests with the same arms: `weights` (by name) must not be changed.
    """

    retrieval_model: str = _parameter(
        "retrieval.model", "ssl_two_tower", "the served retrieval model that finds candidates",
        RETRIEVE,
    )  # fmt: skip
    retrieval_num_candidates: int = _parameter(
        "retrieval.num_candidates", 200, "candidates asked of retrieval",
        RETRIEVE, low=10, high=5_000,
    )  # fmt: skip
    ranking_model: str = _parameter(
        "ranking.model", "masknet", "the served ranking model that scores candidates", RANK
    )
    ranking_enabled: bool = _parameter(
        "ranking.enabled",
        True,
        "false serves retrieval's order on purpose, which is not a degradation",
        TO_RANK,
    )
    rerank_diversity: float = _parameter(
        "rerank.diversity",
        0.0,
        "penalty on the mean similarity to the items above; 0 is none",
        RERANK,
        low=0,
        high=1,
    )

    rerank_exploration: str = _parameter(
        "rerank.exploration",
        NO_EXPLORATION,
        "whether and how places are drawn at random, each with its probability in the record",
        EXPLORE,
        choices=(NO_EXPLORATION, EPSILON, PLACKETT_LUCE),
    )
    rerank_epsilon: float = _parameter(
        "rerank.epsilon",
        0.05,
        "exploration by epsilon: the probability that a place is drawn uniformly",
        EPSILON,
        low=0,
        high=1,
    )
    rerank_temperature: float = _parameter(
        "rerank.temperature",
        0.2,
        "exploration by plackett_luce: the place of rank r is drawn with weight r ** (-1 / it)",
        PLACKETT_LUCE,
        low=0.02,
        high=10,
    )
    rerank_exploration_depth: int = _parameter(
        "rerank.exploration_depth", 50, "how many of the best exploration draws from",
        EPSILON, PLACKETT_LUCE, low=1, high=500,
    )  # fmt: skip

    weights: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def exploration_strength(self) -> float:
        """Of the kind of exploration that these ask for. KeyError where they ask for none."""
        spec = IN_EVERY_DOMAIN[STRENGTH_OF[self.rerank_exploration]]
        strength: float = getattr(self, spec.attribute)
        return strength

    def as_text(self) -> dict[str, str]:
        """Dotted name -> value as text, for decision records and explanations."""
        found = {s.name: value_text(getattr(self, s.attribute)) for s in IN_EVERY_DOMAIN.values()}
        return found | {OF_WEIGHTS + name: value_text(w) for name, w in self.weights.items()}


IN_EVERY_DOMAIN: Mapping[str, ParameterSpec] = {
    f.metadata["spec"].name: f.metadata["spec"] for f in fields(Parameters) if f.metadata
}


def attributes_read_in(*steps: str) -> tuple[str, ...]:
    """The fields of `Parameters`, but `weights`, that a request reads at one of these steps."""
    specs = IN_EVERY_DOMAIN.values()
    return tuple(s.attribute for s in specs if not {*steps}.isdisjoint(s.read_in))


@lru_cache
def weights_read(names: tuple[str, ...]) -> tuple[str, ...]:
    """The steps at which the weights of these names are read: called like the parameters."""
    return tuple(OF_WEIGHTS + name for name in names)


@dataclass(frozen=True)
class ParameterSpecs:
    """The parameters that there are in a domain with these weights."""

    weights: tuple[Weight, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, ParameterSpec]:
        """By dotted names, the weights last."""
        return {**IN_EVERY_DOMAIN, **{spec.name: spec for spec in map(_of_weight, self.weights)}}

    @cached_property
    def production(self) -> Parameters:
        """What a request has that no experiment is about."""
        return Parameters(weights={weight.name: weight.default for weight in self.weights})

    def spec_of(self, name: str) -> ParameterSpec:
        """The spec of a dotted name; ParameterError when there is no such parameter."""
        if name not in self.by_name:
            fix = self._nearest(name)
            if name.startswith(OF_WEIGHTS):
                fix += ", or declare it in schema.yaml if it is a weight (value.weights)"
            raise ParameterError(f"there is no parameter {name!r}", fix)
        return self.by_name[name]

    def _nearest(self, name: str) -> str:
        """What to write instead. What stands before a dot is alike for many: what stands after it
        is compared, and the whole only where that leaves several."""
        last = {known: known.rpartition(".")[2] for known in self.by_name}
        close = difflib.get_close_matches(name.rpartition(".")[2], last.values(), 1)
        if not close:
            return f"Use one of {', '.join(last)}"
        alike = [known for known in last if last[known] == close[0]]
        return f"Write `{difflib.get_close_matches(name, alike, 1, cutoff=0)[0]}`"

    def value_of(self, name: str, text: str) -> Value:
        """The value of a parameter from its text, as `value_text` writes it or a person does.

        Raises ParameterError for an unknown name or a value that the parameter cannot take.
        """
        spec = self.spec_of(name)
        value: object = text
        try:
            match spec.default:
                case bool():
                    value = {"true": True, "false": False}.get(text, text)
                case int():
                    value = int(text)
                case float():
                    value = float(text)
        except ValueError:
            pass  # the text itself is refused, in the words of the spec
        return spec.check(value)

    def with_overrides(self, base: Parameters, overrides: Mapping[str, Value]) -> Parameters:
        """A copy with the named parameters changed.

        Raises ParameterError for an unknown name or a value that the parameter cannot take.
        """
        return self.changed(base, {n: self.spec_of(n).check(v) for n, v in overrides.items()})

    def changed(self, base: Parameters, values: Mapping[str, Value]) -> Parameters:
        """The same for values that were checked."""
        attributes, weights = self.split(values)
        if weights:
            attributes["weights"] = {**base.weights, **weights}
        return replace(base, **attributes)

    def split(self, values: Mapping[str, Value]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values by dotted name as fields of `Parameters` but `weights`, and as weights by name."""
        specs = [(self.by_name[name], value) for name, value in values.items()]
        attributes = {spec.attribute: value for spec, value in specs if not spec.weight}
        return attributes, {spec.weight: value for spec, value in specs if spec.weight}


def _of_weight(weight: Weight) -> ParameterSpec:
    return ParameterSpec(
        OF_WEIGHTS + weight.name,
        weight.default,
        f"the weight {weight.name} of the value formula in schema.yaml",
        weights_read((weight.name,)),
        weight.low,
        weight.high,
        weight=weight.name,
    )


def value_text(value: Value) -> str:
    """A value as records hold it: true/false, and numbers so that reading them back is exact."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def values_text(parameters: Mapping[str, Value]) -> dict[str, str]:
    """Dotted name -> value as text."""
    return {name: value_text(value) for name, value in parameters.items()}
