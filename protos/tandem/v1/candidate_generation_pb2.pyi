from protos.tandem.v1 import features_pb2 as _features_pb2
from protos.tandem.v1 import records_pb2 as _records_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RetrieveRequest(_message.Message):
    __slots__ = ("user", "num_candidates", "model", "exclude_item_keys")
    USER_FIELD_NUMBER: _ClassVar[int]
    NUM_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_ITEM_KEYS_FIELD_NUMBER: _ClassVar[int]
    user: _features_pb2.UserContext
    num_candidates: int
    model: str
    exclude_item_keys: bytes
    def __init__(self, user: _Optional[_Union[_features_pb2.UserContext, _Mapping]] = ..., num_candidates: _Optional[int] = ..., model: _Optional[str] = ..., exclude_item_keys: _Optional[bytes] = ...) -> None: ...

class RetrieveResponse(_message.Message):
    __slots__ = ("item_keys", "scores", "interest_index", "sources", "source_index", "model_version", "catalogue", "item_rows", "degradations")
    ITEM_KEYS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    INTEREST_INDEX_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    ITEM_ROWS_FIELD_NUMBER: _ClassVar[int]
    DEGRADATIONS_FIELD_NUMBER: _ClassVar[int]
    item_keys: bytes
    scores: bytes
    interest_index: bytes
    sources: _containers.RepeatedScalarFieldContainer[str]
    source_index: bytes
    model_version: str
    catalogue: int
    item_rows: bytes
    degradations: _containers.RepeatedScalarFieldContainer[_records_pb2.Degradation]
    def __init__(self, item_keys: _Optional[bytes] = ..., scores: _Optional[bytes] = ..., interest_index: _Optional[bytes] = ..., sources: _Optional[_Iterable[str]] = ..., source_index: _Optional[bytes] = ..., model_version: _Optional[str] = ..., catalogue: _Optional[int] = ..., item_rows: _Optional[bytes] = ..., degradations: _Optional[_Iterable[_Union[_records_pb2.Degradation, str]]] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("user", "item_keys", "model")
    USER_FIELD_NUMBER: _ClassVar[int]
    ITEM_KEYS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    user: _features_pb2.UserContext
    item_keys: bytes
    model: str
    def __init__(self, user: _Optional[_Union[_features_pb2.UserContext, _Mapping]] = ..., item_keys: _Optional[bytes] = ..., model: _Optional[str] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("scores", "interest_index", "model_version")
    SCORES_FIELD_NUMBER: _ClassVar[int]
    INTEREST_INDEX_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    scores: bytes
    interest_index: bytes
    model_version: str
    def __init__(self, scores: _Optional[bytes] = ..., interest_index: _Optional[bytes] = ..., model_version: _Optional[str] = ...) -> None: ...
