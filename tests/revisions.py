"""Two revisions of the films' schema: the shipped one, and one that declares a `share`, too."""

from __future__ import annotations

from models.data.worlds.films import schema as films
from models.schema.compiled import compiled
from models.schema.declaration import Declaration
from models.schema.lock import Lock
from models.schema.read import parse

SHARE = 4
FILMS = films.FILE.read_text()
WITH_SHARES = (
    FILMS.replace("  like: {id: 3,", f"  share: {{id: {SHARE}}}\n  like: {{id: 3,")
    .replace("    click: {}\n", "    click: {}\n    share: {}\n")
    .replace("[90d, none], models: none}", "[90d, none], models: none}\n    share: {}")
)


def _declared(text: str) -> Declaration:
    return parse(text.encode(), "schema.yaml")


OLD, NEW = _declared(FILMS), _declared(WITH_SHARES)
KNOWN = Lock().with_(OLD)
BOTH = KNOWN.with_(NEW)
# As they follow each other in a rolling change.
BEFORE = compiled(OLD, KNOWN)
READS_BOTH = compiled(NEW, BOTH, write=1)
AFTER = compiled(NEW, BOTH)
