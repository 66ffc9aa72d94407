"""The mappings of an experiments file: they share what the files declare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.yaml_reader import section
from models.yaml_reader.places import Place, join
from models.yaml_reader.values import Name
from services.experiments.declare.reader.files import Files


class Section(section.Section):
    if TYPE_CHECKING:
        files: Files


class NamedSection(section.NamedSection):
    if TYPE_CHECKING:
        files: Files


class SaltedSection(Section):
    salt: Name = ""
    """What units are hashed with; default: the name. Another one deals them afresh."""

    def own_salt(self, name: str) -> str:
        """Its salt, or `name` if it says none; reported when another section has it."""
        salt = self.salt if self.has("salt") else name
        first = self.files.salts.setdefault(salt, self.place)
        if salt and first is not self.place:
            place = self.at("salt" if self.has("salt") else "name")
            self.files.add(
                Place(place.node, join(self.place.path, "salt"), place.file),
                f"{first} has the same salt {salt!r} (a name is its own salt), which would tie "
                "their units together",
                "Write a `salt` that nothing else has",
            )
        return salt
