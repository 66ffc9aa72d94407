"""How soon a change of an item has its effect, what many changes cost, and a large catalogue.

`make bench-catalogue`. First a whole installation under 30 requests/s: from a change's
acknowledgement to the first answer that shows its effect, asked for again and again one call after
the other, so that an answer's own time is in it. Then the upserts that one sender gets through, and
requests with and without 200 upserts/s beside them, in turns. Then a generation of --items: how
long a process takes to start from it, and what it needs.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import grpc
import numpy as np
import psutil
import typer

from load_tests.serving import traffic
from load_tests.serving.generator import LoadProcess, Target
from load_tests.serving.temporary_installation import TemporaryInstallation, temporary_installation
from models.catalogue import item_key
from models.data.worlds.films.schema import SCHEMA
from models.figures import console, median, print_machine, print_table, save
from protos.tandem.v1 import catalogue_pb2 as pb
from protos.tandem.v1.candidate_generation_pb2 import RetrieveRequest, ScoreRequest
from protos.tandem.v1.candidate_generation_pb2_grpc import CandidateGenerationStub
from protos.tandem.v1.catalogue_pb2_grpc import CatalogueStub
from protos.tandem.v1.recommender_pb2 import RecommendRequest
from protos.tandem.v1.recommender_pb2_grpc import RecommenderStub
from protos.tandem.v1.records_pb2 import FieldValue, ItemRecord, Texts
from services import installation
from services.catalogue import generations
from services.catalogue.feeding import in_parts
from services.catalogue.fold import CatalogueFold
from services.catalogue.stored_records import StoredRecords
from services.event_log.interface import LogRecord

RATE, BESIDE = 30.0, 200.0  # requests and upserts per second
PATIENCE_S = 30.0
MIB = 2**20
GENRES = SCHEMA.declaration.item_field["genres"].vocabulary
# What a process does that starts: reads the newest generation, all fields or those of a router.
START = """
import json, sys, time, psutil
from pathlib import Path
from models.data.worlds.films.schema import SCHEMA
from services.catalogue import generations
from services.catalogue.feeding import in_parts
from services.catalogue.fold import CatalogueFold
from services.catalogue.follower import fields_looked_at
before, began = psutil.Process().memory_info().rss, time.perf_counter()
fold = CatalogueFold(SCHEMA, None if sys.argv[2] == "all" else fields_looked_at(SCHEMA))
assert generations.load(Path(sys.argv[1]), fold, "")
print(json.dumps([time.perf_counter() - began, psutil.Process().memory_info().rss - before]))
"""


class Clients:
    """Connections to an installation's parts."""

    def __init__(self, installed: TemporaryInstallation) -> None:
        found = installation.endpoints(installed.settings)
        self.router = RecommenderStub(grpc.insecure_channel(found["router"][0]))
        self.catalogue = CatalogueStub(grpc.insecure_channel(found["catalogue"][0]))
        generation = found["candidate_generation"][0]
        self.generation = CandidateGenerationStub(grpc.insecure_channel(generation))

    def shown(self, user: str) -> list[str]:
        """The list of a user."""
        request = RecommendRequest(user_id=user, surface="home", num_items=traffic.NUM_ITEMS)
        return [item.item_id for item in self.router.Recommend(request, timeout=5).items]

    def score(self, item_id: str) -> float:
        """What the retrieval model says of an item to a user of whom nothing is known; NaN for one
        that it could not find."""
        keys = np.array([item_key(item_id)], "<u8").tobytes()
        answer = self.generation.Score(ScoreRequest(item_keys=keys), timeout=5)
        return float(np.frombuffer(answer.scores, "<f4")[0])


def genres(*names: str) -> dict[str, FieldValue]:
    """The field genres."""
    return {"genres": FieldValue(texts=Texts(values=names))}


def until(holds: Callable[[], bool]) -> float:
    """Seconds until it holds, asked again and again."""
    began = time.perf_counter()
    while not holds():
        if time.perf_counter() - began > PATIENCE_S:
            raise RuntimeError(f"no effect within {PATIENCE_S:g} s")
    return time.perf_counter() - began


def effects(clients: Clients, trials: int) -> dict[str, list[float]]:
    """Seconds from acknowledgement to effect, by kind of change."""
    found: dict[str, list[float]] = {
        "removed: in no list": [], "brought back: in its list": [], "new: can be found": [],
        "changed: scored by": [],
    }  # fmt: skip
    assert GENRES is not None
    for trial in range(trials):
        user = str(1 + trial)
        item = clients.shown(user)[0]
        (known,) = clients.catalogue.GetItems(pb.GetItemsRequest(item_ids=[item])).items
        known.item.updated_ms = 0
        clients.catalogue.RemoveItems(pb.RemoveItemsRequest(item_ids=[item]))
        gone = until(lambda u=user, i=item: i not in clients.shown(u))  # type: ignore[misc]
        found["removed: in no list"].append(gone)
        clients.catalogue.UpsertItems(pb.ItemsRequest(items=[known.item]))
        back = until(lambda u=user, i=item: i in clients.shown(u))  # type: ignore[misc]
        found["brought back: in its list"].append(back)
        new = f"new {time.time_ns()}"
        first, second = GENRES.values[trial % 9], GENRES.values[9 + trial % 9]
        clients.catalogue.UpsertItems(
            pb.ItemsRequest(items=[pb.Item(item_id=new, fields=genres(first))])
        )
        found["new: can be found"].append(until(lambda n=new: clients.score(n) > -2))  # type: ignore[misc]
        before = clients.score(new)
        clients.catalogue.PatchItems(
            pb.ItemsRequest(items=[pb.Item(item_id=new, fields=genres(second))])
        )
        changed = until(lambda n=new, b=before: clients.score(n) != b)  # type: ignore[misc]
        found["changed: scored by"].append(changed)
    return found


def upserts(batch: int) -> Iterator[pb.ItemsRequest]:
    """Ever the same 5,000 items, changed each time."""
    assert GENRES is not None
    for n in itertools.count():
        ids = [f"fed {(n * batch + i) % 5_000}" for i in range(batch)]
        fields = genres(GENRES.values[n % 19])
        yield pb.ItemsRequest(items=[pb.Item(item_id=i, fields=fields) for i in ids])


def sustained(clients: Clients, seconds: float, batch: int) -> float:
    """Upserts per second of one sender, one call after the other."""
    began, sent = time.perf_counter(), 0
    for request in upserts(batch):
        clients.catalogue.UpsertItems(request)
        sent += batch
        if time.perf_counter() - began > seconds:
            break
    return sent / (time.perf_counter() - began)


@contextmanager
def loaded(load: LoadProcess, target: Target) -> Iterator[None]:
    """RATE requests/s as long as the block runs."""
    ends = threading.Event()

    def run() -> None:
        for turn in itertools.count():
            load.open_loop(target, RATE, seconds=2.0, seed=turn)
            if ends.is_set():
                return

    thread = threading.Thread(target=run)
    thread.start()
    yield
    ends.set()
    thread.join()


def beside(
    clients: Clients, load: LoadProcess, target: Target, rounds: int, seconds: float
) -> tuple[list[float], list[float]]:
    """p99 in ms of requests at RATE, without and with BESIDE upserts/s, in turns."""
    found: tuple[list[float], list[float]] = [], []
    for turn in range(2 * rounds):
        ends = threading.Event()
        fed = turn % 2 == (turn // 2) % 2

        def feed(ends: threading.Event = ends) -> None:
            for request in upserts(int(BESIDE / 10)):
                clients.catalogue.UpsertItems(request)
                if ends.wait(0.1):
                    return

        feeding = threading.Thread(target=feed)
        if fed:
            feeding.start()
        result = load.open_loop(target, RATE, seconds=seconds, seed=turn)
        ends.set()
        if fed:
            feeding.join()
        found[fed].append(result.percentile_ms(99))
    return found


def record(row: int) -> bytes:
    """A film of the large generation."""
    assert GENRES is not None
    made = ItemRecord(catalogue=1, builder=1, row=row, item_id=f"item {row}", updated_ms=1)
    made.fields["year"].value.number = 1950 + row % 70
    made.fields["genres"].value.texts.values.append(GENRES.values[row % 19])
    made.fields["title"].value.text = f"The item number {row}"
    return made.SerializeToString()


def large(folder: Path, items: int) -> dict[str, tuple[float, float]]:
    """Seconds and MiB of a generation of so many items: written, and started from."""
    fold = CatalogueFold(SCHEMA, records=StoredRecords())
    began = time.perf_counter()
    for rows in in_parts(range(1, items + 1), 10_000):
        fold.fold([LogRecord(0, row, 1, b"", record(row)) for row in rows])
    found = {"folded from the topic, by the builder": (time.perf_counter() - began, memory())}
    began = time.perf_counter()
    made = generations.write(folder, generations.State.of(fold, ""))
    found["written"] = time.perf_counter() - began, memory()
    found["on disk"] = 0.0, sum(file.stat().st_size for file in made.iterdir()) / MIB
    for which in ("all", "router's"):
        command = [sys.executable, "-c", START, str(folder), which]
        ran = subprocess.run(command, check=True, capture_output=True, text=True)
        took, more = json.loads(ran.stdout.splitlines()[-1])
        found[f"a start, {which} fields"] = took, more / MIB
    return found


def memory() -> float:
    """MiB of this process."""
    return psutil.Process().memory_info().rss / MIB


def main(
    trials: Annotated[int, typer.Option(help="of each kind of change")] = 100,
    seconds: Annotated[float, typer.Option(help="of each turn beside upserts")] = 20.0,
    rounds: int = 3,
    items: Annotated[int, typer.Option(help="of the large generation")] = 1_000_000,
) -> None:
    print_machine()
    with temporary_installation() as installed, LoadProcess() as load:
        clients = Clients(installed)
        target = Target(installed.router, traffic.recommend, timeout_s=5.0, judge=traffic.judge)
        load.closed_loop(target, 4, seconds=3.0)  # warms models and caches
        clients.generation.Retrieve(RetrieveRequest(num_candidates=10), timeout=5)
        with loaded(load, target):
            times = effects(clients, trials)
        single, batched = sustained(clients, 5.0, 1), sustained(clients, 10.0, 500)
        without, with_ = beside(clients, load, target, rounds, seconds)
    print_table(
        f"seconds from acknowledgement to effect, {trials} of each, beside {RATE:g} requests/s",
        ["change", "p50", "p99", "longest"],
        [
            [kind, *(f"{np.quantile(of, q):.3f}" for q in (0.5, 0.99, 1.0))]
            for kind, of in times.items()
        ],
    )
    console.print(f"upserts/s of one sender: {single:,.0f} one by one, {batched:,.0f} by 500")
    ratio = median(with_) / median(without)
    print_table(
        f"p99 of Recommend at {RATE:g}/s, {rounds} turns of {seconds:g} s each",
        ["beside", "ms", "ratio"],
        [
            ["nothing", f"{median(without):.1f}", ""],
            [f"{BESIDE:g} upserts/s", f"{median(with_):.1f}", f"{ratio:.2f}"],
        ],
    )
    with tempfile.TemporaryDirectory() as folder:
        big = large(Path(folder), items)
    print_table(
        f"a generation of {items:,} items, {big['on disk'][1]:.0f} MiB on disk",
        ["what", "seconds", "MiB"],
        [
            [what, f"{took:.1f}", f"{mib:.0f}"]
            for what, (took, mib) in big.items()
            if what != "on disk"
        ],
    )
    save(
        "bench_catalogue",
        {
            "effect_s": times,
            "upserts_per_s": {"1": single, "500": batched},
            "p99_ms": {"without": without, "with": with_},
            "large": big,
        },
    )


if __name__ == "__main__":
    typer.run(main)
