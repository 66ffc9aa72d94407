"""Text of others cannot command a terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from services.common.terminal import plain, printable

BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@given(st.text())
def test_no_control_character_is_left_and_no_other_changed(text: str) -> None:
    said = printable(text)
    for character in said:
        assert unicodedata.category(character) not in ("Cc", "Zl", "Zp")
        assert unicodedata.bidirectional(character) not in BIDI
    if text.isprintable():
        assert said == text


def test_controls_can_be_read_and_scripts_that_need_joiners_are_left_alone() -> None:
    assert printable("a\x1b[31mb\u202ec\n\x9bd") == r"a\x1b[31mb\u202ec\n\x9bd"
    joined = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert printable(joined) == joined


def test_markup_and_controls_are_shown_as_they_are() -> None:
    console = Console(width=80)
    with console.capture() as captured:
        console.print(plain("[bold red]x[/] \x1b[2J"))
    assert captured.get() == "[bold red]x[/] \\x1b[2J\n"
