"""Experiments over gRPC, for services beside the recommender. A plain grpc.aio servicer.

It answers from the assigner in force in its process, so that a caller and the router agree on every
arm as long as they mean the same instant and the user's counts have not changed in between. It
writes nothing, and reads the user's counts only if a condition asks for them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping

import grpc

from protos.tandem.v1 import experiments_pb2 as pb
from protos.tandem.v1 import experiments_pb2_grpc
from services.common.rpc import invalid, rpc_method
from services.common.validate import check_context, check_id, check_surface, check_unit_ids
from services.experiments.assign.assignment import Assigner
from services.experiments.declare.config import Arm, Experiment, ExperimentsConfig, Layer, Ramp
from services.experiments.declare.parameters import values_text
from services.experiments.declare.targeting import NOTHING

# A user id -> the counts of its profile, by name. An empty mapping when the profile is missing,
# expired or late: it raises nothing for that.
Features = Callable[[str], Awaitable[Mapping[str, float]]]

SERVICE = "tandem.v1.Experiments"


class ExperimentsServicer(experiments_pb2_grpc.ExperimentsServicer):
    """Assign and Describe for the experiments in force."""

    def __init__(
        self,
        assigner: Callable[[], Assigner],
        surfaces: Collection[str],
        clock: Callable[[], float] = time.time,
        features: Features | None = None,
    ) -> None:
        """`assigner` gives the one in force at this moment, `clock` seconds since the epoch.

        `features` is asked only when a condition of an enabled experiment looks at the user;
        without it such conditions are fulfilled by nobody.
        """
        self._assigner = assigner
        self._surfaces = surfaces
        self._clock = clock
        self._features = features

    @rpc_method("experiments")
    async def Assign(
        self, request: pb.AssignRequest, context: grpc.aio.ServicerContext
    ) -> pb.AssignResponse:
        check_assign(request, self._surfaces)
        now_ms = int(self._clock() * 1000)
        assigner = self._assigner()
        user = NOTHING
        if assigner.needs_user and self._features and request.user_id:
            user = await self._features(request.user_id)
        decision = assigner.assign(
            request.user_id,
            request.session_id,
            now_ms=now_ms,
            surface=request.surface,
            context=request.context,
            unit_ids=request.unit_ids,
            user=user,
        )
        return pb.AssignResponse(
            assignments=decision.messages,
            parameters=decision.parameters.as_text(),
            overridden_by={name: a.layer for a in decision.assignments for name in a.overrides},
            held_out=decision.held_out,
            assigned_at_ms=now_ms,
        )

    @rpc_method("experiments")
    async def Describe(
        self, request: pb.DescribeRequest, context: grpc.aio.ServicerContext
    ) -> pb.DescribeResponse:
        return description(self._assigner().config, int(self._clock() * 1000))


def check_assign(request: pb.AssignRequest, surfaces: Collection[str]) -> None:
    """Raise an INVALID_ARGUMENT Refusal for the first field that is wrong."""
    if not (request.user_id or request.session_id or request.unit_ids):
        raise invalid(
            "user_id", "is empty, and so are session_id and unit_ids; give at least one of them"
        )
    check_id("user_id", request.user_id, required=False)
    check_id("session_id", request.session_id, required=False)
    if request.surface:
        check_surface(request.surface, surfaces)
    check_context(request.context)
    check_unit_ids(request.unit_ids)


def description(config: ExperimentsConfig, now_ms: int) -> pb.DescribeResponse:
    """The whole configuration as a message; states are those of the instant `now_ms`."""
    return pb.DescribeResponse(
        layers=[_layer(layer, now_ms) for layer in config.layers],
        holdout_percent=config.holdout.percent,
        holdout_salt=config.holdout.salt,
        described_at_ms=now_ms,
    )


def _layer(layer: Layer, now_ms: int) -> pb.LayerDescription:
    return pb.LayerDescription(
        name=layer.name,
        salt=layer.salt,
        parameters=layer.parameters,
        experiments=[_experiment(experiment, now_ms) for experiment in layer.experiments],
    )


def _experiment(experiment: Experiment, now_ms: int) -> pb.ExperimentDescription:
    first, end = experiment.buckets
    return pb.ExperimentDescription(
        name=experiment.name,
        salt=experiment.salt,
        unit=experiment.unit,
        state=pb.ExperimentDescription.State.Value(experiment.state(now_ms).upper()),
        first_bucket=first,
        end_bucket=end,
        start_ms=_bound(experiment.start_ms),
        stop_ms=_bound(experiment.stop_ms),
        where=[
            pb.ConditionDescription(subject=c.subject, operator=c.operator, operands=c.operands)
            for c in experiment.where
        ],
        arms=[_arm(experiment, arm) for arm in experiment.arms],
        allow_listed=len(experiment.allow_list),
        interleave=experiment.interleave or "",
        ramp=_ramp(experiment, experiment.ramp) if experiment.ramp else None,
    )


def _ramp(experiment: Experiment, ramp: Ramp) -> pb.RampDescription:
    return pb.RampDescription(
        steps_percent=[step / 100 for step in ramp.steps],
        step=experiment.ramp_step,
        hold_s=ramp.hold_s,
        min_units=ramp.min_units,
    )


def _bound(ms: float) -> int | None:
    return int(ms) if math.isfinite(ms) else None


def _arm(experiment: Experiment, arm: Arm) -> pb.ArmDescription:
    # Of a stopped interleaving experiment it is B that nobody sees any more.
    stopped = arm.stopped or (experiment.stopped and arm.name != experiment.control)
    return pb.ArmDescription(
        name=arm.name,
        weight_percent=arm.weight,
        traffic_percent=arm.traffic,
        parameters=values_text(arm.parameters),
        stopped=stopped,
    )
