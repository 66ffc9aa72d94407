"""What can be asked, and of which requests it is asked."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from protos.tandem.v1.records_pb2 import Assignment, DecisionRecord
from services.experiments.declare import config_reader
from services.experiments.declare.parameters import Parameters, Value
from services.experiments.what_if.off_policy.errors import NotInLog
from services.experiments.what_if.question import check_overrides, concerned
from tests.domains import FILMS


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"ranking.model": "mc_mlcc"}, "ranking.model = mc_mlcc cannot .* interleaving"),
        ({"retrieval.num_candidates": 400}, "scores that it would have made were not logged"),
        ({"ranking.enabled": False}, "cannot be evaluated"),
    ],
)
def test_what_other_models_would_do_is_refused(overrides: dict[str, Value], sentence: str) -> None:
    with pytest.raises(NotInLog, match=sentence):
        check_overrides(FILMS.parameters, overrides)
    check_overrides(
        FILMS.parameters, {"ranking.model": Parameters().ranking_model, "rerank.diversity": 1.0}
    )


EXPERIMENT = """\
version: 1
layers:
  - name: value
    parameters: [rerank.diversity]
    experiments:
      - name: mix
        where: {surface: {in: [home]}%s}
        arms:
          - {name: control, weight: 50}
          - {name: mixed, weight: 50, parameters: {rerank.diversity: 0.5}}
"""


def test_an_experiment_is_about_the_requests_that_fulfil_its_conditions() -> None:
    def about(conditions: str) -> Callable[[DecisionRecord], bool]:
        config = config_reader.parse((EXPERIMENT % conditions).encode(), "e", FILMS)
        ((_, experiment),) = config.experiments()
        return concerned(experiment)

    home, detail = DecisionRecord(surface="home"), DecisionRecord(surface="detail")
    carried = DecisionRecord(surface="home", assignments=[Assignment(experiment="mix")])
    by_surface = about("")
    assert [by_surface(r) for r in (home, detail, carried)] == [True, False, True]
    assert not by_surface(DecisionRecord(surface="home", held_out=True))
    by_context = about(", context: {hour: {at_least: 18}}")
    assert [by_context(r) for r in (home, carried)] == [False, True]
