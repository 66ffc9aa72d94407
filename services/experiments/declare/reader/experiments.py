"""One experiment: its arms, when it runs, for whom, on which buckets and with what traffic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, get_args

from pydantic import Field

from models.yaml_reader.places import Wrong, suggestion
from models.yaml_reader.section import RuledOut
from models.yaml_reader.values import (
    NAME_SCHEMA,
    ByName,
    Instant,
    Many,
    Name,
    Reads,
    Schema,
    Seconds,
    Switch,
    choice,
    text_of,
    whole,
)
from services.experiments.declare.config import (
    BUCKETS,
    INTERLEAVED,
    SESSION,
    USER,
    Arm,
    Experiment,
    Gate,
    Interleave,
    Ramp,
)
from services.experiments.declare.metrics import (
    DEFAULT_OBSERVE_S,
    DEFAULT_PLANNED_UNITS,
    DEFAULT_WINDOW_S,
    Plan,
)
from services.experiments.declare.parameters import MODEL_NAME, ParameterError, ParameterSpec
from services.experiments.declare.reader.conditions import IDS, WhereBlock
from services.experiments.declare.reader.metrics import GoalBlock, GuardrailBlock
from services.experiments.declare.reader.section import (
    NamedSection,
    SaltedSection,
    Section,
)
from services.experiments.declare.reader.values import Buckets, ListedUnit, Override, Percent

UNITS = (USER, SESSION)  # without those that a file declares
MAX_STEPS = 20
MAX_UNITS = 10**9

_NO_METRIC = (
    "an interleaving experiment has one result, which of its arms' rankings users prefer, "
    "and says nothing of metrics per arm",
    "Delete this key, or `interleave` to compare arms by metrics",
)
RULED_OUT: RuledOut = {
    ("ramp", "traffic"): ("the ramp says what the traffic is", "Delete this key, or the ramp"),
    ("interleave", "primary"): _NO_METRIC,
    ("interleave", "secondary"): _NO_METRIC,
    ("interleave", "guardrails"): _NO_METRIC,
    ("interleave", "allow_list"): (
        "no unit has one arm of an interleaving experiment: all see both",
        "Delete this key, or `interleave`",
    ),
}
# The same in the arms, by keys of the experiment.
RULED_OUT_IN_ARMS: RuledOut = {
    ("interleave", "weight"): (
        "every unit sees both arms of an interleaving experiment, so that there is nothing to "
        "divide",
        "Delete this key, or `interleave`",
    ),
    ("interleave", "traffic"): (
        "every unit sees both arms of an interleaving experiment",
        "Give the experiment `traffic` instead",
    ),
    ("interleave", "stopped"): (
        "one arm alone cannot be interleaved",
        "Write `enabled: false` in the experiment to end it",
    ),
    ("ramp", "traffic"): (
        "the ramp gives all arms the same traffic, so that the split between them stays as it is",
        "Delete this key, or the ramp",
    ),
}


def parameter_schema(spec: ParameterSpec) -> Schema:
    """That of a parameter's value."""
    schema: Schema = {"description": f"{spec.meaning}; {spec.accepts}", "default": spec.default}
    match spec.default:
        case bool():
            return schema | {"type": "boolean"}
        case int() | float():
            schema["type"] = "integer" if isinstance(spec.default, int) else "number"
            limits = {"minimum": spec.low, "maximum": spec.high}
            return schema | {key: n for key, n in limits.items() if math.isfinite(n)}
        case _ if spec.choices:
            return schema | {"enum": list(spec.choices)}
        case _:
            return schema | {"type": "string", "pattern": f"^{MODEL_NAME.pattern}$"}


class ArmBlock(Section):
    required = ("name",)
    name: Name = ""
    """The arm's name, unlike those of the experiment's other arms."""
    weight: Percent = None
    """Percent of the experiment's units that belong to the arm, at most two decimals; the weights
    add up to 100. Every arm needs one, unless the experiment interleaves: then none has."""
    traffic: Percent = None
    """Percent of the arm's units that are in, at most two decimals; default: the experiment's."""
    parameters: ByName[Override] = Field({})
    """What the arm changes; each must be a parameter that the layer owns."""
    stopped: Switch = False
    """true takes the arm out: its units get control's parameters and are not counted. Not of
    control."""

    def check(self) -> None:
        specs, checked = self.files.domain.parameters, {}
        for name, (value, place) in self.parameters.items():
            try:
                checked[name] = specs.spec_of(text_of(place.of_key)).check(value), place
            except ParameterError as error:
                self.files.add(place, error.reason, error.fix)
            except Wrong as wrong:
                self.files.add(place, str(wrong), wrong.fix)
        self.parameters = checked


STEPS: Any = {
    "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
    "minItems": 1,
    "maxItems": MAX_STEPS,
}


class RampBlock(Section):
    required = ("steps",)
    steps: Many[Percent] = Field((), json_schema_extra=STEPS)
    """Percent of each arm's units that are in, one step after the other; ascending, at most two
    decimals."""
    hold_s: Seconds = 3600.0
    """A step lasts at least so many seconds."""
    min_units: Annotated[int, whole(0, MAX_UNITS)] = 100
    """And until so many units that were first exposed in it have a final outcome."""
    gate: Annotated[Gate, choice(get_args(Gate))] = "no_breach"
    """What must hold for the next step: no guardrail is breached, or all guardrails are shown to
    hold."""

    def check(self) -> None:
        if not self.lists("steps") or None in self.steps:
            return
        if not 1 <= len(self.steps) <= MAX_STEPS:
            self.wrong(
                "steps",
                f"a ramp has 1 to {MAX_STEPS} steps, and this one has {len(self.steps)}",
                "Write percentages like [1, 5, 10, 25, 50]",
            )
        last = 0
        for step, place in self.listed("steps"):
            if step <= last:
                reason = f"{step / 100:g} is not more than {last / 100:g}, the step before"
                self.files.add(
                    place,
                    reason if last else "nobody would be in at this step",
                    "Write percentages above 0 that rise from step to step",
                )
            last = step


class ExperimentBlock(NamedSection, SaltedSection):
    required = ("name", "arms")
    ruled_out = RULED_OUT
    arms: Many[ArmBlock] = Field((), json_schema_extra={"minItems": 1})
    """The arms; their order is part of the assignment."""
    unit: Annotated[str, Reads(text_of, NAME_SCHEMA)] = USER
    """What gets an arm: user, session, or one of `units`."""
    buckets: Buckets = (0, BUCKETS)
    """First bucket of the layer and the one after the last."""
    enabled: Switch = True
    """false takes everybody out."""
    start: Instant | None = None
    """Nobody is in before; default: no bound. An RFC 3339 timestamp with its zone:
    2026-12-01T09:00:00Z."""
    stop: Instant | None = None
    """From then on nobody is in; default: no bound. Written as `start`."""
    traffic: Percent = None
    """Percent of each arm's units that are in, at most two decimals; default: 100."""
    ramp: RampBlock | None = None
    """Traffic that grows by itself, instead of `traffic`."""
    interleave: Annotated[Interleave, choice(get_args(Interleave))] | None = None
    """Show the rankings of its two arms as one list, and ask from which one users choose."""
    where: WhereBlock | None = None
    """What a request must fulfil to be in; default: nothing."""
    allow_list: ByName[ListedUnit] = Field({}, json_schema_extra=IDS)
    """Unit id -> arm, whatever the hash; left out of all statistics. An id is quoted unless it is a
    whole number."""
    primary: GoalBlock | None = None
    """The one metric that decides."""
    secondary: Many[GoalBlock] = ()
    """Further metrics, judged together (Holm)."""
    guardrails: Many[GuardrailBlock] = ()
    """Metrics that must not get worse."""
    observe_s: Seconds = DEFAULT_OBSERVE_S
    """A unit's requests count for so many seconds from its first exposure on."""
    window_s: Seconds = DEFAULT_WINDOW_S
    """Of an interleaving experiment: choices count up to so many seconds after their request."""
    planned_units: Annotated[int, whole(1, MAX_UNITS)] | None = Field(
        None, json_schema_extra={"default": DEFAULT_PLANNED_UNITS}
    )
    """Units of all arms together that are planned for, where the intervals are narrowest."""

    def check(self) -> None:
        if self.start is not None and self.stop is not None and self.start >= self.stop:
            self.wrong(
                "stop",
                "it stops before it starts or in the same instant",
                "Give a later `stop` or an earlier `start`",
            )
        if self.has("window_s") and not self.has("interleave"):
            fix = "Delete this key and write `window_s` in the metrics"
            self.wrong("window_s", "metrics have windows of their own", fix)
        if self.interleave and not self.files.domain.events.choices:
            reason = (
                "schema.yaml has no event by which users choose, so no ranking can be preferred"
            )
            self.wrong("interleave", reason, "Add `history: true` to one there")
        names = [arm.name for arm in self.arms]
        for arm, place in self.allow_list.values():
            if arm not in names:
                fix = f"Use one of {', '.join(names) or 'the arms you list'}"
                self.files.add(place, f"there is no arm {arm!r}", fix)
        unguarded = not self.guardrails and self.lists("guardrails") == self.has("guardrails")
        if self.ramp and self.ramp.gate == "holds" and unguarded:
            self.ramp.wrong(
                "gate",
                "there is no guardrail that could be shown to hold",
                "Write `no_breach`, or list `guardrails`",
            )

    def experiment(self, layer: str, owned: Sequence[str]) -> Experiment:
        """The experiment, in the layer of that name with the parameters that it owns."""
        salt = self.own_salt(self.own_name())
        arms = self._arms(layer, owned)
        if self.unit not in (known := [*UNITS, *self.files.units]):
            fix = f"{suggestion(self.unit, known)}, or declare it in `units`"
            self.wrong("unit", f"{self.unit!r} is not a unit", fix)
            self.unit = USER
        return Experiment(
            name=self.name,
            salt=salt,
            unit=self.unit,
            buckets=self.buckets,
            arms=arms,
            allow_list={unit: arm for unit, (arm, _) in self.allow_list.items()},
            enabled=self.enabled,
            line=self.place.line,
            file=self.place.file,
            start_ms=-math.inf if self.start is None else self.start,
            stop_ms=math.inf if self.stop is None else self.stop,
            where=self.where.conditions if self.where else (),
            plan=self._plan(),
            ramp=Ramp(**dict(self.ramp)) if self.ramp else None,
            interleave=self.interleave,
            specs=self.files.domain.parameters,
            events=self.files.domain.events,
        )

    def _plan(self) -> Plan:
        goals: set[str] = set()
        guarded: set[str] = set()
        primary = self.primary.goal(goals) if self.primary else None
        secondary = [block.goal(goals) for block in self.secondary]
        guardrails = [block.guardrail(guarded, self.observe_s) for block in self.guardrails]
        return Plan(
            primary,
            tuple(goal for goal in secondary if goal),
            tuple(guardrail for guardrail in guardrails if guardrail),
            observe_s=self.observe_s,
            planned_units=self.planned_units,
            preference_window_s=self.window_s,
        )

    def _arms(self, layer: str, owned: Sequence[str]) -> tuple[Arm, ...]:
        before = len(self.files.problems)
        enrolled = BUCKETS if self.traffic is None else self.traffic
        if self.ramp and self.ramp.steps:
            enrolled = self.ramp.steps[0] or 0
        arms: list[Arm] = []
        first = 0
        for block in self.arms:
            for (key, other), (reason, fix) in RULED_OUT_IN_ARMS.items():
                if self.has(key) and block.has(other):
                    block.wrong(other, reason, fix)
            if not self.has("interleave"):
                block.need("weight")
            if block.name and block.name in (arm.name for arm in arms):
                self.files.add(
                    block.place.under("name"),
                    f"there is already an arm {block.name!r}",
                    "Give every arm of an experiment a name of its own",
                )
            overrides, lines = {}, {}
            for name, (value, place) in block.parameters.items():
                overrides[name], lines[name] = value, place.of_key.line
                if name not in owned:
                    self.files.add(
                        place.of_key,
                        f"layer {layer!r} does not own {name!r}",
                        "Add it to the layer's `parameters`, or move the experiment to its owner",
                    )
            end = first + (block.weight or 0)
            traffic = enrolled if block.traffic is None else block.traffic
            arms.append(Arm(block.name, first, end, traffic, overrides, lines, block.stopped))
            first = end
        clean = len(self.files.problems) == before and all(arm.clean for arm in self.arms)
        if clean and self.lists("arms"):
            self._check_together(arms)
        return tuple(arms)

    def _check_together(self, arms: Sequence[Arm]) -> None:
        """What arms without a problem of their own must be together."""
        names = [arm.name for arm in arms]
        control = names.index("control") if "control" in names else 0
        if not arms:
            self.wrong("arms", "there is no arm", "List at least one arm")
        elif self.has("interleave"):
            if len(arms) != 2:
                reason = f"two arms are interleaved, and here are {len(arms)}"
                self.wrong("arms", reason, "List two arms, or delete `interleave`")
            if INTERLEAVED in names:
                reason = f"{INTERLEAVED!r} is what stands for both arms in records"
                self.wrong("arms", reason, "Give the arm another name")
        elif (end := arms[-1].end) != BUCKETS:
            reason = f"the weights add up to {end / 100:g} and not to 100"
            self.wrong("arms", reason, "Change the weights so that they add up to 100")
        elif arms[control].stopped:
            self.files.add(
                self.arms[control].place.under("stopped"),
                "units of stopped arms get control's parameters, so that control goes on",
                "Stop another arm, or write `enabled: false` in the experiment to end it",
            )
