from protos.tandem.v1 import features_pb2 as _features_pb2
from protos.tandem.v1 import records_pb2 as _records_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RankRequest(_message.Message):
    __slots__ = ("user", "item_keys", "model")
    USER_FIELD_NUMBER: _ClassVar[int]
    ITEM_KEYS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    user: _features_pb2.UserContext
    item_keys: bytes
    model: str
    def __init__(self, user: _Optional[_Union[_features_pb2.UserContext, _Mapping]] = ..., item_keys: _Optional[bytes] = ..., model: _Optional[str] = ...) -> None: ...

class RankResponse(_message.Message):
    __slots__ = ("tasks", "task_scores", "unknown_items", "degradations", "model_version")
    TASKS_FIELD_NUMBER: _ClassVar[int]
    TASK_SCORES_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_ITEMS_FIELD_NUMBER: _ClassVar[int]
    DEGRADATIONS_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    tasks: _containers.RepeatedScalarFieldContainer[str]
    task_scores: bytes
    unknown_items: int
    degradations: _containers.RepeatedScalarFieldContainer[_records_pb2.Degradation]
    model_version: str
    def __init__(self, tasks: _Optional[_Iterable[str]] = ..., task_scores: _Optional[bytes] = ..., unknown_items: _Optional[int] = ..., degradations: _Optional[_Iterable[_Union[_records_pb2.Degradation, str]]] = ..., model_version: _Optional[str] = ...) -> None: ...
