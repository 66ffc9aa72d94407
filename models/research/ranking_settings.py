"""What the ranking benchmark tries of every model, and where its models are not those of elsewhere.

Every model gets the same number of trials and, in trial n, the same learning rate, embedding L2,
dropout and spread. A switch of one model alone is tried in step with them and costs no trial.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from typing import Any

# In this order, the first `--trials` of it for every model: learning rate, L2 of embeddings,
# dropout, standard deviation of embeddings at the start.
AXES = ("learning_rate", "l2", "dropout", "init_std")
SETTINGS = (
    (4e-3, 1e-3, 0.2, 0.01),
    (1e-3, 1e-4, 0.2, 0.15),
    (2e-3, 1e-5, 0.2, 0.01),
    (1e-3, 1e-6, 0.0, 0.05),
    (4e-3, 3e-3, 0.2, 0.01),
    (4e-3, 1e-2, 0.2, 0.01),
    (2e-3, 1e-3, 0.0, 0.05),
    (4e-3, 1e-4, 0.2, 0.05),
)
STRENGTHS = (1.0, 0.1, 0.3, 0.03, 3.0, 0.01, 10.0, 0.003)  # C of the convex regression
# Section 4.9: MaskNet's best records have the layer norm of embeddings on one data set and not on
# the others. After every second trial both forms were tried equally often.
OWN_AXES: dict[str, dict[str, tuple[Any, ...]]] = {
    "masknet": {"emb_norm": ("field", "off", "off", "field", "off", "field", "off", "field")},
}
Values = tuple[Any, ...]


def axes_of(model: str) -> tuple[str, ...]:
    """Names of the values of a trial."""
    return (*AXES, *OWN_AXES.get(model, {}))


def trials_of(model: str, trials: int) -> tuple[Values, ...]:
    """The values, in the order of `axes_of`, of a model's first `trials` trials."""
    own = OWN_AXES.get(model, {}).values()
    return tuple(
        (*common, *(values[at] for values in own)) for at, common in enumerate(SETTINGS[:trials])
    )


# Of several tasks, under the names of the benchmark's settings, what the forms do not hold.
_BESIDE_THE_FORM: dict[str, dict[str, Any]] = {
    "masknet": {"tower": (256, 128)},  # section 4.5
    "mlcc": {},
    "infnet": {"own_history": True, "pool_histories": False},  # section 3.2
}


def departures(model: str, settings: Mapping[str, Any], named: Collection[str] = ()) -> str:
    """How all settings of one of our models differ from the specification's and the served ones.

    Left out are those `named` by the row and those that the search chooses. Empty for baselines.
    """
    if model not in _BESIDE_THE_FORM:
        return ""
    elsewhere = {"specification": _specified(model), "served": _served(model)}
    left_out = {*named, "dropout", *OWN_AXES.get(model, {})}
    found = []
    for name in sorted(set(settings) - left_out):
        others = {who: known[name] for who, known in elsewhere.items() if name in known}
        if any(value != settings[name] for value in others.values()):
            told = ", ".join(f"{who} {_text(value)}" for who, value in others.items())
            found.append(f"{name} {_text(settings[name])} ({told})")
    return f"settings that differ elsewhere: {', '.join(found)}" if found else ""


def _specified(model: str) -> dict[str, Any]:
    """The specification's defaults: those of the network's form, and the few beside it."""
    from models.ranking.infnet_backbone import INFNetForm
    from models.ranking.masknet import MaskNetForm
    from models.ranking.mlcc import MLCCForm

    forms: dict[str, type[Any]] = {"masknet": MaskNetForm, "mlcc": MLCCForm, "infnet": INFNetForm}
    found = _defaults(forms[model])
    if model == "mlcc":
        found["channel_width"] = found.pop("width")
    return found | _BESIDE_THE_FORM[model]


def _served(model: str) -> dict[str, Any]:
    """What the model that the services load is trained with unless told otherwise."""
    from models.registry import MODELS
    from models.training.ranking import SETTINGS

    kind = MODELS["mc_mlcc" if model == "mlcc" else model]
    return {**_defaults(kind.config), **kind.settings, **SETTINGS.get(kind.name, {})}


def _defaults(kind: type[Any]) -> dict[str, Any]:
    return {f.name: f.default for f in fields(kind) if f.default is not MISSING}


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return "-".join(map(_text, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
