"""The benchmark's replica starts with what the benchmark publishes, and answers its traffic."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from load_tests.serving import bench_ranking
from protos.tandem.v1.ranking_pb2_grpc import RankingStub


async def test_the_replica_answers_the_benchmarks_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_ranking, "USERS", 2)
    bench_ranking.publish(tmp_path)
    async with (
        bench_ranking.replica(tmp_path, "float32", 1) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        request = bench_ranking.requests()[0]
        answer = await RankingStub(channel).Rank(request, timeout=30)
    assert list(answer.tasks) == ["click", "like"]
    assert len(answer.task_scores) == len(request.item_keys) // 8 * 2 * 4
    assert answer.model_version
