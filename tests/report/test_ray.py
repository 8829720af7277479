"""Embeddings on a local Ray cluster: the numbers of one process, whatever the partition."""

import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from lightly_collapse.metrics import EmbeddingSketch
from lightly_collapse.report import ray_engine
from lightly_collapse.report.embeddings import measure_embeddings

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytest.importorskip("ray.data", reason="Ray Data is not installed")
pd = pytest.importorskip("pandas", reason="pandas is not installed")
CollapseSketch = pytest.importorskip("lightly_collapse.report.ray").CollapseSketch

ROWS, WIDTH = 600, 5
SETTINGS = {"rtol": 1e-2, "lid_k": 8, "lid_size": 200}


@pytest.fixture(scope="module")
def cluster():
    with pytest.importorskip("tests.ray_cluster").ray_cluster(200_000_000):
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.default_hash_shuffle_parallelism = 2
        yield


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    z = (rng.standard_normal((ROWS, WIDTH)) * np.logspace(0, -1, WIDTH) + 1).astype(np.float32)
    z[7] = np.nan
    return {"embedding": z, "source": np.arange(ROWS) % 3, "row": np.arange(ROWS)}


def expected(z):
    sketch = EmbeddingSketch(**SETTINGS)
    sketch.update(torch.from_numpy(z))
    return sketch.compute().scalars


def check(found, values):
    assert found.keys() == values.keys()
    for name, value in values.items():
        assert found[name] == pytest.approx(value, rel=1e-9, nan_ok=True), name


@pytest.mark.parametrize(
    ("blocks", "column"),
    [(4, "data"), *(pytest.param(*c, marks=pytest.mark.slow) for c in ((1, "data"), (60, "z")))],
)
def test_aggregate_is_the_sketch_of_all_rows(cluster, table, blocks, column):
    z = table["embedding"]
    lists = pd.DataFrame({"z": list(z)})
    ds = ray.data.from_numpy(z) if column == "data" else ray.data.from_pandas(lists)
    found = ds.repartition(blocks).aggregate(CollapseSketch(column, **SETTINGS))
    check(found["collapse"], expected(z))


@pytest.mark.slow
def test_groups(cluster, table):
    lists = {**table, "embedding": list(table["embedding"])}
    ds = ray.data.from_pandas(pd.DataFrame(lists)).repartition(5)
    sketch = CollapseSketch("embedding", name="c", **SETTINGS)
    groups = {row["source"]: row["c"] for row in ds.groupby("source").aggregate(sketch).take_all()}
    assert sorted(groups) == [0, 1, 2]
    for group, found in groups.items():
        check(found, expected(table["embedding"][table["source"] == group]))


@pytest.mark.slow
def test_example_of_the_guide(cluster, table, capsys):
    page = Path(__file__).parents[2] / "docs" / "guide" / "scale.md"
    if not page.is_file():
        pytest.skip("not run from a checkout")
    (block,) = re.findall(r"```py\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    good = [row for row in range(ROWS) if row != 7]  # without the row of NaN
    lists = {"embedding": list(table["embedding"][good]), "source": table["source"][good]}
    names = {"ds": ray.data.from_pandas(pd.DataFrame(lists))}
    exec(block, names)
    assert float(capsys.readouterr().out.split()[0]) == names["found"]["effective_rank"]
    assert len(names["by_source"]) == 3


@pytest.mark.slow
def test_wrong_arguments(cluster, table):
    ds = ray.data.from_numpy(table["embedding"])
    with pytest.raises(ValueError, match="no such column in the dataset"):
        ds.aggregate(CollapseSketch("embeding", **SETTINGS))
    with pytest.raises(ValueError, match="size must be at least 2, got 1"):
        CollapseSketch("embedding", lid_size=1)


@pytest.fixture(scope="module")
def files(table, tmp_path_factory):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path_factory.mktemp("files")
    for part in range(3):
        mine = slice(part * 200, (part + 1) * 200)
        columns = {
            "z": list(table["embedding"][mine]),
            "source": [f"s{i}" for i in table["source"][mine]],
        }
        pq.write_table(pa.table(columns), folder / f"{part}.parquet", row_group_size=30)
    return folder


@pytest.mark.parametrize("neighbors", ["all", pytest.param("sample", marks=pytest.mark.slow)])
def test_engines_give_one_report(cluster, files, neighbors):
    keywords = {"group_by": "source", "neighbors": neighbors, **SETTINGS}
    local = measure_embeddings(files, **keywords)
    distributed = measure_embeddings(files, engine="ray", **keywords)
    assert distributed.notes == local.notes
    assert [layer.name for layer in distributed.layers] == [layer.name for layer in local.layers]
    for one, other in zip(distributed.layers, local.layers, strict=True):
        # Reports hold six digits: a number on the edge may be rounded either way.
        assert one.scalars == pytest.approx(other.scalars, rel=2e-6)
        assert one.spectrum == pytest.approx(other.spectrum, rel=2e-6)
        assert one.lid == pytest.approx(other.lid, rel=2e-6)
        for name, ends in one.intervals.items():
            assert ends == pytest.approx(other.intervals[name], rel=2e-6)


def test_a_damaged_file_is_named(cluster, files, tmp_path):
    whole = (files / "0.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole)
    middle = bytearray(whole)
    middle[4:1500] = bytes(1496)
    (tmp_path / "b.parquet").write_bytes(bytes(middle))
    with pytest.raises(ValueError, match=r"b\.parquet cannot be read") as raised:
        measure_embeddings(tmp_path, engine="ray")
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_a_killed_worker_changes_no_number(cluster, files, tmp_path, monkeypatch):
    local = measure_embeddings(files, **SETTINGS)
    mark = tmp_path / "killed"
    whole = ray_engine._total

    def dying(source, piece, settings):
        if piece.first >= 200 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(source, piece, settings)

    monkeypatch.setattr(ray_engine, "_total", dying)
    found = measure_embeddings(files, engine="ray", **SETTINGS)
    assert mark.exists()
    assert found.output.scalars == pytest.approx(local.output.scalars, rel=2e-6)
