"""`tandem experiments what-if`: other parameters on the requests that were logged."""

from __future__ import annotations

import math
from typing import Annotated

import typer

from services.common.terminal import load_settings
from services.experiments.cli.inputs import (
    AsJson,
    FileOption,
    Name,
    at_ms,
    experiment_named,
    fail,
    load,
    open_log,
    say_json,
    wide_console,
)


def what_if(
    name: Name = "",
    arm: Annotated[str, typer.Option(help="The arm that everybody would get.")] = "",
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="A parameter, NAME=VALUE; repeat for several."),
    ] = None,
    last: Annotated[str, typer.Option(help="Requests of the last 90m, 24h, 7d.")] = "24h",
    metric: Annotated[
        str, typer.Option(help="A metric of the file; default: the experiment's primary one.")
    ] = "",
    estimator: Annotated[str, typer.Option(help="auto, rips or item_position.")] = "auto",
    clip: Annotated[float, typer.Option(help="Cut weights here; the bias is bounded.")] = math.inf,
    as_json: AsJson = False,
    at: Annotated[
        str, typer.Option(help="The end of the time, like 2026-12-01T09:00:00Z; default: now.")
    ] = "",
    file: FileOption = None,
) -> None:
    """Estimate from explored requests in the log what other parameters of rerank would have earned.

    The logged rankings are ranked again under an arm, or under parameters given by --set. Without
    exploration (rerank.exploration) there is nothing to learn from and the question is refused.
    """
    # Imported when asked for: its code takes longer than that of the other commands.
    from services.catalogue.follower import catalogue_now
    from services.common.schema import schema_of
    from services.common.value_model import ValueModel
    from services.experiments.what_if import answer as evaluation
    from services.experiments.what_if import question
    from services.experiments.what_if.off_policy.errors import OffPolicyRefused
    from services.experiments.what_if.off_policy.weights import Requirements
    from services.experiments.what_if.terminal import show

    config = load(file)
    experiment = experiment_named(config, name)[1] if name else None
    until_ms = at_ms(at)
    settings = load_settings()
    try:
        chosen = evaluation.choice_of(estimator)
        asked = question.question(config.specs, experiment, arm, sets or ())
        of = question.metric_of(config, experiment, metric)
        evaluation.check_metric(of, chosen)
        from_ms = until_ms - question.duration_ms(last)
        value_model = ValueModel(schema_of(settings).declaration)
        with open_log(settings) as event_log:
            items = catalogue_now(settings, event_log).items
            if not len(items):
                raise question.CannotAsk("the catalogue holds no item (`tandem items sync FILE`)")
            log = question.read(event_log, asked, items, value_model, from_ms, until_ms)
        answer = evaluation.what_if(log, of, chosen, Requirements(clip=clip))
    except question.CannotAsk as error:
        fail(f"{error}.")
    except OffPolicyRefused as refused:
        fail(f"Refused: {refused}")
    if as_json:
        say_json({"question": asked.title, **answer.to_json()})
    else:
        show(answer, asked.title, wide_console())
