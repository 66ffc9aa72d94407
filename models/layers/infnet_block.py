"""One INFNet block: proxies and task tokens read the raw tokens, gates write back to them.

"INFNet: A Task-aware Information Flow Network for Large-Scale Recommendation Systems", arXiv
2508.11565v1; `specs/ranking_models.md` section 3.3. With C, S, T the categorical, sequence and task
tokens and C~, S~, T~ their proxies:

    cross   C~' = LN(C~ + CA(C~,S) + CA(C~,T))      S~' and T~' alike; T^ = T + CA(T,C) + CA(T,S)
    gate    C'  = LN(C + PGU(C, C~'))               S' alike;          T' = LN(T^ + PGU(T^, T~'))

`residual=False` is the literal form of the paper's formulas: no LN and nothing added to the terms.
`proxy_source="stale"` gates with C~, S~, T~ instead, as the formulas print it; "updated" is what
the text says.

The heads read T' of the last block, so what feeds only other outputs there is dead (`live_parts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor, nn

from models.layers.cross_attention import CrossAttention, MeanAttention, attend_together
from models.layers.proxy_gate import ProxyGate

ProxySource = Literal["updated", "stale"]
Attention = Literal["cross", "mean"]

# Who queries whom in the cross stage, and which proxies gate which tokens.
CROSS = {
    "categorical_proxy": ("sequence", "task"),
    "sequence_proxy": ("categorical", "task"),
    "task_proxy": ("categorical", "sequence"),
    "task": ("categorical", "sequence"),
}
GATE = {
    "categorical": "categorical_proxy",
    "sequence": "sequence_proxy",
    "task": "task_proxy",
}


@dataclass(frozen=True)
class Tokens:
    """What flows from block to block, B rows; `keep` bool[B, L] is False for padded items.

    The values by name: categorical float[B, M, d], sequence float[B, L, d], task float[B, T, d]
    and their proxies categorical_proxy, sequence_proxy, task_proxy float[B, *, d].
    """

    values: Mapping[str, Tensor]
    keep: Tensor


@dataclass(frozen=True)
class LiveParts:
    """The updates of one block that some output of the network depends on."""

    cross: frozenset[str]
    gate: frozenset[str]


EVERY_PART = LiveParts(frozenset(CROSS), frozenset(GATE))


def live_parts(block: int, blocks: int, proxy_source: ProxySource) -> LiveParts:
    """What block number `block` (from 0) of `blocks` must compute.

    Tokens but those of the tasks are read by the next block only. A proxy is read by its gate, of
    this block ("updated") or of the next ("stale"), and by its own later versions.
    """
    last = block == blocks - 1
    if proxy_source == "updated":
        cross = {"task", "task_proxy"} if last else set(CROSS)
    elif last:
        cross = {"task"}
    else:
        cross = {"task", "task_proxy"} if block == blocks - 2 else set(CROSS)
    return LiveParts(frozenset(cross), frozenset({"task"} if last else GATE))


@dataclass(frozen=True)
class BlockForm:
    """The switches of `specs/ranking_models.md` section 3.3 that concern a block.

    Two are the paper's ablations, whose exact form it does not give: `attention="mean"` takes the
    mean of the values in the place of the cross attention, so that tasks still see their row;
    without `gated` tokens pass the gate stage as they are (with their LN if `residual`).
    """

    width: int
    proxies: Mapping[str, int]  # number of categorical_proxy, sequence_proxy and task_proxy
    proxy_source: ProxySource = "updated"
    residual: bool = True
    heads: int = 1
    out_proj: bool = False
    pgu_layers: int = 2
    attention: Attention = "cross"
    gated: bool = True


class _Cross(nn.Module):
    """The sum of two attentions of one set of queries; with `norm`, LN(queries + sum)."""

    def __init__(self, name: str, form: BlockForm) -> None:
        super().__init__()
        self.attend = nn.ModuleDict(
            {
                source: CrossAttention(form.width, form.heads, form.out_proj)
                if form.attention == "cross"
                else MeanAttention(form.width)
                for source in CROSS[name]
            }
        )
        self.residual = form.residual
        self.norm = nn.LayerNorm(form.width) if form.residual and name != "task" else None

    def combine(self, queries: Tensor, terms: Tensor) -> Tensor:
        value = queries + terms if self.residual else terms
        return value if self.norm is None else self.norm(value)


class _Gate(nn.Module):
    """X' = LN(X + PGU(X, P)), or PGU(X, P) alone."""

    def __init__(self, name: str, form: BlockForm) -> None:
        super().__init__()
        gated = form.gated
        self.unit = (
            ProxyGate(form.proxies[GATE[name]], form.width, form.pgu_layers) if gated else None
        )
        self.norm = nn.LayerNorm(form.width) if form.residual else None

    def forward(self, tokens: Tensor, proxies: Tensor) -> Tensor:
        if self.unit is None:
            return tokens if self.norm is None else self.norm(tokens)
        gated = self.unit(tokens, proxies)
        return gated if self.norm is None else self.norm(tokens + gated)


class INFNetBlock(nn.Module):
    """Computes, and has the parameters of, the parts named by `live`."""

    def __init__(self, form: BlockForm, live: LiveParts = EVERY_PART) -> None:
        super().__init__()
        self.fresh = form.proxy_source == "updated"
        self.cross = nn.ModuleDict({n: _Cross(n, form) for n in CROSS if n in live.cross})
        self.gate = nn.ModuleDict({n: _Gate(n, form) for n in GATE if n in live.gate})

    def terms(self, tokens: Tokens, sources: Mapping[str, tuple[str, ...]]) -> dict[str, Tensor]:
        """Some attention terms by "query<-source": what is known before the candidate is."""
        found: dict[str, Tensor] = {}
        for source in dict.fromkeys(s for wanted in sources.values() for s in wanted):
            names = [n for n, wanted in sources.items() if source in wanted and n in self.cross]
            layers = [self._cross(name).attend[source] for name in names]
            queries = [tokens.values[name] for name in names]
            keep = tokens.keep if source == "sequence" else None
            results = _attended(layers, queries, tokens.values[source], keep)
            found |= {f"{n}<-{source}": r for n, r in zip(names, results, strict=True)}
        return found

    def forward(self, tokens: Tokens, known: Mapping[str, Tensor] | None = None) -> Tokens:
        """The next tokens; `known` holds `terms` that need not be computed again."""
        terms = dict(known or {})
        missing = {n: tuple(s for s in CROSS[n] if f"{n}<-{s}" not in terms) for n in self.cross}
        terms |= self.terms(tokens, missing)
        crossed = dict(tokens.values)
        for name in self.cross:
            one, other = (terms[f"{name}<-{source}"] for source in CROSS[name])
            crossed[name] = self._cross(name).combine(tokens.values[name], one + other)
        gated = dict(crossed)
        for name, gate in self.gate.items():
            proxies = (crossed if self.fresh else tokens.values)[GATE[name]]
            gated[name] = gate(crossed[name], proxies)
        return Tokens(gated, tokens.keep)

    def _cross(self, name: str) -> _Cross:
        return cast(_Cross, self.cross[name])


def _attended(
    layers: list[nn.Module], queries: list[Tensor], tokens: Tensor, keep: Tensor | None
) -> list[Tensor]:
    """Each layer's term; cross attentions on the same tokens share the pass over them."""
    together = [layer for layer in layers if isinstance(layer, CrossAttention)]
    if layers and len(together) == len(layers):
        return attend_together(together, queries, tokens, keep)
    return [layer(query, tokens, keep) for layer, query in zip(layers, queries, strict=True)]
