from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EventType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVENT_TYPE_UNSPECIFIED: _ClassVar[EventType]
    IMPRESSION: _ClassVar[EventType]
    CLICK: _ClassVar[EventType]
    LIKE: _ClassVar[EventType]

class Degradation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEGRADATION_UNSPECIFIED: _ClassVar[Degradation]
    POPULAR_FALLBACK: _ClassVar[Degradation]
    UNRANKED: _ClassVar[Degradation]
    DEFAULT_FEATURES: _ClassVar[Degradation]
    FEWER_ITEMS: _ClassVar[Degradation]
    DEFAULT_COUNTERS: _ClassVar[Degradation]
EVENT_TYPE_UNSPECIFIED: EventType
IMPRESSION: EventType
CLICK: EventType
LIKE: EventType
DEGRADATION_UNSPECIFIED: Degradation
POPULAR_FALLBACK: Degradation
UNRANKED: Degradation
DEFAULT_FEATURES: Degradation
FEWER_ITEMS: Degradation
DEFAULT_COUNTERS: Degradation

class FeedbackEvent(_message.Message):
    __slots__ = ("event_id", "request_id", "user_id", "item_id", "event_type", "event_time_ms")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    request_id: str
    user_id: str
    item_id: str
    event_type: EventType
    event_time_ms: int
    def __init__(self, event_id: _Optional[str] = ..., request_id: _Optional[str] = ..., user_id: _Optional[str] = ..., item_id: _Optional[str] = ..., event_type: _Optional[_Union[EventType, str]] = ..., event_time_ms: _Optional[int] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("layer", "experiment", "arm", "overridden", "unit")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    OVERRIDDEN_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    layer: str
    experiment: str
    arm: str
    overridden: bool
    unit: str
    def __init__(self, layer: _Optional[str] = ..., experiment: _Optional[str] = ..., arm: _Optional[str] = ..., overridden: _Optional[bool] = ..., unit: _Optional[str] = ...) -> None: ...

class DecisionRecord(_message.Message):
    __slots__ = ("request_id", "user_id", "session_id", "surface", "event_time_ms", "assignments", "parameters", "item_ids", "scores", "propensities", "sources", "source_index", "interest_index", "tasks", "task_scores", "degradations", "profile_age_s", "history_age_s", "candidate_generation_version", "ranking_version", "stage_ms", "held_out", "exploration")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SURFACE_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENTS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    PROPENSITIES_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_INDEX_FIELD_NUMBER: _ClassVar[int]
    INTEREST_INDEX_FIELD_NUMBER: _ClassVar[int]
    TASKS_FIELD_NUMBER: _ClassVar[int]
    TASK_SCORES_FIELD_NUMBER: _ClassVar[int]
    DEGRADATIONS_FIELD_NUMBER: _ClassVar[int]
    PROFILE_AGE_S_FIELD_NUMBER: _ClassVar[int]
    HISTORY_AGE_S_FIELD_NUMBER: _ClassVar[int]
    CANDIDATE_GENERATION_VERSION_FIELD_NUMBER: _ClassVar[int]
    RANKING_VERSION_FIELD_NUMBER: _ClassVar[int]
    STAGE_MS_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    EXPLORATION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    user_id: str
    session_id: str
    surface: str
    event_time_ms: int
    assignments: _containers.RepeatedCompositeFieldContainer[Assignment]
    parameters: _containers.ScalarMap[str, str]
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    scores: bytes
    propensities: bytes
    sources: _containers.RepeatedScalarFieldContainer[str]
    source_index: bytes
    interest_index: bytes
    tasks: _containers.RepeatedScalarFieldContainer[str]
    task_scores: bytes
    degradations: _containers.RepeatedScalarFieldContainer[Degradation]
    profile_age_s: float
    history_age_s: float
    candidate_generation_version: str
    ranking_version: str
    stage_ms: StageTimes
    held_out: bool
    exploration: Exploration
    def __init__(self, request_id: _Optional[str] = ..., user_id: _Optional[str] = ..., session_id: _Optional[str] = ..., surface: _Optional[str] = ..., event_time_ms: _Optional[int] = ..., assignments: _Optional[_Iterable[_Union[Assignment, _Mapping]]] = ..., parameters: _Optional[_Mapping[str, str]] = ..., item_ids: _Optional[_Iterable[str]] = ..., scores: _Optional[bytes] = ..., propensities: _Optional[bytes] = ..., sources: _Optional[_Iterable[str]] = ..., source_index: _Optional[bytes] = ..., interest_index: _Optional[bytes] = ..., tasks: _Optional[_Iterable[str]] = ..., task_scores: _Optional[bytes] = ..., degradations: _Optional[_Iterable[_Union[Degradation, str]]] = ..., profile_age_s: _Optional[float] = ..., history_age_s: _Optional[float] = ..., candidate_generation_version: _Optional[str] = ..., ranking_version: _Optional[str] = ..., stage_ms: _Optional[_Union[StageTimes, _Mapping]] = ..., held_out: _Optional[bool] = ..., exploration: _Optional[_Union[Exploration, _Mapping]] = ...) -> None: ...

class Exploration(_message.Message):
    __slots__ = ("kind", "strength", "depth", "ranked", "places")
    KIND_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    RANKED_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    strength: float
    depth: int
    ranked: int
    places: bytes
    def __init__(self, kind: _Optional[str] = ..., strength: _Optional[float] = ..., depth: _Optional[int] = ..., ranked: _Optional[int] = ..., places: _Optional[bytes] = ...) -> None: ...

class StageTimes(_message.Message):
    __slots__ = ("assign", "hydrate", "retrieve", "filter", "rank", "rerank", "respond")
    ASSIGN_FIELD_NUMBER: _ClassVar[int]
    HYDRATE_FIELD_NUMBER: _ClassVar[int]
    RETRIEVE_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    RERANK_FIELD_NUMBER: _ClassVar[int]
    RESPOND_FIELD_NUMBER: _ClassVar[int]
    assign: float
    hydrate: float
    retrieve: float
    filter: float
    rank: float
    rerank: float
    respond: float
    def __init__(self, assign: _Optional[float] = ..., hydrate: _Optional[float] = ..., retrieve: _Optional[float] = ..., filter: _Optional[float] = ..., rank: _Optional[float] = ..., rerank: _Optional[float] = ..., respond: _Optional[float] = ...) -> None: ...
