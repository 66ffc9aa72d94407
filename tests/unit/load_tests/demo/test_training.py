"""The demo's trainings beside each other: what is shown of them, and how one that fails ends."""

from __future__ import annotations

import io
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from rich.progress import Progress

from load_tests.demo.data import side_by_side
from load_tests.demo.training import TrainingFailed, Wanted, last_line, train
from models import artifact
from tests.artifacts import built, publish, small_items


def test_what_is_shown_is_the_line_that_a_terminal_would_show() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80)
    console.print("replayed")
    with Progress(console=console, auto_refresh=False) as progress:
        task = progress.add_task("masknet: epochs", total=4)
        for _ in range(3):
            progress.update(task, advance=1, refresh=True)
        shown = last_line(written.getvalue())
        assert shown is not None
        assert shown.plain.startswith("masknet: epochs")
        assert "75%" in shown.plain
        assert shown.plain.count("masknet") == 1
    console.print("published masknet")
    shown = last_line(written.getvalue())
    assert shown is not None
    assert shown.plain.strip() == "published masknet"
    assert last_line("") is None


def test_a_training_that_fails_is_told_and_the_others_end_with_it(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    wanted = [Wanted("ranking", "no_such_model"), Wanted("retrieval", "ssl_two_tower")]
    before = set(psutil.Process().children())  # the session's broker, for one
    with pytest.raises(TrainingFailed, match=r"no_such_model ended .* does not exist"):
        train(wanted, tmp_path, console)
    assert set(psutil.Process().children()) <= before


def test_the_models_stand_side_by_side_above_their_baselines(tmp_path: Path) -> None:
    for name, own in (("fm", 0.7), ("masknet", 0.8)):
        items = small_items(5)
        quality = {"a_baseline": {"click auc": 0.6}, name: {"click auc": own}}
        publish(tmp_path, name, built(name, items), items, metrics={"quality": quality})
    artifacts = [
        artifact.load_verified(artifact.current(tmp_path, name)) for name in ("masknet", "fm")
    ]
    assert list(side_by_side(artifacts, "quality").items()) == [
        ("masknet", {"click auc": 0.8}),
        ("fm", {"click auc": 0.7}),
        ("a_baseline", {"click auc": 0.6}),
    ]
