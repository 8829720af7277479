"""Embeddings measured in one pass: from arrays, data sets and files, in groups, with intervals."""

import json
import math

import numpy as np
import pytest
import scipy
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightly_collapse import functional
from lightly_collapse.cli import main
from lightly_collapse.functional.intrinsic_dimension import mlid_corrected
from lightly_collapse.metrics import EmbeddingSketch
from lightly_collapse.report import CollapseReport
from lightly_collapse.report.embeddings import measure_embeddings
from lightly_collapse.report.intervals import (
    Interval,
    estimates_of,
    half_sample_interval,
    jackknife_interval,
    told_apart,
)

ROWS, WIDTH = 400, 6


@pytest.fixture(scope="module")
def z():
    g = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, WIDTH, generator=g) * torch.logspace(0, -1, WIDTH) + 1


def scalars(report, layer=0):
    return report.layers[layer].scalars


def test_values_are_those_of_the_functions(z):
    report = measure_embeddings(z, lid_k=10)
    out = report.output
    s = functional.singular_values(z.double(), center=True)
    assert out.scalars["rankme"] == pytest.approx(float(functional.rankme(z)), rel=1e-5)
    assert out.scalars["effective_rank"] == pytest.approx(
        float(functional.effective_rank(s)), rel=1e-5
    )
    mlid = functional.geometric_mean(functional.lid_mom(z, k=10))
    assert out.scalars["mlid"] == pytest.approx(float(mlid), rel=1e-5)
    assert out.scalars["two_nn"] == pytest.approx(float(functional.two_nn(z)), rel=1e-5)
    assert (out.scalars["rows"], out.dimensions, out.name) == (ROWS, WIDTH, "output")


def test_every_kind_of_source_gives_one_report(z, tmp_path):
    np.save(tmp_path / "z.npy", z.numpy())
    expected = measure_embeddings(z, name="z")
    data = TensorDataset(z, torch.zeros(ROWS))
    for source in (
        z.numpy(),
        tmp_path / "z.npy",
        str(tmp_path),
        data,
        DataLoader(data, batch_size=64),
        list(z),
    ):
        report = measure_embeddings(source, name="z")
        assert report.layers == expected.layers
        assert report.settings == expected.settings


def test_the_report_is_written_read_and_drawn(z, tmp_path):
    report = measure_embeddings(z)
    report.save(tmp_path / "measure.json")
    assert CollapseReport.load(tmp_path / "measure.json") == report
    report.to_html(tmp_path / "measure.html")
    assert "effective rank" in (tmp_path / "measure.html").read_text()
    assert "rankme" in json.loads((tmp_path / "measure.json").read_text())["layers"][0]["intervals"]


def test_groups_are_measured_by_themselves(z, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    group = np.where(np.arange(ROWS) % 4 == 0, "rare", "common")
    flat = z.clone()
    flat[::4, 3:] = 0  # the rare group has collapsed
    table = pa.table({"z": list(flat.numpy()), "source": group})
    pq.write_table(table, tmp_path / "z.parquet", row_group_size=70)
    report = measure_embeddings(tmp_path / "z.parquet", group_by="source")
    assert [r.name for r in report.layers] == ["output", "source=common", "source=rare"]
    assert [scalars(report, i)["rows"] for i in range(3)] == [ROWS, 300, 100]
    assert scalars(report, 1)["collapsed_dimensions"] == 0
    assert scalars(report, 2)["collapsed_dimensions"] == 3
    alone = measure_embeddings(flat[::4])
    for name in ("rankme", "participation_ratio", "mlid"):
        assert scalars(report, 2)[name] == scalars(alone)[name]


def test_too_many_groups(tmp_path):
    np.savez(tmp_path / "z.npz", z=np.ones((300, 2)), y=np.arange(300))
    with pytest.raises(ValueError, match="group_by must name a column of at most 256 different"):
        measure_embeddings(tmp_path / "z.npz", group_by="y")


def test_rows_left_out_are_counted_and_named(z, tmp_path):
    broken = z.clone()
    broken[[3, 200], 1] = torch.nan
    broken[310:320] = torch.inf
    np.save(tmp_path / "z.npy", broken.numpy())
    report = measure_embeddings(tmp_path / "z.npy")
    assert (scalars(report)["rows"], scalars(report)["dropped"]) == (ROWS - 12, 12)
    note = next(n for n in report.notes if "held NaN" in n)
    assert note.startswith("12 rows held NaN or inf")
    assert f"row 3 in {tmp_path / 'z.npy'}, 200 in" in note
    assert note.endswith("312 in " + str(tmp_path / "z.npy") + " and 7 more.")
    with pytest.raises(ValueError, match=r"at least one finite row, got none \(2 held NaN"):
        measure_embeddings(torch.full((2, 3), torch.nan))


def test_one_row_has_no_spectrum():
    rows = torch.tensor([[1.0, 2.0], [torch.nan, 1.0]])
    with pytest.raises(ValueError, match=r"two finite rows, got one \(1 held NaN"):
        measure_embeddings(rows)


def test_neighbours_in_all_rows(z):
    sampled = measure_embeddings(z, lid_size=100, lid_k=10)
    exact = measure_embeddings(z, lid_size=100, lid_k=10, neighbors="all")
    assert exact.layers[0].scalars["lid_rows"] == 100
    sketch = EmbeddingSketch(lid_size=100, lid_k=10)
    sketch.update(z, torch.arange(ROWS))
    every = functional.lid_mom(z.double(), k=10)
    mine = (torch.cdist(sketch.sample.double(), z.double()) == 0).nonzero()[:, 1]
    expected = functional.geometric_mean(every[mine])
    assert scalars(exact)["mlid"] == pytest.approx(float(expected), rel=1e-5)
    assert scalars(exact)["mlid"] != scalars(sampled)["mlid"]
    assert scalars(exact)["two_nn"] == scalars(sampled)["two_nn"]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"engine": "spark"}, "engine must be one of local, ray, got 'spark'"),
        ({"neighbors": "some"}, "neighbors must be one of sample, all, got 'some'"),
        ({"engine": "ray"}, "engine ray needs a source of files, got Tensor"),
        ({"column": "z"}, "need a source of files with columns"),
        ({"blocks": 0}, "blocks must be at least 1, got 0"),
        ({"rtol": 2.0}, "rtol must be between 0 and 1, got 2"),
    ],
)
def test_wrong_arguments(z, keywords, message):
    with pytest.raises(ValueError, match=message):
        measure_embeddings(z, **keywords)


def test_sources_that_are_no_rows(z):
    for source, message in (
        (torch.zeros(3), r"must be \(rows, dimensions\), got shape \(3,\)"),
        (iter(z), "got an iterator"),
        ([torch.zeros(3), torch.zeros(4)], "rows of one width, got 3 and 4"),
        ([torch.zeros(2, 2, 2)], "rows or batches of rows"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_embeddings(source)


def test_jackknife_of_a_mean_is_students_interval():
    x = np.random.default_rng(0).standard_normal(20) + 3
    left_out = [float(np.delete(x, i).mean()) for i in range(20)]
    low, high = jackknife_interval(float(x.mean()), left_out)
    half = 2.0930240544 * x.std(ddof=1) / 20**0.5
    assert low == pytest.approx(x.mean() - half, rel=1e-9)
    assert high == pytest.approx(x.mean() + half, rel=1e-9)


def test_jackknife_takes_the_bias_of_order_one_over_n_away():
    x = np.random.default_rng(0).standard_normal(12)
    left_out = [float(np.delete(x, i).var()) for i in range(12)]
    low, high = jackknife_interval(float(x.var()), left_out)
    assert (low + high) / 2 == pytest.approx(x.var(ddof=1), rel=1e-9)


def test_jackknife_where_there_is_none():
    assert jackknife_interval(1.0, [1.0]) is None
    assert jackknife_interval(1.0, [1.0, float("nan")]) is None
    assert jackknife_interval(1.0, [1.0, 0.0], logarithmic=True) is None
    assert Interval(1, 4).middle(logarithmic=True) == 2
    assert Interval(1, 4).middle(logarithmic=False) == 2.5


@pytest.mark.parametrize(("rows", "is_known"), [(192, False), (200, False), (1600, True)])
def test_an_interval_of_a_count_contains_it_or_there_is_none(rows, is_known):
    """Without a block of 10 of 192 or 200 rows, fewer than 192 directions are left to count."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(rows, 192, generator=g) * torch.logspace(0, -6, 192)
    out = measure_embeddings(z).output
    count, interval = out.scalars["collapsed_dimensions"], out.intervals.get("collapsed_dimensions")
    assert 110 < count < 140
    assert (interval is not None) == is_known
    if interval is not None:
        assert interval[0] <= count <= interval[1]


def test_every_scalar_has_an_interval_about_it(z):
    report = measure_embeddings(z)
    out = report.output
    names = set(out.scalars) - {"rows", "dropped", "lid_rows", "lid_k"}
    assert set(out.intervals) == names
    for name in names:
        low, high = out.intervals[name]
        assert low <= high
        assert low - 0.2 * abs(low) <= out.scalars[name] <= high + 0.2 * abs(high)
    assert not measure_embeddings(z, blocks=1).output.intervals.keys() & {"rankme", "alpha_req"}


def test_uniformity_without_a_block_is_that_of_the_others(z):
    sketch = EmbeddingSketch(lid_size=ROWS)
    sketch.update(z)
    x = sketch.sample
    left_out = [
        float(functional.uniformity(x[torch.arange(ROWS) % 20 != i].double())) for i in range(20)
    ]
    values = {name: float("nan") for name in ("mlid", "two_nn")}
    value = float(functional.uniformity(x.double()))
    found, _ = estimates_of(
        sketch,
        values
        | {"uniformity": value}
        | dict.fromkeys(
            (
                "rankme",
                "effective_rank",
                "stable_rank",
                "participation_ratio",
                "nesum",
                "condition_number",
                "alpha_req",
                "collapsed_dimensions",
            ),
            float("nan"),
        ),
    )
    assert found["uniformity"] == pytest.approx(jackknife_interval(value, left_out), rel=1e-6)


def expected_mlid_interval(sketch, k):
    """From the definition: neighbours sought anew in both halves of every split."""

    def mlid(z):
        return mlid_corrected(float(functional.geometric_mean(functional.lid_mom(z, k=k))), k)

    x = sketch.sample
    halves = []
    for signs in scipy.linalg.hadamard(32)[1:]:
        one = torch.tensor([signs[i % 32] > 0 for i in range(len(x))])
        halves.append((mlid(x[one]), mlid(x[~one])))
    value = mlid_corrected(sketch.compute().scalars["mlid"], k)
    square = sum(math.log(a / b) ** 2 / 4 for a, b in halves) / 31
    half = scipy.stats.t.ppf(0.975, 31) * square**0.5
    return value * math.exp(-half), value * math.exp(half)


def test_mlid_of_halves_is_that_of_their_own_rows(z):
    sketch = EmbeddingSketch(lid_size=ROWS, lid_k=8)
    sketch.update(z, torch.arange(ROWS))
    found = estimates_of(sketch, sketch.compute().scalars)[0]["mlid"]
    assert found == pytest.approx(expected_mlid_interval(sketch, 8), rel=1e-6)


def test_mlid_where_a_half_holds_none_of_the_known_neighbours():
    """The parts 0, 2 and 4 are in one place with one row of part 1, which splits leave alone."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(ROWS, WIDTH, generator=g)
    first = EmbeddingSketch(lid_size=ROWS, lid_k=4)
    first.update(z, torch.arange(ROWS))
    order = (first.sample[:, None] == z).all(dim=2).int().argmax(dim=1)  # by ascending draw
    parts = torch.arange(ROWS) % 32
    z[order[(parts == 0) | (parts == 2) | (parts == 4)]] *= 1e-3
    z[order[1]] *= 1e-3
    sketch = EmbeddingSketch(lid_size=ROWS, lid_k=4)
    sketch.update(z, torch.arange(ROWS))
    _, rows = sketch.neighbors(4)
    assert set((rows[1] % 32).tolist()) == {0, 2, 4}
    found = estimates_of(sketch, sketch.compute().scalars)[0]["mlid"]
    assert found == pytest.approx(expected_mlid_interval(sketch, 4), rel=1e-6)


@pytest.mark.parametrize(("rows", "is_known"), [(12, False), (40, False), (60, True)])
def test_mlid_has_no_interval_where_a_half_is_too_small(z, rows, is_known):
    sketch = EmbeddingSketch(lid_size=ROWS, lid_k=20)
    sketch.update(z[:rows])
    found = estimates_of(sketch, sketch.compute().scalars)[0]
    assert ("mlid" in found) == is_known
    assert ("two_nn" in found) == (rows >= 40)  # two neighbours are enough


def test_half_samples_of_a_mean_are_the_variance_between_parts():
    """Balanced splits: the mean square of a contrast is the variance of 32 parts' means."""
    g = torch.Generator().manual_seed(0)
    parts = torch.randn(32, generator=g, dtype=torch.float64)
    splits = torch.from_numpy(scipy.linalg.hadamard(32)[1:] > 0)
    halves = [(float(parts[s].mean().exp()), float(parts[~s].mean().exp())) for s in splits]
    low, high = half_sample_interval(float(parts.mean().exp()), halves)
    half = scipy.stats.t.ppf(0.975, 31) * float(parts.std()) / 32**0.5
    assert math.log(high / low) / 2 == pytest.approx(half)
    assert math.sqrt(low * high) == pytest.approx(float(parts.mean().exp()))
    assert half_sample_interval(1.0, [(1.0, 0.0)]) is None
    assert half_sample_interval(1.0, [(1.0, float("nan"))]) is None


def test_intervals_that_do_not_hold_are_named(z):
    few = measure_embeddings(z[:40])
    note = next(n for n in few.notes if "95 % intervals" in n)
    assert "effective rank" in note
    assert "fewer than 8 rows a dimension" in note
    assert few.output.interval("effective_rank").startswith("(")
    assert "effective rank" not in "".join(measure_embeddings(z).notes)
    apart = z * torch.tensor([9.0, 4, 2, 1, 0.3, 0.1])
    assert not [n for n in measure_embeddings(apart).notes if "95 %" in n]


def test_two_numbers_are_told_apart_by_the_interval_of_their_difference():
    # Both intervals reach into the other, but that of the difference, 1.4, does not reach zero.
    assert told_apart("alpha_req", [0, 2], [1.5, 3.5])
    assert not told_apart("alpha_req", [0, 2], [1.3, 3.3])
    assert told_apart("mlid", [1, 4], [8.1, 32.4]) is told_apart("mlid", [8.1, 32.4], [1, 4])


def test_labels_give_accuracies(tmp_path):
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(ROWS) % 2
    z = torch.randn(ROWS, WIDTH, generator=g) + 6 * labels[:, None]
    np.savez(tmp_path / "z.npz", z=z.numpy(), y=labels.numpy(), noise=np.arange(ROWS) // 2 % 2)
    known = measure_embeddings(tmp_path / "z.npz", labels_column="y")
    assert min(known.accuracy.values()) > 0.95
    noise = measure_embeddings(tmp_path / "z.npz", labels_column="noise")
    assert max(noise.accuracy.values()) < 0.65
    np.savez(tmp_path / "one.npz", z=z.numpy(), y=np.zeros(ROWS))
    with pytest.raises(ValueError, match="labels_column must hold two classes or more"):
        measure_embeddings(tmp_path / "one.npz", labels_column="y")


def test_missing_labels_and_groups_are_counted(tmp_path):
    """Integers with missing values keep their names, whichever part of the file has any."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    g = torch.Generator().manual_seed(0)
    z = torch.randn(ROWS, WIDTH, generator=g)
    y = [None if i < 40 and i % 4 == 0 else i % 2 for i in range(ROWS)]
    table = pa.table({"z": list(z.numpy()), "y": pa.array(y, pa.int32())})
    pq.write_table(table, tmp_path / "z.parquet", row_group_size=100)
    report = measure_embeddings(tmp_path / "z.parquet", labels_column="y", group_by="y", blocks=1)
    assert [layer.name for layer in report.layers[1:]] == ["y=(missing)", "y=0", "y=1"]
    assert [scalars(report, i)["rows"] for i in (1, 2, 3)] == [10, 190, 200]
    assert "10 rows have no label and no part in the accuracies." in report.notes
    np.savez(tmp_path / "z.npz", z=z.numpy(), y=np.array([np.nan if v is None else v for v in y]))
    floats = measure_embeddings(tmp_path / "z.npz", labels_column="y", blocks=1)
    assert floats.accuracy == report.accuracy


def test_rows_too_wide_for_this_machine():
    with pytest.raises(ValueError, match=r"embeddings of 1000000 dimensions need .* GiB of memory"):
        measure_embeddings(torch.zeros(2, 10**6))


def test_command_writes_the_report(z, tmp_path, capsys):
    np.savez(tmp_path / "z.npz", z=z.numpy(), source=np.arange(ROWS) % 2)
    words = ["measure", "--embeddings", str(tmp_path / "z.npz"), "--output", str(tmp_path / "out")]
    assert main([*words, "--group-by", "source"]) == 0
    assert "source=1" in capsys.readouterr().out
    report = CollapseReport.load(tmp_path / "out" / "measure.json")
    assert [r.name for r in report.layers] == ["output", "source=0", "source=1"]
    assert (tmp_path / "out" / "measure.html").exists()
    assert (tmp_path / "out" / "spectrum.png").exists()


def test_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    (tmp_path / "z.npy").write_bytes(b"no array")
    for words, message in (
        (["--embeddings", str(tmp_path / "z.npy")], "z.npy cannot be read"),
        (["--embeddings", str(tmp_path / "no.npy")], "no.npy does not exist"),
        (["--embeddings", "z.npy", "--arch", "resnet18"], "unrecognized arguments: --arch"),
        (["--arch", "resnet18"], "give --data, a folder of images"),
        (
            ["--arch", "resnet18", "--data", "digits", "--group-by", "y"],
            "unrecognized arguments: --group-by",
        ),
    ):
        assert main(["measure", *words, "--output", str(tmp_path / "out")]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert message in lines[-1]
        assert len([line for line in lines if "error" in line]) == 1
