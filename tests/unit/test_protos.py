"""The generated protobuf modules are those of the .proto files."""

from importlib import resources
from pathlib import Path

import pytest
from grpc_tools import protoc

REPOSITORY = Path(__file__).parents[2]
PROTOS = sorted(p.relative_to(REPOSITORY) for p in REPOSITORY.glob("protos/tandem/v1/*.proto"))


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make protos` would write."""
    folder = tmp_path_factory.mktemp("protos")
    include = resources.files("grpc_tools") / "_proto"
    outputs = [f"--{kind}_out={folder}" for kind in ("python", "pyi", "grpc_python")]
    paths = [f"-I{REPOSITORY}", f"-I{include}"]
    assert protoc.main(["protoc", *paths, *outputs, *(str(REPOSITORY / p) for p in PROTOS)]) == 0
    return folder


@pytest.mark.parametrize("proto", PROTOS, ids=lambda p: p.stem)
def test_generated_modules_are_up_to_date(generated: Path, proto: Path) -> None:
    for suffix in ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py"):
        path = proto.with_name(proto.stem + suffix)
        fresh = (generated / path).read_text()
        assert (REPOSITORY / path).read_text() == fresh, f"{path} is old: run `make protos`"
