"""Choosing a model without labels: the rule, when it abstains, the command."""

import json
import math
from dataclasses import replace

import pytest

from lightly_collapse.cli import main
from lightly_collapse.report import CollapseReport, LayerRecord, select
from lightly_collapse.report.select import FITTED

SOURCE = {"model": "conv4", "objective": "SimCLR", "data": "digits"}
SETTINGS = {"collapse_rtol": 0.01, "lid_k": 20, "seed": 0}


def made(name, ratio=8.0, mlid=6.0, rank=20.0, width=0.02, rows=540.0, **source):
    """A report with intervals of a relative half width."""
    values = {"participation_ratio": ratio, "mlid": mlid, "effective_rank": rank}
    intervals = {n: [v * math.exp(-width), v * math.exp(width)] for n, v in values.items()}
    layer = LayerRecord("output", 32, {**values, "rows": rows}, {}, [2.0, 1.0], [], intervals)
    known = {**SOURCE, "checkpoint": f"/runs/{name}/last.ckpt"} | source
    return CollapseReport(name, [layer], [], dict(SETTINGS), known)


def test_scores_are_the_weighted_logarithms_from_their_mean():
    found = select([made("a"), made("b", ratio=12.0)], {"participation_ratio": 4.0})
    assert found.chosen == "b"
    half = 4 * math.log(1.5) / 2
    assert [c.name for c in found.ranking] == ["b", "a"]
    assert [c.score for c in found.ranking] == pytest.approx([half, -half])
    assert found.ranking[0].interval == pytest.approx((half - 0.08, half + 0.08))


def test_the_interval_of_a_score_adds_those_of_its_measures_in_squares():
    weights = {"participation_ratio": 3.0, "mlid": -4.0}
    found = select([made("a"), made("b", mlid=3.0)], weights)
    low, high = found.ranking[0].interval
    assert high - low == pytest.approx(2 * 0.02 * 5)


def test_a_lower_mlid_and_a_higher_effective_rank_are_better():
    assert select([made("a", mlid=5.0), made("b", mlid=6.0)]).chosen == "a"
    assert select([made("a", rank=15.0), made("b", rank=20.0)]).chosen == "b"


def test_the_score_is_that_of_the_ratio_of_both():
    found = select([made("a"), made("b", rank=30.0, mlid=9.0), made("c", rank=15.0)])
    scores = {c.name: c.score for c in found.ranking}
    assert scores["a"] == pytest.approx(scores["b"])
    points = FITTED["effective_rank"]
    assert scores["a"] - scores["c"] == pytest.approx(points * math.log(20 / 15))


def test_the_order_of_the_reports_does_not_matter():
    reports = [made("a", mlid=5.0), made("b", mlid=6.0), made("c", mlid=7.0)]
    assert select(reports) == select(reports[::-1])


@pytest.mark.parametrize(("difference", "chosen"), [(1.02, None), (1.06, "b")])
def test_no_answer_where_the_first_two_differ_by_less_than_their_intervals(difference, chosen):
    # Half widths of 0.02 each: the difference is known to 0.028.
    reports = [made("a"), made("b", ratio=8 * difference), made("c", ratio=4.0)]
    found = select(reports, {"participation_ratio": 1.0})
    assert found.chosen == chosen
    assert bool(found.abstained) == (chosen is None)
    if chosen is None:
        assert "b and a differ by less than their intervals" in found.abstained


def test_a_collapsed_model_is_excluded_however_good_its_score():
    collapsed = made("thin", ratio=50.0, mlid=1.0, rank=5.0)
    found = select([made("a", mlid=5.0), collapsed, made("b", mlid=6.0)])
    assert found.chosen == "a"
    assert list(found.excluded) == ["thin"]
    assert "below half the others', 20.0" in found.excluded["thin"]


def test_a_rank_whose_interval_reaches_half_the_others_is_not_called_collapsed():
    assert select([made("a"), made("b", rank=9.9)]).excluded == {}
    doubtful = made("b", rank=5.0)
    layer = replace(doubtful.output, doubtful={"effective_rank": "few rows"})
    assert select([made("a"), replace(doubtful, layers=[layer])]).excluded == {}


@pytest.mark.parametrize("known", [{"effective_rank": "few rows"}, None])
def test_a_quarter_of_the_others_rank_is_collapsed_whatever_its_interval(known):
    thin = made("b", rank=4.9, mlid=1.0)
    change = {"intervals": {}} if known is None else {"doubtful": known}
    found = select([made("a"), replace(thin, layers=[replace(thin.output, **change)])])
    assert found.chosen == "a"
    assert "4.9, is below a quarter of the others', 20.0" in found.excluded["b"]


def test_of_equal_rows_in_every_report_nothing_is_chosen():
    reports = [made("a"), made("b")]
    reports = [replace(r, layers=[replace(r.output, spectrum=[0.0, 0.0])]) for r in reports]
    found = select(reports)
    assert found.chosen is None
    assert found.abstained == "every candidate has collapsed"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (made("b", model="resnet18"), "architectures: conv4, resnet18"),
        (made("b", objective="BYOL"), "objectives: BYOL, SimCLR"),
        (made("b", objective=None), "objectives: None, SimCLR"),
    ],
)
def test_no_answer_across_architectures_or_objectives(other, said):
    found = select([made("a"), other])
    assert found.chosen is None
    assert said in found.abstained


def test_no_answer_where_widths_differ():
    other = made("b")
    other = replace(other, layers=[replace(other.output, dimensions=64)])
    assert "dimensions: 32, 64" in select([made("a"), other]).abstained


@pytest.mark.parametrize("change", ["unknown", "doubtful", "missing"])
def test_no_answer_where_an_interval_or_a_measure_cannot_be_had(change):
    report = made("b", mlid=3.0)
    layer = report.output
    layer = {
        "unknown": replace(layer, intervals={}),
        "doubtful": replace(layer, doubtful={"mlid": "too few rows"}),
        "missing": replace(layer, scalars=layer.scalars | {"mlid": None}),
    }[change]
    found = select([made("a"), replace(report, layers=[layer])])
    assert found.chosen is None
    assert "mLID" in found.abstained or "no 95 % interval" in found.abstained


def test_checkpoints_of_one_training_are_not_ranked_but_collapsed_ones_excluded():
    reports = [made("a", checkpoint="/run/1.ckpt"), made("b", mlid=3.0, checkpoint="/run/2.ckpt")]
    found = select(reports)
    assert found.chosen is None
    assert "one training" in found.abstained
    assert found.ranking == ()
    assert select(reports, one_run=False).chosen == "b"
    thin = made("c", rank=2.0, checkpoint="/run/3.ckpt")
    assert select([reports[0], thin]).chosen == "a"


def test_what_the_rule_was_not_tried_on_is_said():
    wide = [made("a"), made("b", mlid=3.0)]
    wide = [replace(r, layers=[replace(r.output, dimensions=2048)]) for r in wide]
    assert any("untried" in note for note in select(wide).notes)
    assert not any("untried" in note for note in select([made("a"), made("b")]).notes)


@pytest.mark.parametrize(
    ("reports", "said"),
    [
        ([made("a")], "two or more to choose from, got 1"),
        ([made("a"), made("a")], "different names or files, got a twice"),
        ([made("a"), made("b", data="cifar10")], "got data digits in a and cifar10 in b"),
        ([made("a"), made("b", rows=200.0)], "got rows 540.0 in a and 200.0 in b"),
        ([made("a"), replace(made("b"), settings=SETTINGS | {"lid_k": 5})], "lid_k 20 in a and 5"),
        ([made("a"), replace(made("b"), source={})], "must each name the model"),
    ],
)
def test_what_cannot_be_set_beside_each_other_is_refused(reports, said):
    with pytest.raises(ValueError, match=said):
        select(reports)


def saved(tmp_path, *reports):
    paths = []
    for i, report in enumerate(reports):
        paths.append(str(tmp_path / f"{i}.json"))
        report.save(paths[-1])
    return paths


def test_the_command_prints_the_answer_and_writes_it(tmp_path, capsys):
    paths = saved(tmp_path, made("a"), made("b", mlid=5.0), made("c", rank=3.0))
    assert main(["select", *paths, "--output", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Keep b."
    assert lines[1].startswith("1. b: +0.72 (")
    assert any(line.startswith("Excluded: c, its effective rank") for line in lines)
    record = json.loads((tmp_path / "out" / "selection.json").read_text())
    assert record["chosen"] == "b"
    assert [c["name"] for c in record["ranking"]] == ["b", "a"]
    assert list(record["excluded"]) == ["c"]


def test_reports_of_one_name_go_by_their_files(tmp_path, capsys):
    paths = saved(tmp_path, made("last"), made("last", mlid=5.0))
    assert main(["select", *paths, "--no-one-run"]) == 0
    assert capsys.readouterr().out.startswith(f"Keep {paths[1]}.")
    assert main(["select", *paths]) == 0
    assert capsys.readouterr().out.startswith("No answer: the candidates are checkpoints of one")


def test_a_report_of_another_version_is_one_line(tmp_path, capsys):
    paths = saved(tmp_path, made("a"), made("b"))
    text = (tmp_path / "1.json").read_text()
    (tmp_path / "1.json").write_text(text.replace("report 1", "report 9"))
    assert main(["select", *paths]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert (
        "its format is not 'lightly-collapse report 1', it is 'lightly-collapse report 9'" in error
    )
