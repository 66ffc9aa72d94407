"""The fingerprint of what an experiment's arms do, as records carry it.

It stands for the values of all parameters that an arm with units sets otherwise than production,
for every such arm (`Experiment.treatments`): one for the whole experiment, so that a record of
control tells, too, which treatment stood against it. An arm without weight is not in it, and
writing a default down changes nothing; a default that changes in the code does. An experiment that
interleaves has one like any other.

A file in which it differs under the same salt is refused by a process that runs the one before
(`config.moving_changes`). Records of two fingerprints come to be all the same: a process started
with the edited file, or a router that still has the old one. They are of two treatments, and no
weight makes one effect of two. So who counts is decided like with another salt: the units first
exposed by the fingerprint of the file that is measured (`exposures`).

What is no fingerprint is not known (older records have none). It counts as the file's as long as
the log shows no other one; else nobody can tell which treatment it was, and it counts as another.
"""

from __future__ import annotations

import json
import re

import xxhash

from services.experiments.declare.config import Experiment

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


def fingerprint_of(experiment: Experiment) -> str:
    """Of a declaration: 16 hexadecimal digits."""
    return xxhash.xxh3_64_hexdigest(json.dumps(experiment.treatments).encode())


def known_fingerprint(text: str) -> str:
    """The text if it may be some experiment's fingerprint, else nothing: not known."""
    return text if _FINGERPRINT.fullmatch(text) else ""
