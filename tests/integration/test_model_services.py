"""CandidateGeneration and Ranking as a gRPC client sees them."""

from __future__ import annotations

from contextlib import asynccontextmanager

import grpc
import numpy as np
import pytest

from protos.tandem.v1 import candidate_generation_pb2 as cg
from protos.tandem.v1 import ranking_pb2 as rk
from protos.tandem.v1.candidate_generation_pb2_grpc import CandidateGenerationStub
from protos.tandem.v1.features_pb2 import UserContext
from protos.tandem.v1.ranking_pb2_grpc import RankingStub
from services.candidate_generation import deployment as candidate_generation
from services.ranking import deployment as ranking
from tests.artifacts import small_items

ITEMS = small_items()
UNKNOWN = np.uint64(12345)


@asynccontextmanager
async def stub_of(deployment, stub_class, settings):
    replica = await deployment.start_replica(settings)
    async with grpc.aio.insecure_channel(replica.replica.address) as channel:
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
        assert ((scores > 0) & (scores < 1)).all()
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
