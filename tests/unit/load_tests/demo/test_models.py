"""Which arms the demo's options make, and that visitors are dealt to them as the checks want."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from load_tests.demo.checks import ARM_TOLERANCE, SOUND_UNITS
from load_tests.demo.models import (
    EXPERIMENTS,
    Arms,
    ModelsInvalid,
    chosen,
    experiment_file,
    with_own_experiments,
)
from load_tests.demo.visitors import visitors
from models import registry
from models.data.backfill import future_interactions
from models.data.worlds.films import dataset as films
from services import installation
from services.common.settings import Settings
from services.experiments.assign.assignment import Assigner
from services.experiments.declare import config_reader
from services.experiments.declare.served import arm_models, served, unserved
from tests.domains import FILMS

SETTINGS = Settings()
SHIPPED = Path(__file__).parents[4] / "experiments.yaml"
BOTH = ("ssl_two_tower", "ssl_two_tower")


@pytest.mark.parametrize(
    ("retrieval", "ranking", "arms"),
    [
        ((), (), None),
        ((), ("mc_mlcc",), Arms(BOTH, ("masknet", "mc_mlcc"))),
        ((), ("masknet",), Arms(BOTH, ("mc_mlcc", "masknet"))),
        ((), ("fm", "din"), Arms(BOTH, ("fm", "din"))),
        (("hcn_r",), (), Arms(("hcn_r", "hcn_r"), ("masknet", "mc_mlcc"))),
        (("hcn_r",), ("infnet",), Arms(("hcn_r", "hcn_r"), ("masknet", "infnet"))),
        (("hcn_r", "desmil_r"), (), Arms(("hcn_r", "desmil_r"), ("masknet", "masknet"))),
        (("hcn_r", "desmil_r"), ("din",), Arms(("hcn_r", "desmil_r"), ("din", "din"))),
    ],
)
def test_the_given_models_are_the_arms(
    retrieval: tuple[str, ...], ranking: tuple[str, ...], arms: Arms | None
) -> None:
    assert chosen(SETTINGS, retrieval, ranking) == arms


@pytest.mark.parametrize(
    ("retrieval", "ranking", "said"),
    [
        (("hcn",), (), r"--retrieval-model: model 'hcn' does not exist.*hcn_r"),
        ((), ("hcn_r",), r"--ranking-model: model 'hcn_r' is a retrieval model.*infnet"),
        ((), ("fm", "din", "mmoe"), "3 times"),
        ((), ("fm", "fm"), "--ranking-model fm is given twice"),
        (("hcn_r", "mind"), ("fm", "din"), "give two of one part"),
    ],
)
def test_models_that_make_no_experiment_are_refused_in_a_sentence(
    retrieval: tuple[str, ...], ranking: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ModelsInvalid, match=said):
        chosen(SETTINGS, retrieval, ranking)


def test_one_ranking_model_alone_is_no_experiment() -> None:
    ranking = SETTINGS.ranking.model_copy(update={"models": ("masknet",)})
    with pytest.raises(ModelsInvalid, match="both arms would rank with masknet"):
        chosen(SETTINGS.model_copy(update={"ranking": ranking}), ("hcn_r",), ())


@pytest.mark.parametrize(
    "arms",
    [
        Arms((a, b), ("masknet", "masknet"))
        for a, b in zip(registry.names("retrieval"), registry.names("retrieval")[1:], strict=False)
    ]
    + [
        Arms(BOTH, (a, b))
        for a, b in zip(registry.names("ranking"), registry.names("ranking")[1:], strict=False)
    ],
)
def test_every_model_can_be_an_arm_and_is_served(tmp_path: Path, arms: Arms) -> None:
    settings = with_own_experiments(SETTINGS, arms, tmp_path)
    config = installation.check_experiments(settings)
    assert [tuple(arm.models.values()) for arm in arm_models(config)[:2]] == list(
        zip(arms.retrieval, arms.ranking, strict=True)
    )
    assert unserved(config, served(settings)) == []
    names = {*settings.candidate_generation.models, *settings.ranking.models}
    assert names == {*arms.retrieval, *arms.ranking}


def test_the_visitors_of_a_whole_run_are_dealt_to_the_arms_as_weighted() -> None:
    futures = future_interactions(films.load(), 0)
    coming = [visitor.user_id for visitor in visitors(futures, SOUND_UNITS)]
    for text in (
        SHIPPED.read_text(),
        EXPERIMENTS.read_text(),
        experiment_file(Arms(BOTH, ("masknet", "din"))),
        experiment_file(Arms(("hcn_r", "mind"), ("fm", "fm"))),
    ):
        assigner = Assigner(config_reader.parse(text.encode(), "experiments.yaml", FILMS))
        arms = Counter(
            a.arm
            for user in coming
            for a in assigner.assign(user, now_ms=0).assignments
            if a.layer == "models"
        )
        assert arms.total() == SOUND_UNITS
        assert abs(arms["control"] / SOUND_UNITS - 0.5) <= ARM_TOLERANCE
