"""Memory of every process of an installation: after its start, and after much traffic.

`make bench-memory`. RSS counts shared pages in every process, USS those that are a process's own:
a leak shows as USS that keeps growing from the second row of figures to the third.
"""

from __future__ import annotations

from typing import Annotated

import psutil
import typer

from load_tests.serving import traffic
from load_tests.serving.generator import LoadProcess, Target
from load_tests.serving.temporary_installation import TemporaryInstallation, temporary_installation
from models.figures import console, print_machine, print_table, save
from services.common.processes.supervisor import marked
from services.installation import ROLES

MIB = 2**20


def memory(installed: TemporaryInstallation) -> dict[str, tuple[float, float]]:
    """RSS and USS in MiB by process; those that Ray started go by their titles."""
    roles = {installed.processes.pid(role): role for role in ROLES}
    found = {}
    for process in marked(installed.processes.run_id):
        try:
            title = roles.get(process.pid) or title_of(process.cmdline())
            used = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied, IndexError):
            continue  # ended in between
        found[f"{title} ({process.pid})"] = used.rss / MIB, used.uss / MIB
    return found


def title_of(command: list[str]) -> str:
    """A short name for a process: its script where an interpreter runs one, else its program."""
    scripts = [word for word in command if word.endswith(".py")]
    return (scripts or command)[0].rpartition("/")[2]


def main(
    requests: Annotated[int, typer.Option(help="in the long run; a tenth of it first")] = 100_000,
    in_flight: int = 8,
) -> None:
    print_machine()
    samples = {}
    with temporary_installation() as installed, LoadProcess() as load:
        target = Target(installed.router, traffic.mixed, timeout_s=15.0, judge=traffic.judge)
        samples["start"] = memory(installed)
        done = 0
        for goal in (requests // 10, requests):
            result = load.closed_loop(target, in_flight, seconds=3600.0, max_requests=goal - done)
            done = goal
            samples[f"{goal:,}"] = memory(installed)
            console.print(f"{goal:,} requests, {result.per_second:.0f}/s: {dict(result.outcomes)}")
        restarts = installed.processes.restarts
    _, middle, last = samples.values()
    names = sorted(last, key=lambda name: -last[name][1])
    print_table(
        f"RSS / USS in MiB after the start and after requests; {restarts} processes restarted",
        ["process", *samples, "USS growth of the last nine tenths"],
        [
            [
                name,
                *(
                    f"{s[name][0]:.0f} / {s[name][1]:.0f}" if name in s else "-"
                    for s in samples.values()
                ),
                f"{last[name][1] - middle[name][1]:+.1f}" if name in middle else "-",
            ]
            for name in names
        ],
    )
    save("bench_memory", {"requests": requests, "rss_uss_mib": samples})


if __name__ == "__main__":
    typer.run(main)
