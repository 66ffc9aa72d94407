"""Conditions on a request: the `where` of experiments, and segments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import ConfigDict, Field, create_model

from models.schema.declaration import MAX_ID_BYTES
from models.yaml_reader.places import suggestion
from models.yaml_reader.values import ByName, Many, Text
from services.experiments.declare.config import Segment
from services.experiments.declare.reader.section import NamedSection, Section
from services.experiments.declare.reader.values import Number
from services.experiments.declare.targeting import (
    MEMBERSHIP,
    NUMBER_OPERATORS,
    SURFACE_OPERATORS,
    Condition,
)

MAX_SEGMENTS = 16
IDS: Any = {"propertyNames": {"minLength": 1, "maxLength": MAX_ID_BYTES}}


class Tests(Section):
    """The operators on one subject; see `_tests`."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})
    unknown = "this operator is not known"

    def check(self) -> None:
        for operator in MEMBERSHIP:
            if self.lists(operator) and not getattr(self, operator):
                self.wrong(operator, "the list is empty", "List at least one value")
        if self.clean and not self.entries:
            operators = ", ".join(type(self).model_fields)
            self.wrong("", "there is no operator", f"Write one of {operators}")

    def conditions(self, name: str, *, of_user: bool = False) -> Iterator[Condition]:
        for operator in self.entries:
            value = getattr(self, operator)
            values = value if operator in MEMBERSHIP else (value,)
            yield Condition(name, operator, values, of_user)


def _tests(operators: Iterable[str], operand: Any) -> Any:
    """Operators with one operand for comparisons and a list for membership."""
    lists: Any = Annotated[Many[operand], Field(json_schema_extra={"minItems": 1})]
    fields: Any = {o: (lists if o in MEMBERSHIP else operand, None) for o in operators}
    return create_model("Tests", __base__=Tests, **fields)


if TYPE_CHECKING:  # which does not know of classes that are made while the program runs
    SurfaceTests: TypeAlias = Tests
    NumberTests: TypeAlias = Tests
else:
    SurfaceTests = _tests(SURFACE_OPERATORS, Text)
    NumberTests = _tests(NUMBER_OPERATORS, Number)


class WhereBlock(Section):
    surface: SurfaceTests | None = None
    """What must hold of the surface; several operators must all hold."""
    context: ByName[NumberTests] = Field({}, json_schema_extra=IDS)
    """By name of a context value: what must hold of it; several operators must all hold. A request
    without the value fulfils nothing."""
    user: ByName[NumberTests] = Field({})
    """By name of an event that is counted in the user's profile (EVENT.value: of the sum of its
    values): what must hold of it. A user without a profile fulfils nothing."""

    def check(self) -> None:
        for name, tests in self.context.items():
            if not 1 <= len(name.encode()) <= MAX_ID_BYTES:
                self.files.add(
                    tests.place.of_key,
                    "the name is empty or too long",
                    f"Use the name of a context value, 1 to {MAX_ID_BYTES} bytes",
                )
        known = self.files.domain.events.tested
        for name, tests in self.user.items():
            if name not in known:
                self.files.add(
                    tests.place.of_key,
                    "schema.yaml keeps no such number of users for ever (user.counts, and user.sums"
                    " for EVENT.value)",
                    suggestion(name, known) if known else "Declare it there",
                )
        if self.clean and not self.conditions:
            self.wrong(
                "",
                "there is no condition",
                "Name a surface, a context value or a number of the user's with an operator, or "
                "delete this key",
            )

    @property
    def conditions(self) -> tuple[Condition, ...]:
        found = [*self.surface.conditions("")] if self.surface else []
        for name, tests in self.context.items():
            found += tests.conditions(name)
        for name, tests in self.user.items():
            found += tests.conditions(name, of_user=True)
        return tuple(found)


class SegmentBlock(NamedSection):
    required = ("name", "where")
    where: WhereBlock | None = None
    """What a request must fulfil to be in the segment."""

    def declare(self) -> None:
        name = self.own_name()
        conditions = self.where.conditions if self.where else ()
        segments = self.files.segments
        segments.append(Segment(name, conditions, self.place.line, self.place.file))
        if len(segments) == MAX_SEGMENTS + 1:
            self.wrong(
                "",
                f"there are more than {MAX_SEGMENTS} segments",
                "Delete those that decide nothing: every one of them is looked at separately",
            )
