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
    NO_MODEL: _ClassVar[Degradation]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ANSWERED: _ClassVar[Outcome]
    FAILED: _ClassVar[Outcome]
    ABANDONED: _ClassVar[Outcome]
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
NO_MODEL: Degradation
ANSWERED: Outcome
FAILED: Outcome
ABANDONED: Outcome

class FeedbackEvent(_message.Message):
    __slots__ = ("event_id", "request_id", "user_id", "item_id", "event_type", "event_time_ms", "event", "value", "properties", "properties_text")
    class PropertiesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class PropertiesTextEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    PROPERTIES_FIELD_NUMBER: _ClassVar[int]
    PROPERTIES_TEXT_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    request_id: str
    user_id: str
    item_id: str
    event_type: EventType
    event_time_ms: int
    event: str
    value: float
    properties: _containers.ScalarMap[str, float]
    properties_text: _containers.ScalarMap[str, str]
    def __init__(self, event_id: _Optional[str] = ..., request_id: _Optional[str] = ..., user_id: _Optional[str] = ..., item_id: _Optional[str] = ..., event_type: _Optional[_Union[EventType, str]] = ..., event_time_ms: _Optional[int] = ..., event: _Optional[str] = ..., value: _Optional[float] = ..., properties: _Optional[_Mapping[str, float]] = ..., properties_text: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("layer", "experiment", "arm", "overridden", "unit", "unread", "salt", "split", "fingerprint")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    OVERRIDDEN_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    UNREAD_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    layer: str
    experiment: str
    arm: str
    overridden: bool
    unit: str
    unread: bool
    salt: str
    split: str
    fingerprint: str
    def __init__(self, layer: _Optional[str] = ..., experiment: _Optional[str] = ..., arm: _Optional[str] = ..., overridden: _Optional[bool] = ..., unit: _Optional[str] = ..., unread: _Optional[bool] = ..., salt: _Optional[str] = ..., split: _Optional[str] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class DecisionRecord(_message.Message):
    __slots__ = ("request_id", "user_id", "session_id", "surface", "event_time_ms", "assignments", "parameters", "item_ids", "scores", "propensities", "sources", "source_index", "interest_index", "tasks", "task_scores", "degradations", "profile_age_s", "history_age_s", "candidate_generation_version", "ranking_version", "stage_ms", "held_out", "exploration", "outcome", "unit_ids", "segments", "before", "interleaving", "schema_revision")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class UnitIdsEntry(_message.Message):
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
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    UNIT_IDS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    INTERLEAVING_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_REVISION_FIELD_NUMBER: _ClassVar[int]
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
    outcome: Outcome
    unit_ids: _containers.ScalarMap[str, str]
    segments: _containers.RepeatedScalarFieldContainer[str]
    before: Before
    interleaving: Interleaving
    schema_revision: int
    def __init__(self, request_id: _Optional[str] = ..., user_id: _Optional[str] = ..., session_id: _Optional[str] = ..., surface: _Optional[str] = ..., event_time_ms: _Optional[int] = ..., assignments: _Optional[_Iterable[_Union[Assignment, _Mapping]]] = ..., parameters: _Optional[_Mapping[str, str]] = ..., item_ids: _Optional[_Iterable[str]] = ..., scores: _Optional[bytes] = ..., propensities: _Optional[bytes] = ..., sources: _Optional[_Iterable[str]] = ..., source_index: _Optional[bytes] = ..., interest_index: _Optional[bytes] = ..., tasks: _Optional[_Iterable[str]] = ..., task_scores: _Optional[bytes] = ..., degradations: _Optional[_Iterable[_Union[Degradation, str]]] = ..., profile_age_s: _Optional[float] = ..., history_age_s: _Optional[float] = ..., candidate_generation_version: _Optional[str] = ..., ranking_version: _Optional[str] = ..., stage_ms: _Optional[_Union[StageTimes, _Mapping]] = ..., held_out: _Optional[bool] = ..., exploration: _Optional[_Union[Exploration, _Mapping]] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., unit_ids: _Optional[_Mapping[str, str]] = ..., segments: _Optional[_Iterable[str]] = ..., before: _Optional[_Union[Before, _Mapping]] = ..., interleaving: _Optional[_Union[Interleaving, _Mapping]] = ..., schema_revision: _Optional[int] = ...) -> None: ...

class Before(_message.Message):
    __slots__ = ("impressions", "clicks", "likes", "sources", "numbers")
    IMPRESSIONS_FIELD_NUMBER: _ClassVar[int]
    CLICKS_FIELD_NUMBER: _ClassVar[int]
    LIKES_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    impressions: int
    clicks: int
    likes: int
    sources: bytes
    numbers: bytes
    def __init__(self, impressions: _Optional[int] = ..., clicks: _Optional[int] = ..., likes: _Optional[int] = ..., sources: _Optional[bytes] = ..., numbers: _Optional[bytes] = ...) -> None: ...

class Interleaving(_message.Message):
    __slots__ = ("experiment", "method", "arm_a", "arm_b", "teams")
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    ARM_A_FIELD_NUMBER: _ClassVar[int]
    ARM_B_FIELD_NUMBER: _ClassVar[int]
    TEAMS_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    method: str
    arm_a: str
    arm_b: str
    teams: bytes
    def __init__(self, experiment: _Optional[str] = ..., method: _Optional[str] = ..., arm_a: _Optional[str] = ..., arm_b: _Optional[str] = ..., teams: _Optional[bytes] = ...) -> None: ...

class Exploration(_message.Message):
    __slots__ = ("kind", "strength", "depth", "ranked", "places", "item_keys", "task_scores")
    KIND_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    DEPTH_FIELD_NUMBER: _ClassVar[int]
    RANKED_FIELD_NUMBER: _ClassVar[int]
    PLACES_FIELD_NUMBER: _ClassVar[int]
    ITEM_KEYS_FIELD_NUMBER: _ClassVar[int]
    TASK_SCORES_FIELD_NUMBER: _ClassVar[int]
    kind: str
    strength: float
    depth: int
    ranked: int
    places: bytes
    item_keys: bytes
    task_scores: bytes
    def __init__(self, kind: _Optional[str] = ..., strength: _Optional[float] = ..., depth: _Optional[int] = ..., ranked: _Optional[int] = ..., places: _Optional[bytes] = ..., item_keys: _Optional[bytes] = ..., task_scores: _Optional[bytes] = ...) -> None: ...

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

class ExperimentChange(_message.Message):
    __slots__ = ("change_id", "experiment", "salt", "kind", "arm", "event_time_ms", "actor", "reason", "evidence", "state")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[ExperimentChange.Kind]
        ARM_STOPPED: _ClassVar[ExperimentChange.Kind]
        ARM_RESUMED: _ClassVar[ExperimentChange.Kind]
        RAMP_ADVANCED: _ClassVar[ExperimentChange.Kind]
    KIND_UNSPECIFIED: ExperimentChange.Kind
    ARM_STOPPED: ExperimentChange.Kind
    ARM_RESUMED: ExperimentChange.Kind
    RAMP_ADVANCED: ExperimentChange.Kind
    CHANGE_ID_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    change_id: str
    experiment: str
    salt: str
    kind: ExperimentChange.Kind
    arm: str
    event_time_ms: int
    actor: str
    reason: str
    evidence: str
    state: ExperimentState
    def __init__(self, change_id: _Optional[str] = ..., experiment: _Optional[str] = ..., salt: _Optional[str] = ..., kind: _Optional[_Union[ExperimentChange.Kind, str]] = ..., arm: _Optional[str] = ..., event_time_ms: _Optional[int] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., evidence: _Optional[str] = ..., state: _Optional[_Union[ExperimentState, _Mapping]] = ...) -> None: ...

class ExperimentState(_message.Message):
    __slots__ = ("pauses", "ramp_step", "ramp_step_since_ms")
    PAUSES_FIELD_NUMBER: _ClassVar[int]
    RAMP_STEP_FIELD_NUMBER: _ClassVar[int]
    RAMP_STEP_SINCE_MS_FIELD_NUMBER: _ClassVar[int]
    pauses: _containers.RepeatedCompositeFieldContainer[ArmPause]
    ramp_step: int
    ramp_step_since_ms: int
    def __init__(self, pauses: _Optional[_Iterable[_Union[ArmPause, _Mapping]]] = ..., ramp_step: _Optional[int] = ..., ramp_step_since_ms: _Optional[int] = ...) -> None: ...

class ArmPause(_message.Message):
    __slots__ = ("arm", "from_ms", "to_ms")
    ARM_FIELD_NUMBER: _ClassVar[int]
    FROM_MS_FIELD_NUMBER: _ClassVar[int]
    TO_MS_FIELD_NUMBER: _ClassVar[int]
    arm: str
    from_ms: int
    to_ms: int
    def __init__(self, arm: _Optional[str] = ..., from_ms: _Optional[int] = ..., to_ms: _Optional[int] = ...) -> None: ...

class FieldValue(_message.Message):
    __slots__ = ("text", "number", "flag", "texts", "numbers")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    TEXTS_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    text: str
    number: float
    flag: bool
    texts: Texts
    numbers: Numbers
    def __init__(self, text: _Optional[str] = ..., number: _Optional[float] = ..., flag: _Optional[bool] = ..., texts: _Optional[_Union[Texts, _Mapping]] = ..., numbers: _Optional[_Union[Numbers, _Mapping]] = ...) -> None: ...

class Texts(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, values: _Optional[_Iterable[str]] = ...) -> None: ...

class Numbers(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class ItemRecord(_message.Message):
    __slots__ = ("catalogue", "builder", "row", "item_id", "fields", "updated_ms", "removed", "removed_ms", "nonce", "ended", "imported")
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: ItemField
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[ItemField, _Mapping]] = ...) -> None: ...
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    BUILDER_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    UPDATED_MS_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_MS_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    IMPORTED_FIELD_NUMBER: _ClassVar[int]
    catalogue: int
    builder: int
    row: int
    item_id: str
    fields: _containers.MessageMap[str, ItemField]
    updated_ms: int
    removed: bool
    removed_ms: int
    nonce: int
    ended: bool
    imported: int
    def __init__(self, catalogue: _Optional[int] = ..., builder: _Optional[int] = ..., row: _Optional[int] = ..., item_id: _Optional[str] = ..., fields: _Optional[_Mapping[str, ItemField]] = ..., updated_ms: _Optional[int] = ..., removed: _Optional[bool] = ..., removed_ms: _Optional[int] = ..., nonce: _Optional[int] = ..., ended: _Optional[bool] = ..., imported: _Optional[int] = ...) -> None: ...

class ItemField(_message.Message):
    __slots__ = ("value", "updated_ms")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    UPDATED_MS_FIELD_NUMBER: _ClassVar[int]
    value: FieldValue
    updated_ms: int
    def __init__(self, value: _Optional[_Union[FieldValue, _Mapping]] = ..., updated_ms: _Optional[int] = ...) -> None: ...
