"""The alarm: each kind at its threshold, once, and silence on healthy readings."""

import pytest

from lightly_collapse.tracking import CollapseAlarm, CollapseError


def reading(rank, layer="backbone", rows=100.0, dropped=0.0):
    values = {"effective_rank": rank, "rows": rows, "dropped": dropped}
    return {f"collapse/{layer}/{name}": value for name, value in values.items()}


def kinds(alarm, ranks):
    warnings = [alarm.update(step, reading(rank)) for step, rank in enumerate(ranks)]
    return [w and w.kind for w in warnings]


def test_healthy_runs_say_nothing():
    assert kinds(CollapseAlarm(), [20, 25, 30, 28, 31, 29, 27, 30]) == [None] * 8
    assert kinds(CollapseAlarm(), [40, 15, 18, 20, 25, 30]) == [None] * 6  # random weights first
    assert kinds(CollapseAlarm(), [30, 30, 30, 5, 30, 30]) == [None] * 6  # one reading alone


@pytest.mark.parametrize("rank", [1.0, 3.0, float("nan")])
def test_complete_collapse_is_said_once_and_again_after_a_recovery(rank):
    alarm = CollapseAlarm()
    assert kinds(alarm, [30, rank, rank, 30, rank]) == [None, "collapse", None, None, "collapse"]
    assert kinds(CollapseAlarm(), [3.01]) == [None]


def test_a_falling_rank():
    alarm = CollapseAlarm(rank_fraction=0.5, smoothing=3)
    # Medians of three: 40 until the second 20, which is half of it.
    assert kinds(alarm, [40, 40, 40, 20, 20, 20]) == [None] * 4 + ["falling_rank", None]
    alarm = CollapseAlarm(smoothing=1)
    assert alarm.update(1, reading(40)) is None
    found = alarm.update(2, reading(10))
    assert (found.kind, found.layer, found.step) == ("falling_rank", "backbone", 2)
    assert (found.value, found.threshold) == (0.25, 0.35)
    assert "rank is 10.0, 25% of its highest" in str(found)
    assert "weight decay" in str(found)


def embedding(ranks):
    alarm = CollapseAlarm(smoothing=1)
    found = [alarm.update(i, reading(30) | reading(r, "head")) for i, r in enumerate(ranks)]
    return [w and w.kind for w in found]


def test_a_representation_may_lose_less_of_its_rank_than_an_embedding():
    assert kinds(CollapseAlarm(smoothing=1), [100, 35.1, 35]) == [None, None, "falling_rank"]
    assert embedding([100, 35, 15.1, 15]) == [None, None, None, "falling_rank"]
    alarm = CollapseAlarm(smoothing=1, embedding_fraction=0.4)
    assert alarm.update(1, reading(30) | reading(100, "head")) is None
    found = alarm.update(2, reading(30) | reading(40, "head"))
    assert (found.layer, found.value, found.threshold) == ("head", 0.4, 0.4)


def test_a_fall_to_a_quarter_counts_in_an_embedding_where_few_dimensions_are_left():
    assert embedding([60, 15, 12.1]) == [None] * 3
    assert embedding([60, 12]) == [None, "falling_rank"]


def spread(uniformity, rank=30.0, layer="head"):
    """Readings of a sound representation and of an embedding."""
    values = reading(rank, layer) | {f"collapse/{layer}/uniformity": uniformity}
    return reading(30.0) | values if layer == "head" else values


def test_rows_that_point_in_one_direction():
    assert CollapseAlarm().update(1, spread(-0.051)) is None
    found = CollapseAlarm().update(1, spread(-0.05))
    assert (found.kind, found.value, found.threshold) == ("collapse", -0.05, -0.05)
    assert "one direction" in str(found)
    assert "stop-gradient" in str(found)


def test_a_spread_that_falls_faster_than_the_rank():
    alarm = CollapseAlarm(smoothing=1, spread_fraction=0.25)
    assert alarm.update(1, spread(-2.0)) is None
    assert alarm.update(2, spread(-0.51)) is None
    found = alarm.update(3, spread(-0.5))
    assert (found.kind, found.value, found.threshold) == ("collapse", 0.25, 0.25)
    # With half of the rank gone, the spread may be half of that.
    halved = CollapseAlarm(smoothing=1, spread_fraction=0.25)
    assert halved.update(1, spread(-2.0)) is None
    assert halved.update(2, spread(-0.26, rank=15.0)) is None
    off = CollapseAlarm(smoothing=1, spread_fraction=0)
    assert off.update(1, spread(-2.0)) is None
    assert off.update(2, spread(-0.06)) is None


def test_directions_of_a_representation_count_only_where_it_has_lost_dimensions():
    alarm = CollapseAlarm(smoothing=1)
    assert alarm.update(1, spread(-2.0, layer="backbone")) is None
    assert alarm.update(2, spread(-0.01, layer="backbone")) is None
    assert alarm.update(3, spread(-0.01, rank=16.0, layer="backbone")) is None
    assert alarm.update(4, spread(-0.01, rank=15.0, layer="backbone")).kind == "collapse"


def test_a_layer_whose_uniformity_is_not_known_is_judged_by_its_rank():
    alarm = CollapseAlarm(smoothing=1)
    assert alarm.update(1, spread(float("nan"))) is None
    assert alarm.update(2, spread(float("nan"), rank=4.0)).kind == "falling_rank"


def test_layers_within_another_are_not_judged_by_their_rank():
    alarm = CollapseAlarm()
    assert alarm.update(1, reading(30) | reading(1.0, "backbone.conv1")) is None
    assert alarm.update(2, reading(30) | reading(1.0, "backbone2")).layer == "backbone2"
    assert CollapseAlarm().update(1, reading(1.0, "backbone.conv1")).layer == "backbone.conv1"


def unused(collapsed, dimensions=80.0, rows=900.0, layer="backbone"):
    """Readings of a layer that has had few directions from the start, too many for a point."""
    values = {"collapsed_dimensions": collapsed, "dimensions": dimensions, "rows": rows}
    return {f"collapse/{layer}/{n}": v for n, v in (values | {"effective_rank": 9.0}).items()}


def test_a_representation_of_few_dimensions_from_the_first_reading():
    def said(rank, dimensions=20.0, **settings):
        alarm = CollapseAlarm(**settings)
        values = unused(8.0, dimensions) | {"collapse/backbone/effective_rank": rank}
        return [alarm.update(step, values) for step in range(3)]

    assert said(5.1) == [None] * 3
    assert said(5.0, dimensions=19.0) == [None] * 3
    assert said(5.0, least_rank=4.0) == [None] * 3
    found = said(5.0)
    assert found[:2] == [None, None]
    assert (found[2].kind, found[2].value, found[2].threshold) == ("lost_dimensions", 5.0, 5.0)
    assert "its effective rank is 5.0 of 20 that 900 rows could fill" in str(found[2])


def test_a_representation_that_never_used_its_dimensions():
    alarm = CollapseAlarm(smoothing=3)
    found = [alarm.update(step, unused(74.0)) for step in range(5)]
    assert [w and w.kind for w in found] == [None, None, "lost_dimensions", None, None]
    assert found[2].value == pytest.approx(74 / 80)
    assert "92% of those that 900 rows could fill" in str(found[2])
    assert "dead" in str(found[2])
    alarm = CollapseAlarm(smoothing=1)
    assert alarm.update(1, unused(57.0)) is None  # 71 %
    assert alarm.update(2, unused(58.0)).kind == "lost_dimensions"
    assert CollapseAlarm(smoothing=1, lost_fraction=1.0).update(1, unused(79.0)) is None


def test_dimensions_that_the_rows_cannot_fill_are_not_lost():
    alarm = CollapseAlarm(smoothing=1)
    assert alarm.update(1, unused(2048.0 - 99, dimensions=2048.0, rows=100.0)) is None
    found = alarm.update(2, unused(2048.0 - 20, dimensions=2048.0, rows=100.0))
    assert found.value == pytest.approx(79 / 99)


def test_an_embedding_may_leave_dimensions_unused():
    readings = unused(10.0) | unused(70.0, layer="head")
    assert CollapseAlarm(smoothing=1).update(1, readings) is None


def test_without_the_representation_the_other_layers_are_no_representation():
    alarm = CollapseAlarm(smoothing=1)
    assert alarm.update(1, unused(70.0, layer="head"), representation="backbone") is None
    assert CollapseAlarm(smoothing=1).update(1, unused(70.0, layer="head")) is not None


def test_class_and_patch_tokens_are_representations():
    for part in ("cls", "patch"):
        readings = unused(10.0, layer="backbone.cls") | unused(10.0, layer="backbone.patch")
        readings |= unused(70.0, layer=f"backbone.{part}")
        found = CollapseAlarm(smoothing=1).update(1, readings, representation="backbone")
        assert (found.kind, found.layer) == ("lost_dimensions", f"backbone.{part}")


def test_a_layer_of_few_dimensions_is_said_to_be_narrow():
    values = reading(1.9, "head") | {"collapse/head/dimensions": 2.0}
    assert "too narrow" in str(CollapseAlarm().update(1, values))


def test_a_lost_layer():
    alarm = CollapseAlarm(patience=2)
    both = reading(30) | reading(30, "a/b.c")
    assert alarm.update(1, both) is None
    assert alarm.update(2, reading(30)) is None
    found = alarm.update(3, reading(30))
    assert (found.kind, found.layer) == ("lost_layer", "a/b.c")
    assert alarm.update(4, reading(30)) is None
    assert alarm.update(5, both) is None


def test_rows_that_are_not_finite():
    alarm = CollapseAlarm(dropped_fraction=0.1)
    assert alarm.update(1, reading(30, rows=90, dropped=10)) is None
    assert alarm.update(2, reading(30, rows=89, dropped=11)).kind == "not_finite"
    nothing_left = CollapseAlarm().update(1, reading(float("nan"), rows=0, dropped=10))
    assert nothing_left.kind == "not_finite"
    assert CollapseAlarm().update(1, {"loss": 0.1, "collapse/x": 1.0}) is None


def test_raise_on_alarm():
    with pytest.raises(CollapseError, match="has collapsed") as error:
        CollapseAlarm(raise_on_alarm=True).update(7, reading(1.0))
    assert error.value.__cause__.kind == "collapse"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("complete_rank", 0.5),
        ("rank_fraction", 1.0),
        ("embedding_fraction", 1.0),
        ("dropped_fraction", -0.1),
        ("smoothing", 0),
        ("patience", 0),
        ("least_spread", -0.1),
        ("few_dimensions", -1.0),
        ("least_rank", -1.0),
        ("few_fraction", 1.0),
        ("spread_fraction", 1.0),
        ("lost_fraction", 0.0),
    ],
)
def test_bad_arguments(name, value):
    with pytest.raises(ValueError, match=f"{name} must .*, got {value}"):
        CollapseAlarm(**{name: value})
