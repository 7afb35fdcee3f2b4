from heliotrope.v1.recommendation_pb2 import Contribution, ContributionKind
from heliotrope_bench.explanation import in_words

DEEDS = {"e1": "rated Star Wars 5★", "e2": "viewed Alien", "e3": "disliked Evita"}


def contribution(kind: str, value: float, event_id: str = "") -> Contribution:
    return Contribution(kind=ContributionKind.Value(f"CONTRIBUTION_KIND_{kind}"), value=value, event_id=event_id)


def test_the_strongest_events_are_the_reason() -> None:
    parts = [
        contribution("INTERCEPT", 9.0),
        contribution("ITEM_BIAS", 3.0),
        contribution("EVENT", 0.2, "e2"),
        contribution("EVENT", 0.81, "e1"),
    ]
    assert in_words(parts, DEEDS) == "because you rated Star Wars 5★ (+0.81) and viewed Alien (+0.20)"


def test_what_weighs_against_is_not_hidden() -> None:
    parts = [contribution("EVENT", 0.8, "e1"), contribution("EVENT", -0.4, "e3")]
    assert in_words(parts, DEEDS).endswith(", although you disliked Evita (-0.40)")
    assert "although" not in in_words([parts[0], contribution("EVENT", -0.1, "e3")], DEEDS)


def test_without_helping_events_the_standing_terms_speak() -> None:
    parts = [
        contribution("INTERCEPT", -2.0),
        contribution("PRIOR", 0.19),
        contribution("ITEM_BIAS", 0.25),
        contribution("EVENT", -0.5, "e3"),
    ]
    assert in_words(parts, DEEDS) == "liked by many (+0.25) and close to the general taste (+0.19)"
