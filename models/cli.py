"""`tandem train`: train the models from a terminal. Mounted by `services/cli.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(no_args_is_help=True, help="Train models and publish them as artifacts.")

BUNDLED = "ml-latest-small"
SCHEMA = "schema.yaml"  # of an owner's folder
# What the settings serve by default; the first of each part is its default here, too.
DEMO_MODELS = {"retrieval": ("ssl_two_tower",), "ranking": ("masknet", "mc_mlcc")}

Model = Annotated[str, typer.Option(help="Model to train; `tandem train models` lists them.")]


def _nearest_data() -> str:
    in_checkout = Path.cwd().is_relative_to(Path(__file__).parents[1])
    return BUNDLED if in_checkout and not Path(SCHEMA).is_file() else "."


Data = Annotated[
    str,
    typer.Option(
        default_factory=_nearest_data,
        show_default=f"this folder; in a checkout of Tandem {BUNDLED}",
        help="ml-latest-small, a MovieLens folder, or a folder with a schema.yaml and imported "
        "tables: yours, or of a prepared data set, which its name stands for, too (models to "
        "serve). With --out or --protocol, of a data set without a schema.yaml, and of simulator: "
        "by the protocol of its benchmark, measured and saved only.",
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="A setting of the model or of the loop; world.KEY=VALUE: a knob of the simulator.",
    ),
]
Artifacts = Annotated[Path, typer.Option(help="Folder that models are published to.")]
Seed = Annotated[int, typer.Option(help="Same seed, same machine, same CPU weights.")]
Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
Threads = Annotated[int, typer.Option(help="CPU threads of torch, per worker.", min=1)]
Epochs = Annotated[int | None, typer.Option(help="At most this many epochs.", min=1)]
Checkpoint = Annotated[Path | None, typer.Option(help="Folder for checkpoints.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from --checkpoint.")]
Workers = Annotated[int, typer.Option(help="Data-parallel processes, by Ray Train.", min=1)]
Precision = Annotated[str | None, typer.Option(help="fp32, or bf16: autocast, weights fp32.")]
Compile = Annotated[
    bool | None,
    typer.Option("--compile/--no-compile", help="torch.compile; pays on long trainings."),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Prepared data: folder for the model (default run/trained/DATA/MODEL-SEED)."),
]
Protocol = Annotated[
    str | None,
    typer.Option(help="Prepared data: user-split (default), leave-one-out or last-fifth."),
]
ARTIFACTS = Path("run/artifacts")


@app.command()
def retrieval(
    data: Data,
    model: Model = DEMO_MODELS["retrieval"][0],
    set_: Settings = None,
    artifacts: Artifacts = ARTIFACTS,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
    epochs: Epochs = None,
    checkpoint: Checkpoint = None,
    resume: Resume = False,
    workers: Workers = 1,
    precision: Precision = None,
    compile_: Compile = None,
    protocol: Protocol = None,
    out: Out = None,
) -> None:
    """Train a retrieval model; prints recall@50 beside popularity, Markov, ItemKNN and EASE."""
    own = _settings(set_, epochs, precision, compile_)
    _train({"retrieval": (model,)}, data, artifacts, own, checkpoint, resume, protocol, out,
           seed=seed, device=device, threads=threads, workers=workers)  # fmt: skip


@app.command()
def ranking(
    data: Data,
    model: Model = DEMO_MODELS["ranking"][0],
    set_: Settings = None,
    artifacts: Artifacts = ARTIFACTS,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
    epochs: Epochs = None,
    checkpoint: Checkpoint = None,
    resume: Resume = False,
    workers: Workers = 1,
    precision: Precision = None,
    compile_: Compile = None,
    out: Out = None,
) -> None:
    """Train a ranking model; prints AUC beside logistic regression."""
    own = _settings(set_, epochs, precision, compile_)
    _train({"ranking": (model,)}, data, artifacts, own, checkpoint, resume, None, out,
           seed=seed, device=device, threads=threads, workers=workers)  # fmt: skip


@app.command(name="all")
def everything(
    data: Data,
    artifacts: Artifacts = ARTIFACTS,
    seed: Seed = 0,
    device: Device = "cpu",
    threads: Threads = 1,
) -> None:
    """Train every model that is served by default."""
    _train(DEMO_MODELS, data, artifacts, [], None, False,
           seed=seed, device=device, threads=threads)  # fmt: skip


@app.command()
def models() -> None:
    """List the models and their settings with defaults."""
    from models import registry
    from models.training import ranking, retrieval

    console = Console()
    for kind in registry.MODELS.values():
        own = retrieval.SETTINGS.get(kind.name, {}) if kind.part == "retrieval" else {}
        loop = (retrieval if kind.part == "retrieval" else ranking).loop_of(kind.name)
        values = {**registry.defaults(kind.config), **kind.settings, **own}
        for name, found in (("model", values), ("loop", vars(loop))):
            listed = ", ".join(f"{key}={_text(value)}" for key, value in found.items())
            title = f"{kind.name} ({kind.part})" if name == "model" else "  loop"
            console.print(f"[bold]{title}[/]: {listed}", highlight=False, soft_wrap=True)


def _text(value: Any) -> str:
    """A value as `--set` reads it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _settings(
    given: list[str] | None, epochs: int | None, precision: str | None, compile_: bool | None
) -> list[str]:
    """The options that are settings of the loop, as settings."""
    options = {"epochs": epochs, "precision": precision, "compile": compile_}
    return [*(given or []), *(f"{k}={_text(v)}" for k, v in options.items() if v is not None)]


def _train(
    chosen: dict[str, tuple[str, ...]],
    data: str,
    artifacts: Path,
    pairs: list[str],
    checkpoint: Path | None,
    resume: bool,
    protocol: str | None = None,
    out: Path | None = None,
    **means: Any,
) -> None:
    """Train the models of each part; exits 1 with one sentence if it cannot.

    Published as artifacts, or saved in `out` where `data` is a prepared data set. `pairs` need a
    single model.
    """
    # Imported here: torch takes seconds, which `tandem --help` need not spend.
    import torch

    from models import registry
    from models.artifact import ArtifactError
    from models.data.errors import DataError
    from models.training import ranking, retrieval
    from models.training.checkpoint import CheckpointError, CheckpointFolder
    from models.training.distributed import WorkersFailed
    from models.training.loop import LoopConfig, TrainingError
    from models.training.pipeline import train_all

    console = Console()
    modules: dict[str, Any] = {"retrieval": retrieval, "ranking": ranking}
    try:
        check_device(torch, means["device"])
        if resume and checkpoint is None:
            raise registry.SettingError("--resume needs --checkpoint FOLDER")
        folder = None if checkpoint is None else CheckpointFolder(checkpoint, resume)
        for part, names in chosen.items():
            for name in names:
                registry.kind_of(name, "retrieval" if part == "retrieval" else "ranking")
        by_benchmark = _declared(data) is None or protocol is not None or out is not None
        if (
            data != BUNDLED
            and by_benchmark
            and _train_prepared(
                chosen, data, pairs, protocol, out, console, checkpoint=folder, **means
            )
        ):
            return
        if protocol is not None or out is not None:
            option = "--protocol" if protocol is not None else "--out"
            raise registry.SettingError(
                f"{option}: belongs to prepared data sets, which --data {data} is not: leave it out"
            )
        arguments: dict[str, Any] = {"settings": {}}
        for part, names in chosen.items():
            arguments[f"{part}_models"] = names
            if len(names) > 1:
                continue  # each has its own settings and loop
            (name,) = names
            kind = registry.kind_of(name, "retrieval" if part == "retrieval" else "ranking")
            fixed = (*registry.OF_DATA, "seed")
            arguments["settings"][name], loop = registry.settings(
                pairs, (kind.config, LoopConfig), fixed
            )
            if loop:  # else as long as the data need
                base = vars(modules[part].loop_of(name))
                arguments[f"{part}_loop"] = registry.checked(LoopConfig, {**base, **loop})
        train_all(
            artifacts,
            console,
            dataset=_load(data),
            parts=tuple(chosen),
            baselines=retrieval.BASELINES,
            checkpoint=folder,
            **arguments,
            **means,
        )
    except (
        DataError,
        ArtifactError,
        CheckpointError,
        TrainingError,
        WorkersFailed,
        registry.UnknownModel,
        registry.SettingError,
    ) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        raise typer.Exit(1) from error


def _train_prepared(
    chosen: dict[str, tuple[str, ...]],
    data: str,
    pairs: list[str],
    protocol: str | None,
    out: Path | None,
    console: Console,
    *,
    seed: int,
    **means: Any,
) -> bool:
    """Train on a prepared data set and save the model; False if `data` names none."""
    from models.data.errors import DataError
    from models.training.pipeline import Means
    from models.training.prepared import source as sources
    from models.training.prepared.train import train_ranking, train_retrieval

    part, (name, *_) = next(iter(chosen.items()))
    source = sources.find(data, part)
    if source is None:
        return False
    if len(chosen) > 1:
        raise DataError(
            f"--data {data}: has no schema.yaml, by which models are served: use `tandem train "
            "retrieval` or `ranking`, which measure, or other data"
        )
    source, pairs = sources.with_world(source, part, pairs)
    with_console = Means(**means, console=console)
    if part == "ranking":
        train_ranking(source, name, pairs, seed, out, with_console)
    else:
        asked = protocol or next(iter(sources.PROTOCOLS))
        train_retrieval(source, name, pairs, seed, out, with_console, asked)
    return True


def check_device(torch: Any, device: str) -> None:
    """SettingError unless torch can run on `device`."""
    from models.registry import SettingError

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise SettingError(f"--device {device}: is not cpu, cuda or cuda:N") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise SettingError(f"--device {device}: torch sees no GPU here: use cpu")


def _declared(data: str) -> Path | None:
    """The folder with a schema.yaml that `data` is, or is the name of."""
    from models.data.cli import PREPARED

    folders = (Path(data), PREPARED / data)
    return next((each for each in folders if (each / SCHEMA).is_file()), None)


def _load(data: str) -> Any:
    """The data set of that name, or of the folder: one's own, or MovieLens."""
    from models.data.errors import DataError
    from models.data.worlds.films import dataset as films
    from models.data.worlds.films import movielens

    if data == BUNDLED:
        return films.load()
    if folder := _declared(data):
        from models.data.own import dataset as own

        return own.load(folder)
    if not Path(data).is_dir():
        from models.data.datasets import DATA_SETS

        raise DataError(
            f"--data {data}: is neither {BUNDLED} nor a folder nor one of {', '.join(DATA_SETS)}"
        )
    if not (Path(data) / movielens.RATINGS).is_file():
        raise DataError(
            f"--data {data}: the folder has neither a {SCHEMA} of yours, which `tandem init NAME`"
            f" writes to begin from (docs/own-data.md), nor MovieLens' {movielens.RATINGS}"
        )
    return films.load(Path(data))


if __name__ == "__main__":
    app()
