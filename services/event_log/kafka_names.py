"""What the topics and groups of one installation are called at a broker that several share.

A Kafka group spans topics, and a member that comes or goes for one of them would make the members
for the others pause: so there is a group for each topic.

    topic feedback     NAME.feedback      (feedback, where the installation has no name)
    group g of it      NAME:g.feedback    (g.feedback)

Neither a topic's nor a group's own name has a colon, and NAME has no dot (settings.py) and no topic
is the end of another: so no two installations have a name in common, whatever they are called.
Both begin with NAME, so one prefixed ACL each is enough.
"""

from __future__ import annotations

SEPARATOR = ":"  # Kafka takes it in the name of a group; limits.py in none


class KafkaNames:
    """The names of an installation; None: of the one without a name."""

    def __init__(self, installation: str | None) -> None:
        self._topics = f"{installation}." if installation else ""
        self._groups = f"{installation}{SEPARATOR}" if installation else ""

    def topic(self, topic: str) -> str:
        return self._topics + topic

    def group(self, topic: str, group: str) -> str:
        return f"{self._groups}{group}.{topic}"

    def group_of(self, topic: str, name: str) -> str | None:
        """The group of a topic that is called `name` at the broker; None where it is none of this
        installation and topic."""
        if not (name.startswith(self._groups) and name.endswith(f".{topic}")):
            return None
        group = name.removeprefix(self._groups).removesuffix(f".{topic}")
        return None if SEPARATOR in group else group
