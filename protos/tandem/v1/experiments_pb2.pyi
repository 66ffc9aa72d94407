from protos.tandem.v1 import records_pb2 as _records_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AssignRequest(_message.Message):
    __slots__ = ("user_id", "session_id", "surface", "context", "unit_ids")
    class ContextEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class UnitIdsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    SURFACE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    UNIT_IDS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    session_id: str
    surface: str
    context: _containers.ScalarMap[str, float]
    unit_ids: _containers.ScalarMap[str, str]
    def __init__(self, user_id: _Optional[str] = ..., session_id: _Optional[str] = ..., surface: _Optional[str] = ..., context: _Optional[_Mapping[str, float]] = ..., unit_ids: _Optional[_Mapping[str, str]] = ...) -> None: ...

class AssignResponse(_message.Message):
    __slots__ = ("assignments", "parameters", "overridden_by", "held_out", "assigned_at_ms")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class OverriddenByEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ASSIGNMENTS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    OVERRIDDEN_BY_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_FIELD_NUMBER: _ClassVar[int]
    ASSIGNED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    assignments: _containers.RepeatedCompositeFieldContainer[_records_pb2.Assignment]
    parameters: _containers.ScalarMap[str, str]
    overridden_by: _containers.ScalarMap[str, str]
    held_out: bool
    assigned_at_ms: int
    def __init__(self, assignments: _Optional[_Iterable[_Union[_records_pb2.Assignment, _Mapping]]] = ..., parameters: _Optional[_Mapping[str, str]] = ..., overridden_by: _Optional[_Mapping[str, str]] = ..., held_out: _Optional[bool] = ..., assigned_at_ms: _Optional[int] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("layers", "holdout_percent", "holdout_salt", "described_at_ms")
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    HOLDOUT_PERCENT_FIELD_NUMBER: _ClassVar[int]
    HOLDOUT_SALT_FIELD_NUMBER: _ClassVar[int]
    DESCRIBED_AT_MS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedCompositeFieldContainer[LayerDescription]
    holdout_percent: float
    holdout_salt: str
    described_at_ms: int
    def __init__(self, layers: _Optional[_Iterable[_Union[LayerDescription, _Mapping]]] = ..., holdout_percent: _Optional[float] = ..., holdout_salt: _Optional[str] = ..., described_at_ms: _Optional[int] = ...) -> None: ...

class LayerDescription(_message.Message):
    __slots__ = ("name", "salt", "parameters", "experiments")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    salt: str
    parameters: _containers.RepeatedScalarFieldContainer[str]
    experiments: _containers.RepeatedCompositeFieldContainer[ExperimentDescription]
    def __init__(self, name: _Optional[str] = ..., salt: _Optional[str] = ..., parameters: _Optional[_Iterable[str]] = ..., experiments: _Optional[_Iterable[_Union[ExperimentDescription, _Mapping]]] = ...) -> None: ...

class ExperimentDescription(_message.Message):
    __slots__ = ("name", "salt", "unit", "state", "first_bucket", "end_bucket", "start_ms", "stop_ms", "where", "arms", "allow_listed", "interleave", "ramp")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[ExperimentDescription.State]
        OFF: _ClassVar[ExperimentDescription.State]
        SCHEDULED: _ClassVar[ExperimentDescription.State]
        RUNNING: _ClassVar[ExperimentDescription.State]
        ENDED: _ClassVar[ExperimentDescription.State]
    STATE_UNSPECIFIED: ExperimentDescription.State
    OFF: ExperimentDescription.State
    SCHEDULED: ExperimentDescription.State
    RUNNING: ExperimentDescription.State
    ENDED: ExperimentDescription.State
    NAME_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    FIRST_BUCKET_FIELD_NUMBER: _ClassVar[int]
    END_BUCKET_FIELD_NUMBER: _ClassVar[int]
    START_MS_FIELD_NUMBER: _ClassVar[int]
    STOP_MS_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    ALLOW_LISTED_FIELD_NUMBER: _ClassVar[int]
    INTERLEAVE_FIELD_NUMBER: _ClassVar[int]
    RAMP_FIELD_NUMBER: _ClassVar[int]
    name: str
    salt: str
    unit: str
    state: ExperimentDescription.State
    first_bucket: int
    end_bucket: int
    start_ms: int
    stop_ms: int
    where: _containers.RepeatedCompositeFieldContainer[ConditionDescription]
    arms: _containers.RepeatedCompositeFieldContainer[ArmDescription]
    allow_listed: int
    interleave: str
    ramp: RampDescription
    def __init__(self, name: _Optional[str] = ..., salt: _Optional[str] = ..., unit: _Optional[str] = ..., state: _Optional[_Union[ExperimentDescription.State, str]] = ..., first_bucket: _Optional[int] = ..., end_bucket: _Optional[int] = ..., start_ms: _Optional[int] = ..., stop_ms: _Optional[int] = ..., where: _Optional[_Iterable[_Union[ConditionDescription, _Mapping]]] = ..., arms: _Optional[_Iterable[_Union[ArmDescription, _Mapping]]] = ..., allow_listed: _Optional[int] = ..., interleave: _Optional[str] = ..., ramp: _Optional[_Union[RampDescription, _Mapping]] = ...) -> None: ...

class RampDescription(_message.Message):
    __slots__ = ("steps_percent", "step", "hold_s", "min_units")
    STEPS_PERCENT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    HOLD_S_FIELD_NUMBER: _ClassVar[int]
    MIN_UNITS_FIELD_NUMBER: _ClassVar[int]
    steps_percent: _containers.RepeatedScalarFieldContainer[float]
    step: int
    hold_s: float
    min_units: int
    def __init__(self, steps_percent: _Optional[_Iterable[float]] = ..., step: _Optional[int] = ..., hold_s: _Optional[float] = ..., min_units: _Optional[int] = ...) -> None: ...

class ConditionDescription(_message.Message):
    __slots__ = ("subject", "operator", "operands")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    OPERANDS_FIELD_NUMBER: _ClassVar[int]
    subject: str
    operator: str
    operands: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, subject: _Optional[str] = ..., operator: _Optional[str] = ..., operands: _Optional[_Iterable[str]] = ...) -> None: ...

class ArmDescription(_message.Message):
    __slots__ = ("name", "weight_percent", "traffic_percent", "parameters", "stopped")
    class ParametersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_PERCENT_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_PERCENT_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    STOPPED_FIELD_NUMBER: _ClassVar[int]
    name: str
    weight_percent: float
    traffic_percent: float
    parameters: _containers.ScalarMap[str, str]
    stopped: bool
    def __init__(self, name: _Optional[str] = ..., weight_percent: _Optional[float] = ..., traffic_percent: _Optional[float] = ..., parameters: _Optional[_Mapping[str, str]] = ..., stopped: _Optional[bool] = ...) -> None: ...
