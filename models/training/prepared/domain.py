"""What prepared sequences are as a domain: choices of items, which may have attributes."""

from __future__ import annotations

from models.schema.compiled import compiled
from models.schema.declaration import (
    ANY,
    Declaration,
    Event,
    Field,
    History,
    Pool,
    Task,
    Vocabulary,
)
from models.schema.inputs import Reads, reads_of

CHOICE, ATTRIBUTES = 1, "attributes"
SLOTS = 8  # attributes that are kept of an item, the finest ones
HISTORY_LENGTH = 50
SCHEMA = compiled(
    Declaration(
        events=(Event(name="choice", id=CHOICE, history=True),),
        item_fields=(
            Field(
                name=ATTRIBUTES,
                type="bag",
                slots=SLOTS,
                vocabulary=Vocabulary(source="learned", size=2**31 - 2),
            ),
        ),
        derived=(Pool(name="chosen", events=(ANY,)),),
        history=History(HISTORY_LENGTH, HISTORY_LENGTH),
        tasks=(Task(name="choice", event="choice"),),
        formula="choice",
    )
)


def reads(num_items: int, num_attributes: int) -> Reads:
    """What retrieval models read of sequences."""
    sizes = {"item": 1 + num_items, f"item.{ATTRIBUTES}": 1 + num_attributes}
    return reads_of(SCHEMA.declaration, SCHEMA.layout, "retrieval", sizes)
