"""CandidateGeneration and Ranking as a gRPC client sees them."""

from __future__ import annotations

from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest
from structlog.testing import capture_logs

from models import artifact, registry
from models.data.worlds.films.schema import FILE, SCHEMA
from models.schema import compiled
from models.serving import load_retrieval
from protos.tandem.v1 import candidate_generation_pb2 as cg
from protos.tandem.v1 import ranking_pb2 as rk
from protos.tandem.v1.candidate_generation_pb2_grpc import CandidateGenerationStub
from protos.tandem.v1.features_pb2 import UserContext
from protos.tandem.v1.ranking_pb2_grpc import RankingStub
from services.candidate_generation import deployment as candidate_generation
from services.ranking import deployment as ranking
from tests.artifacts import built, publish, publish_small, small_items

ITEMS = small_items()
UNKNOWN = np.uint64(12345)


@asynccontextmanager
async def stub_of(deployment, stub_class, settings):
    replica = await deployment.start_replica(settings)
    async with grpc.aio.insecure_channel(replica.address) as channel:
        yield stub_class(channel)
    await replica.drain()


async def status_of(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code(), error.value.details()


async def test_score_agrees_with_retrieve_on_every_item(small_settings):
    async with stub_of(candidate_generation, CandidateGenerationStub, small_settings) as stub:
        excluded = ITEMS.keys[[1, 2]]
        found = await stub.Retrieve(
            cg.RetrieveRequest(
                user=UserContext(user_id="u"),
                num_candidates=100,
                exclude_item_keys=excluded.tobytes(),
            ),
            timeout=10,
        )
        keys = np.frombuffer(found.item_keys, "<u8")
        assert len(set(keys.tolist())) == len(ITEMS) - 2
        assert not set(keys.tolist()) & set(excluded.tolist())
        asked = np.append(keys, UNKNOWN)
        scored = await stub.Score(
            cg.ScoreRequest(user=UserContext(user_id="u"), item_keys=asked.tobytes()), timeout=10
        )
        scores = np.frombuffer(scored.scores, "<f4")
        np.testing.assert_allclose(scores[:-1], np.frombuffer(found.scores, "<f4"), rtol=1e-5)
        assert np.isnan(scores[-1])
        assert scored.interest_index[:-1] == found.interest_index
        assert scored.model_version == found.model_version
        assert list(found.sources) == ["ssl_two_tower"]


async def test_candidate_generation_names_what_is_wrong(small_settings):
    user = UserContext(user_id="u")
    async with stub_of(candidate_generation, CandidateGenerationStub, small_settings) as stub:
        for request, code, start in (
            (
                cg.RetrieveRequest(user=user, num_candidates=0),
                grpc.StatusCode.INVALID_ARGUMENT,
                "num_candidates: 0 is not in 1..5000",
            ),
            (
                cg.RetrieveRequest(user=user, num_candidates=5, exclude_item_keys=b"123"),
                grpc.StatusCode.INVALID_ARGUMENT,
                "exclude_item_keys: 3 bytes",
            ),
            (
                cg.RetrieveRequest(user=user, num_candidates=5, model="none"),
                grpc.StatusCode.NOT_FOUND,
                "model: 'none' is not served here; served: ssl_two_tower",
            ),
        ):
            got, details = await status_of(stub.Retrieve(request, timeout=10))
            assert got is code
            assert details.startswith(start)
        got, details = await status_of(stub.Score(cg.ScoreRequest(user=user), timeout=10))
        assert got is grpc.StatusCode.INVALID_ARGUMENT
        assert details.startswith("item_keys: ")


async def test_rank_scores_every_item_in_request_order_and_counts_the_unknown(small_settings):
    async with stub_of(ranking, RankingStub, small_settings) as stub:
        keys = np.append(ITEMS.keys[[5, 3, 9]], UNKNOWN)

        async def rank(asked: np.ndarray) -> rk.RankResponse:
            return await stub.Rank(
                rk.RankRequest(user=UserContext(user_id="u"), item_keys=asked.tobytes()),
                timeout=10,
            )

        answer = await rank(keys)
        scores = np.frombuffer(answer.task_scores, "<f4").reshape(4, 2)
        assert list(answer.tasks) == ["click", "like"]
        assert answer.unknown_items == 1
        assert ((scores[:3] > 0) & (scores[:3] < 1)).all()
        assert not scores[3].any()
        turned = np.frombuffer((await rank(keys[::-1])).task_scores, "<f4").reshape(4, 2)
        np.testing.assert_allclose(turned[::-1], scores, rtol=1e-4)


async def test_ranking_names_what_is_wrong(small_settings):
    user = UserContext(user_id="u")
    async with stub_of(ranking, RankingStub, small_settings) as stub:
        for request, code, start in (
            (rk.RankRequest(user=user), grpc.StatusCode.INVALID_ARGUMENT, "item_keys: give 1.."),
            (
                rk.RankRequest(user=user, item_keys=bytes(8 * 5001)),
                grpc.StatusCode.INVALID_ARGUMENT,
                "item_keys: 5001 keys; at most 5000",
            ),
            (
                rk.RankRequest(user=user, item_keys=bytes(8), model="none"),
                grpc.StatusCode.NOT_FOUND,
                "model: 'none'",
            ),
        ):
            got, details = await status_of(stub.Rank(request, timeout=10))
            assert got is code
            assert details.startswith(start)


def one_number(value):
    def change(model):
        next(iter(model.parameters())).view(-1)[-1] = value

    return change


def all_weights(factor):
    def change(model):
        for weight in model.parameters():
            weight.mul_(factor)

    return change


def no_user_vectors(model):
    model.query_mlp[2].weight.zero_()
    model.query_mlp[2].bias.zero_()


def infinite_user_vectors(model):
    model.query_mlp[0].weight.mul_(1e30)
    model.query_mlp[2].weight.mul_(1e30)


@pytest.mark.parametrize(
    ("deployment", "model", "change", "reason"),
    [
        (ranking, "masknet", one_number(np.nan), "holds NaN or infinity"),
        (ranking, "mc_mlcc", one_number(np.inf), "holds NaN or infinity"),
        (ranking, "masknet", all_weights(1e10), "scores NaN or infinity"),  # each of them is finite
        (candidate_generation, "ssl_two_tower", one_number(np.nan), "holds NaN or infinity"),
        (candidate_generation, "ssl_two_tower", all_weights(0), "all items have one vector"),
        (candidate_generation, "ssl_two_tower", no_user_vectors, "scores all items alike"),
        (candidate_generation, "ssl_two_tower", infinite_user_vectors, "scores NaN or infinity"),
    ],
)
async def test_a_version_that_cannot_tell_items_apart_is_never_served(
    small_settings, tmp_path, deployment, model, change, reason
):
    settings = small_settings.model_copy(update={"artifacts_dir": tmp_path / "artifacts"})
    publish_small(settings.artifacts_dir)
    good = {folder.name for folder in settings.artifacts_dir.glob("*/versions/*")}
    publish_small(settings.artifacts_dir, [model], change=change, seed=1)
    user = UserContext(user_id="u")
    with capture_logs() as logs:
        if deployment is ranking:
            async with stub_of(ranking, RankingStub, settings) as stub:
                answer = await stub.Rank(
                    rk.RankRequest(user=user, item_keys=ITEMS.keys[1:].tobytes(), model=model),
                    timeout=10,
                )
        else:
            async with stub_of(candidate_generation, CandidateGenerationStub, settings) as stub:
                answer = await stub.Retrieve(
                    cg.RetrieveRequest(user=user, num_candidates=9), timeout=10
                )
    assert answer.model_version in good
    (refused,) = [line for line in logs if line["event"] == "model_refused"]
    assert reason in refused["error"]
    assert refused["model"] == model


async def test_a_version_that_lacks_a_task_of_a_value_formula_is_never_served(
    small_settings, tmp_path
):
    schema = tmp_path / "schema.yaml"
    text = FILE.read_text("utf-8").replace("\ntasks:\n", "\ntasks:\n  again: {event: click}\n")
    schema.write_text(text.replace("detail: {}", 'detail: {value: "click * again"}'), "utf-8")
    settings = small_settings.model_copy(
        update={"artifacts_dir": tmp_path / "artifacts", "schema_file": schema}
    )
    again = compiled.load(schema)
    model = built("masknet", ITEMS, schema=again, units=32)
    publish(settings.artifacts_dir, "masknet", model, ITEMS, again)
    good = artifact.current(settings.artifacts_dir, "masknet").name
    publish_small(settings.artifacts_dir, ["masknet"], seed=1)
    request = rk.RankRequest(user=UserContext(user_id="u"), item_keys=ITEMS.keys[1:].tobytes())
    with capture_logs() as logs:
        async with stub_of(ranking, RankingStub, settings) as stub:
            answer = await stub.Rank(request, timeout=10)
    assert answer.model_version == good
    assert list(answer.tasks) == ["again", "click", "like"]
    (refused,) = [
        line for line in logs if line["event"] == "model_refused" and line["model"] == "masknet"
    ]
    assert "it does not predict the task again, by which lists are ordered" in refused["error"]


@pytest.mark.parametrize("name", registry.names("retrieval"))
def test_every_retrieval_model_tells_items_apart_from_its_first_weights_on(tmp_path, name):
    publish_small(tmp_path, [name])
    candidate_generation.warm(SCHEMA, load_retrieval(artifact.current(tmp_path, name)), [])


async def test_a_replica_serves_the_models_that_it_can(small_settings, tmp_path):
    settings = small_settings.model_copy(update={"artifacts_dir": tmp_path / "artifacts"})
    publish_small(settings.artifacts_dir, ["mc_mlcc"])
    request = rk.RankRequest(user=UserContext(user_id="u"), item_keys=ITEMS.keys[1:].tobytes())
    async with stub_of(ranking, RankingStub, settings) as stub:
        code, details = await status_of(stub.Rank(request, timeout=10))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "masknet has no version that can be served" in details
        request.model = "mc_mlcc"
        assert (await stub.Rank(request, timeout=10)).task_scores
