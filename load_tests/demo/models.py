"""Which models the demo's arms compare: those of its experiments file, or those of its options.

For models that are given, the demo writes the file anew with them in the arms of its first
experiment, and serves just them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import yaml

from load_tests.demo.folder import changed
from services.common.settings import Settings

EXPERIMENTS = Path(__file__).with_name("experiments.yaml")


class ModelsInvalid(Exception):
    """The given models make no experiment; the message says what does."""


class Arms(NamedTuple):
    """The models of control and treatment; one of the two parts differs."""

    retrieval: tuple[str, str]
    ranking: tuple[str, str]

    @property
    def differs(self) -> Literal["retrieval", "ranking"]:
        return "retrieval" if self.retrieval[0] != self.retrieval[1] else "ranking"


def chosen(settings: Settings, retrieval: Sequence[str], ranking: Sequence[str]) -> Arms | None:
    """The arms that the given models make; None where none are given: those of the file.

    Two models of a part are control and treatment. Without two of a part the arms differ by
    ranking: a single ranking model is the treatment, against the first other one of the settings.
    Raises ModelsInvalid, also for a name that is not known.
    """
    if not retrieval and not ranking:
        return None
    _check("retrieval", retrieval)
    _check("ranking", ranking)
    if len(retrieval) == len(ranking) == 2:
        raise ModelsInvalid(
            "two retrieval models and two ranking models: nobody could tell which of them made the "
            "difference; give two of one part"
        )
    first = retrieval[0] if retrieval else settings.candidate_generation.models[0]
    if len(retrieval) == 2:
        ranker = ranking[0] if ranking else settings.ranking.models[0]
        return Arms((first, retrieval[1]), (ranker, ranker))
    if len(ranking) == 2:
        return Arms((first, first), (ranking[0], ranking[1]))
    known = settings.ranking.models
    treatment = ranking[0] if ranking else next((m for m in known[1:] if m != known[0]), known[0])
    control = next((m for m in known if m != treatment), treatment)
    if control == treatment:
        raise ModelsInvalid(
            f"both arms would rank with {control}: give two models with --ranking-model"
        )
    return Arms((first, first), (control, treatment))


def _check(part: Literal["retrieval", "ranking"], names: Sequence[str]) -> None:
    from models.registry import UnknownModel, kind_of

    option = f"--{part}-model"
    for name in names:
        try:
            kind_of(name, part)
        except UnknownModel as error:
            raise ModelsInvalid(f"{option}: {error}") from None
    if len(names) > 2:
        raise ModelsInvalid(f"{option} is given {len(names)} times: there are two arms")
    if len(set(names)) < len(names):
        raise ModelsInvalid(f"{option} {names[0]} is given twice: the arms would be the same")


def serving(settings: Settings, arms: Arms) -> Settings:
    """The settings with the arms' models in the services."""
    found, ranked = (tuple(dict.fromkeys(models)) for models in arms)
    settings = changed(settings, "candidate_generation", models=found)
    return changed(settings, "ranking", models=ranked)


def experiment_file(arms: Arms) -> str:
    """The demo's experiments file with these models in the arms of its first experiment."""
    document = yaml.safe_load(EXPERIMENTS.read_text())
    experiment = document["layers"][0]["experiments"][0]
    experiment["name"] = f"{arms.differs}_model"
    for arm, found, ranked in zip(experiment["arms"], arms.retrieval, arms.ranking, strict=True):
        arm["parameters"] = {"retrieval.model": found, "ranking.model": ranked}
    return yaml.safe_dump(document, sort_keys=False)


def with_own_experiments(settings: Settings, arms: Arms, folder: Path) -> Settings:
    """Write the arms into `folder`, and the settings that serve them."""
    file = folder.resolve() / "experiments.yaml"
    file.write_text(experiment_file(arms))
    return following(serving(settings, arms), file)


def following(settings: Settings, file: Path) -> Settings:
    """The settings with this experiments file."""
    return changed(settings, "router", experiments_file=file.resolve())
