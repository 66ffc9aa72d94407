"""What the mappings of a file have in common: how keys are checked, and the JSON Schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationInfo,
    model_validator,
)
from yaml.nodes import SequenceNode

from models.yaml_reader.places import Place, Reading, suggestion
from models.yaml_reader.values import Name, Schema

# What a key rules out beside it: (key, other key) -> (reason, fix).
RuledOut: TypeAlias = Mapping[tuple[str, str], tuple[str, str]]


def _require(schema: Schema, section: type[Section]) -> None:
    schema["required"] = list(section.required)
    for key in section.required:
        schema["properties"][key].pop("default", None)  # it is harmless, not a value to write


class Section(BaseModel):
    """A mapping of the file, made of its Place with a Reading as pydantic's context.

    It is always made: what is wrong is reported and left out, and what is missing has a harmless
    default, so that reading goes on. So a key that must be there stands in `required`.
    """

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, json_schema_extra=_require
    )
    required: ClassVar[tuple[str, ...]] = ()
    unknown: ClassVar[str] = "this key is not known"
    ruled_out: ClassVar[RuledOut] = {}

    # Slots, which are quicker than private attributes, and no fields.
    __slots__ = ("clean", "entries", "files", "place")
    if TYPE_CHECKING:
        files: Reading
        place: Place
        entries: dict[str, Place]  # by the keys that the file has, in its order
        clean: bool  # whether nothing is wrong within, down to the innermost value

    @model_validator(mode="wrap")
    @classmethod
    def _read(
        cls, place: Place, build: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        assert isinstance(info.context, Reading)
        files = info.context
        before = len(files.problems)
        entries = files.entries(place)
        known = [*cls.required, *(key for key in cls.model_fields if key not in cls.required)]
        for key in [key for key in entries if key not in known]:
            files.add(entries.pop(key).of_key, cls.unknown, suggestion(key, known))
        for (key, other), (reason, fix) in cls.ruled_out.items():
            if key in entries and other in entries:
                files.add(entries.pop(other), reason, fix)
        section = build(entries)
        for name, value in (("files", files), ("place", place), ("entries", entries)):
            object.__setattr__(section, name, value)
        for key in cls.required:
            section.need(key)
        object.__setattr__(section, "clean", len(files.problems) == before)
        section.check()
        object.__setattr__(section, "clean", len(files.problems) == before)
        return section

    def check(self) -> None:
        """Report what is wrong between its values."""

    def wrong(self, key: str, reason: str, fix: str) -> None:
        """Report a key, which need not be there, or ("") the whole."""
        self.files.add(self.at(key), reason, fix)

    def need(self, key: str, reason: str = "this key is missing") -> None:
        """Report a key that is not there."""
        if self.place.is_mapping and not self.has(key):
            self.wrong(key, reason, f"Add `{key}:`")

    def has(self, key: str) -> bool:
        return key in self.entries

    def at(self, key: str) -> Place:
        """Where the value of a key stands; the whole, if it is not there or ""."""
        return self.entries.get(key) or (self.place.under(key) if key else self.place)

    def lists(self, key: str) -> bool:
        """Whether there is a list."""
        return self.has(key) and isinstance(self.at(key).node, SequenceNode)

    def listed(self, key: str) -> Iterator[tuple[Any, Place]]:
        """The values of a list with their places."""
        if self.lists(key):
            yield from zip(getattr(self, key), self.at(key).items(), strict=True)


class NamedSection(Section):
    """A section whose name is its own among all of its kind, in all files together."""

    required: ClassVar[tuple[str, ...]] = ("name",)
    name: Name = ""
    """Unlike the names of all others of its kind."""

    def own_name(self) -> str:
        """Its name if it is new; empty, and reported, if it is not."""
        first = self.files.names.setdefault((type(self), self.name), self.place)
        if not self.name or first is self.place:
            return self.name
        reason = f"{first} has the same name {self.name!r}"
        self.files.add(self.place.under("name"), reason, "Give it a name of its own")
        return ""


def inlined(schema: Any, sections: Schema) -> Any:
    """Pydantic's schema as editors show it best: every section where it stands, and no titles,
    empty defaults and nulls (which no key takes)."""
    if isinstance(schema, list):
        return [inlined(part, sections) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = dict(schema)
    if "anyOf" in found:
        found = found.pop("anyOf")[0] | found
    if "$ref" in found:
        found = sections[found.pop("$ref").rpartition("/")[2]] | found
    if isinstance(found.get("title"), str):
        del found["title"]
    if isinstance(about := found.get("description"), str):
        found["description"] = " ".join(about.split())
    if found.get("default", True) in (None, "", [], {}):
        del found["default"]
    return {key: inlined(part, sections) for key, part in found.items() if key != "$defs"}
