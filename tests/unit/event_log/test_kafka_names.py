"""Names at a broker: no two installations have one in common."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.common.settings import Settings
from services.event_log import topics
from services.event_log.kafka_names import KafkaNames
from services.event_log.limits import NAME

MOST = 249  # characters of a topic's name that Kafka takes
NAMED = {name: value for name, value in vars(topics).items() if name.isupper()}
TOPICS = [value for value in NAMED.values() if isinstance(value, str)]
# Few letters, so that names are the beginnings and ends of others.
PARTS = st.text("ab.-", max_size=6).map(lambda text: f"a{text}")
INSTALLATIONS = st.none() | PARTS.map(lambda text: text.replace(".", "_"))


@given(INSTALLATIONS, INSTALLATIONS, st.sampled_from(TOPICS), PARTS)
def test_a_group_is_found_by_its_own_installation_alone(
    one: str | None, other: str | None, topic: str, group: str
) -> None:
    name = KafkaNames(one).group(topic, group)
    assert KafkaNames(one).group_of(topic, name) == group
    if one != other:
        assert KafkaNames(other).group_of(topic, name) is None


def test_no_topic_is_the_end_of_another_so_none_belongs_to_two_installations() -> None:
    assert len(TOPICS) >= 4
    ends = [(a, b) for a in TOPICS for b in TOPICS if a != b and a.endswith(b)]
    assert ends == []


def test_the_longest_names_fit() -> None:
    installation = Settings(installation="a" * 48).installation
    longest = KafkaNames(installation).topic("t" * 200)
    assert NAME.fullmatch("t" * 200)
    assert not NAME.fullmatch("t" * 201)
    assert len(longest) == MOST


def test_without_a_name_topics_and_groups_are_called_as_ever() -> None:
    names = KafkaNames(None)
    assert names.topic(topics.FEEDBACK) == "feedback"
    assert names.group(topics.FEEDBACK, "feature-updater") == "feature-updater.feedback"
