"""An OpenFeature provider over `Experiments.Assign`: a product backend reads Tandem's arms and
parameters with the standard API. Needs the extra: `pip install "tandem[openfeature]"`.

    with grpc.insecure_channel("router:50051") as channel:
        provider = ExperimentsProvider(channel, context={"hour"}, units={"household"})
        openfeature.api.set_provider(provider)
        client = openfeature.api.get_client()
        user = EvaluationContext("user-1", {"surface": "home", "hour": 20, "household": "h-7"})
        client.get_float_value("rerank.diversity", 0.0, user)
        client.get_string_value("experiment:diversity", "control", user)

Flags are the parameters by their dotted names, with the type of the parameter, and
`experiment:NAME`, a string, the name of the arm. The variant is the arm in both. An experiment that
interleaves has the arm `interleaved` and the parameters of its first arm: one list of both arms is
what `Recommend` gives, and no flag can.

It does not make exposures, keeps no cache and opens no stream: every flag is one call.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import grpc
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import (
    FlagNotFoundError,
    GeneralError,
    InvalidContextError,
    TargetingKeyMissingError,
    TypeMismatchError,
)
from openfeature.flag_evaluation import FlagResolutionDetails, FlagValueType, Reason
from openfeature.provider import AbstractProvider, Metadata

from protos.tandem.v1 import experiments_pb2 as pb
from protos.tandem.v1 import experiments_pb2_grpc, records_pb2
from services.experiments.declare.parameters import IN_EVERY_DOMAIN, OF_WEIGHTS, Value

EXPERIMENT = "experiment:"
LARGEST = sys.float_info.max  # what a context value can be; NaN and larger whole numbers are not
SURFACE, SESSION = "surface", "session_id"  # the attributes that are text

V = TypeVar("V", bool, int, float, str)
P = ParamSpec("P")
R = TypeVar("R")


def _in_thread(
    resolve: Callable[Concatenate[Any, P], R],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]:
    async def in_thread(provider: ExperimentsProvider, *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.to_thread(resolve, provider, *args, **kwargs)

    return in_thread


class ExperimentsProvider(AbstractProvider):
    """Resolves flags by asking a router. Thread-safe."""

    def __init__(
        self,
        channel: grpc.Channel,
        timeout_s: float = 0.1,
        context: Collection[str] = (),
        units: Collection[str] = (),
    ) -> None:
        """`channel` to the router stays the caller's, who closes it. A call that takes longer than
        `timeout_s` gives the caller's default value. `context` names the numeric attributes that
        conditions ask for: others stay here, because an application's own attributes may be more
        than a request can carry, and would silence every flag. `units` names the attributes that
        are ids of further units, as the experiments file declares them (`units: [household]`)."""
        super().__init__()
        self._context = frozenset(context)
        self._units = frozenset(units)
        self._stub = experiments_pb2_grpc.ExperimentsStub(channel)
        self._timeout_s = timeout_s

    def get_metadata(self) -> Metadata:
        return Metadata("tandem")

    def resolve_boolean_details(
        self,
        flag_key: str,
        default_value: bool,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[bool]:
        return self._resolve(flag_key, default_value, bool, evaluation_context)

    def resolve_string_details(
        self,
        flag_key: str,
        default_value: str,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[str]:
        return self._resolve(flag_key, default_value, str, evaluation_context)

    def resolve_integer_details(
        self,
        flag_key: str,
        default_value: int,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[int]:
        return self._resolve(flag_key, default_value, int, evaluation_context)

    def resolve_float_details(
        self,
        flag_key: str,
        default_value: float,
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[float]:
        return self._resolve(flag_key, default_value, float, evaluation_context)

    def resolve_object_details(
        self,
        flag_key: str,
        default_value: Sequence[FlagValueType] | Mapping[str, FlagValueType],
        evaluation_context: EvaluationContext | None = None,
    ) -> FlagResolutionDetails[Sequence[FlagValueType] | Mapping[str, FlagValueType]]:
        raise TypeMismatchError(f"{flag_key!r} is no object: no parameter and no arm is one")

    # The same without blocking an event loop.
    resolve_boolean_details_async = _in_thread(resolve_boolean_details)
    resolve_string_details_async = _in_thread(resolve_string_details)
    resolve_integer_details_async = _in_thread(resolve_integer_details)
    resolve_float_details_async = _in_thread(resolve_float_details)

    def _resolve(
        self, key: str, default: V, kind: type[V], evaluation_context: EvaluationContext | None
    ) -> FlagResolutionDetails[V]:
        is_arm = key.startswith(EXPERIMENT)
        # Before the call: a flag that cannot be must not cost one.
        wanted = str if is_arm else _type_of(key)
        if wanted is not kind and not (wanted is int and kind is float):
            raise TypeMismatchError(f"{key!r} is of type {wanted.__name__}, not {kind.__name__}")
        answer = self._assign(
            assign_request(evaluation_context or EvaluationContext(), self._context, self._units)
        )
        if is_arm:
            name = key.removeprefix(EXPERIMENT)
            by = [a for a in answer.assignments if a.experiment == name]
            # Without an arm it is not in it, or there is no such experiment.
            value = kind(by[0].arm) if by else default
        elif key in answer.parameters:
            text = answer.parameters[key]
            by = [a for a in answer.assignments if a.layer == answer.overridden_by.get(key)]
            # Without an arm it is production's value, which is not the caller's default.
            value = kind(text == "true") if kind is bool else kind(text)
        else:  # a weight that is not declared, or a router of another version
            names = ", ".join(sorted(answer.parameters))
            raise FlagNotFoundError(f"the router knows no parameter {key!r}; use one of {names}")
        if not by:
            return FlagResolutionDetails(value, reason=Reason.DEFAULT)
        return FlagResolutionDetails(value, reason=_reason(by[0]), variant=by[0].arm)

    def _assign(self, request: pb.AssignRequest) -> pb.AssignResponse:
        try:
            return self._stub.Assign(request, timeout=self._timeout_s)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise InvalidContextError(error.details()) from error
            raise GeneralError(f"{error.code().name}: {error.details()}") from error


def assign_request(
    evaluation_context: EvaluationContext, names: Collection[str], units: Collection[str] = ()
) -> pb.AssignRequest:
    """The targeting key as user id, `surface` and `session_id`, the named numbers as context, and
    the named units' ids.

    Truth values are 1 and 0. What is no finite number is left out: no condition holds of it. A
    unit's id is text; a whole number is taken as it is written, and what else is no id is left out.
    TargetingKeyMissingError when there is no targeting key, no session id and no id of a unit.
    """
    texts = {SURFACE: "", SESSION: ""}
    context, unit_ids = {}, {}
    for name, value in evaluation_context.attributes.items():
        if name in units:
            if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
                unit_ids[name] = str(value)
        elif name in texts and isinstance(value, str):
            texts[name] = value
        elif name in names and isinstance(value, int | float) and abs(value) <= LARGEST:
            context[name] = float(value)
    user = evaluation_context.targeting_key or ""
    if not (user or texts[SESSION] or unit_ids):
        raise TargetingKeyMissingError(
            "give the user id as targeting key, or the attribute `session_id`, or a unit's id"
        )
    return pb.AssignRequest(
        user_id=user,
        session_id=texts[SESSION],
        surface=texts[SURFACE],
        context=context,
        unit_ids=unit_ids,
    )


def _type_of(key: str) -> type[Value]:
    if key in IN_EVERY_DOMAIN:
        return type(IN_EVERY_DOMAIN[key].default)
    if key.startswith(OF_WEIGHTS):  # a weight, of which the router alone knows
        return float
    raise FlagNotFoundError(
        f"there is no parameter {key!r}; use one of {', '.join(IN_EVERY_DOMAIN)}, a weight"
        f" ({OF_WEIGHTS}NAME), or {EXPERIMENT}NAME for an arm"
    )


def _reason(assignment: records_pb2.Assignment) -> Reason:
    """The allow-list matches a target, and so does what replaces a stopped arm; the rest is split
    by the hash."""
    return Reason.TARGETING_MATCH if assignment.overridden else Reason.SPLIT
