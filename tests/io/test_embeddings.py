"""Every format gives the rows that were written, in order, or says in one line why not."""

import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from lightly_collapse.io import embeddings
from lightly_collapse.io.embeddings import EmbeddingSource
from lightly_collapse.io.embeddings_files import find_files

ROWS, WIDTH = 57, 6
Z = np.random.default_rng(0).standard_normal((ROWS, WIDTH))
LABELS = np.arange(ROWS) % 5
GROUPS = np.where(np.arange(ROWS) % 3 == 0, "a", "b")


def npz(path, z, y, g):
    np.savez(path, embedding=z, y=y, source=g)


def npz_compressed(path, z, y, g):
    np.savez_compressed(path, embedding=z, y=y, source=g)


def parquet(path, z, y, g, fixed=False):
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    kind = pa.from_numpy_dtype(z.dtype)
    flat = pa.array(z.reshape(-1))
    if fixed:
        column = pa.FixedSizeListArray.from_arrays(flat, z.shape[1])
    else:
        column = pa.array(list(z), type=pa.list_(kind))
    table = pa.table({"source": pa.array(list(g)), "y": pa.array(y), "embedding": column})
    pq.write_table(table, path, row_group_size=10)


def parquet_fixed(path, z, y, g):
    parquet(path, z, y, g, fixed=True)


def torch_dictionary(path, z, y, g):
    groups = torch.from_numpy((g == "a").astype(np.int64))
    torch.save({"embedding": torch.from_numpy(z), "y": torch.from_numpy(y), "source": groups}, path)


def safetensors(path, z, y, g):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({"embedding": z, "y": y, "source": (g == "a").astype(np.int64)}, path)


def zarr(path, z, y, g):
    store = pytest.importorskip("zarr").open_group(str(path), mode="w")
    create = store.create_array if hasattr(store, "create_array") else store.create_dataset
    for name, array in (("embedding", z), ("y", y), ("source", (g == "a").astype(np.int64))):
        chunks = (7, *array.shape[1:])
        create(name, shape=array.shape, dtype=array.dtype, chunks=chunks)[:] = array


def lance(path, z, y, g):
    pa = pytest.importorskip("pyarrow")
    column = pa.FixedSizeListArray.from_arrays(pa.array(z.reshape(-1)), z.shape[1])
    table = pa.table({"embedding": column, "y": pa.array(y), "source": pa.array(list(g))})
    pytest.importorskip("lance").write_dataset(table, str(path))


def webdataset(path, z, y, g):
    with tarfile.open(path, "w") as archive:
        for i, row in enumerate(z):
            vector = io.BytesIO()
            np.save(vector, row)
            for extension, data in (
                ("embedding.npy", vector.getvalue()),
                ("y", str(y[i]).encode()),
                ("json", json.dumps({"source": str(g[i])}).encode()),
                ("jpg", b"an image"),
            ):
                info = tarfile.TarInfo(f"folder/{i:06d}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))


WRITERS = {
    "npz": npz,
    "npz compressed": npz_compressed,
    "parquet": parquet,
    "parquet fixed": parquet_fixed,
    "pt": torch_dictionary,
    "safetensors": safetensors,
    "zarr": zarr,
    "lance": lance,
    "tar": webdataset,
}


def everything(source):
    chunks = list(source.chunks())
    rows = torch.cat([c.rows for c in chunks])
    numbers = torch.cat([c.numbers for c in chunks])

    def beside(name):
        parts = [getattr(c, name) for c in chunks]
        return None if parts[0] is None else np.concatenate(parts)

    return rows, numbers, beside("labels"), beside("groups")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(embeddings, "_CHUNK_BYTES", 9 * WIDTH * 8)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("kind", WRITERS)
def test_rows_labels_and_groups_of_every_format(kind, dtype, tmp_path):
    z = Z.astype(dtype)
    path = tmp_path / f"z.{kind.split()[0]}"
    WRITERS[kind](path, z, LABELS, GROUPS)
    source = EmbeddingSource(path, None, "y", "source")
    rows, numbers, labels, groups = everything(source)
    assert rows.dtype == torch.from_numpy(z).dtype
    assert torch.equal(rows, torch.from_numpy(z))
    assert numbers.tolist() == list(range(ROWS))
    assert [int(y) for y in labels] == LABELS.tolist()
    assert [str(g) in ("a", "1") for g in groups] == (GROUPS == "a").tolist()
    assert source.rows == ROWS
    assert len(list(source.chunks())) > 1 or kind.startswith("lance")


@pytest.mark.parametrize("kind", ["npy", *WRITERS])
def test_pieces_are_the_rows_cut(kind, tmp_path):
    for part, (low, high) in enumerate([(0, 20), (20, 50), (50, ROWS)]):
        path = tmp_path / f"z-{part}.{kind.split()[0]}"
        if kind == "npy":
            np.save(path, Z[low:high])
        else:
            WRITERS[kind](path, Z[low:high], LABELS[low:high], GROUPS[low:high])
    (tmp_path / "_SUCCESS").touch()
    source = EmbeddingSource(tmp_path)
    pieces = source.pieces(8)
    assert len(pieces) == (3 if kind == "tar" else 3 + 4 + 1)
    found = torch.zeros(ROWS, WIDTH, dtype=torch.float64)
    for piece in reversed(pieces):
        for chunk in source.chunks([piece]):
            found[chunk.numbers] = chunk.rows
    assert torch.equal(found, torch.from_numpy(Z))


def test_one_array_alone_in_a_file(tmp_path):
    np.save(tmp_path / "z.npy", Z)
    torch.save(torch.from_numpy(Z), tmp_path / "z.pt")
    array = pytest.importorskip("zarr").open_array(
        str(tmp_path / "z.zarr"), mode="w", shape=Z.shape, dtype=Z.dtype
    )
    array[:] = Z
    for name in ("z.npy", "z.pt", "z.zarr"):
        assert torch.equal(everything(EmbeddingSource(tmp_path / name))[0], torch.from_numpy(Z))


def test_bfloat16_safetensors_and_integers(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    z = torch.from_numpy(Z).bfloat16()
    save_file({"z": z}, tmp_path / "z.safetensors")
    assert torch.equal(everything(EmbeddingSource(tmp_path / "z.safetensors"))[0], z)
    np.save(tmp_path / "z.npy", np.arange(12, dtype=np.int16).reshape(4, 3))
    rows = everything(EmbeddingSource(tmp_path / "z.npy"))[0]
    assert (rows.dtype, rows[3, 2]) == (torch.float32, 11)


@pytest.mark.parametrize("name", ["z.npy", "z.npz", "z.pt", "z.safetensors", "z.parquet", "z.tar"])
def test_urls_of_fsspec(name, tmp_path):
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for part in range(2):
        local = tmp_path / f"{part}-{name}"
        if name == "z.npy":
            np.save(local, Z)
        else:
            WRITERS[name[2:]](local, Z, LABELS, GROUPS)
        files.pipe(f"/lake-{name}/{part}-{name}", local.read_bytes())
    expected = torch.from_numpy(np.concatenate([Z, Z]))
    for url in (f"memory://lake-{name}", f"memory://lake-{name}/*-{name}"):
        source = EmbeddingSource(url)
        assert torch.equal(everything(source)[0], expected)
        found = torch.cat([c.rows for p in source.pieces(20) for c in source.chunks([p])])
        assert torch.equal(found, expected)
    assert len(EmbeddingSource(f"memory://lake-{name}/1-{name}").files) == 1


def test_globs_and_counted_names(tmp_path):
    for i in range(12):
        np.save(tmp_path / f"z-{i:03d}.npy", Z)
    assert len(find_files(str(tmp_path / "z-00*.npy"))) == 10
    counted = find_files(str(tmp_path / "z-{009..011}.npy"))
    assert [os.path.basename(f) for f in counted] == ["z-009.npy", "z-010.npy", "z-011.npy"]


def test_missing_rows_and_entries_are_nan(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for column in (
        pa.array([[1.0, 2.0], None, [None, 4.0]], type=pa.list_(pa.float32())),
        pa.array([[1.0, 2.0], None, [None, 4.0]], type=pa.list_(pa.float32(), 2)),
        pa.array([[1, 2], None, [None, 4]], type=pa.list_(pa.int64())),
    ):
        try:
            pq.write_table(pa.table({"z": column}), tmp_path / "z.parquet")
        except pa.ArrowNotImplementedError:  # of fixed size and null: pyarrow 17 writes none
            continue
        rows = everything(EmbeddingSource(tmp_path / "z.parquet"))[0]
        assert rows.isnan().tolist() == [[False, False], [True, True], [True, False]]
        assert (rows[0, 1], rows[2, 1]) == (2, 4)


def message(source, *columns, **named):
    with pytest.raises(ValueError, match=r"\w") as raised:
        everything(EmbeddingSource(source, *columns, **named))
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("kind", WRITERS)
def test_wrong_columns_are_named(kind, tmp_path):
    path = tmp_path / f"z.{kind.split()[0]}"
    WRITERS[kind](path, Z, LABELS, GROUPS)
    found = message(path, "embeding")
    assert "must be one of those in" in found
    assert "embedding" in found
    assert found.endswith("got 'embeding'")
    assert "got 'label'" in message(path, None, "label")
    assert str(path) in message(path, "y")  # no vectors


def test_several_columns_of_vectors_must_be_told_apart(tmp_path):
    np.savez(tmp_path / "z.npz", first=Z, second=Z)
    assert "column must be given" in message(tmp_path / "z.npz")
    assert "first, second" in message(tmp_path / "z.npz")
    assert everything(EmbeddingSource(tmp_path / "z.npz", "second"))[0].shape == Z.shape


@pytest.mark.parametrize("kind", ["npy", *WRITERS])
def test_truncated_files(kind, tmp_path):
    path = tmp_path / f"z.{kind.split()[0]}"
    if kind == "npy":
        np.save(path, Z)
    else:
        WRITERS[kind](path, Z, LABELS, GROUPS)
    if path.is_dir():
        data = [f for f in path.rglob("*") if f.is_file() and f.stat().st_size > 200]
        path_cut = max(data, key=lambda f: f.stat().st_size)
    else:
        path_cut = path
    for share in (0.9, 0.5, 0.05, 0.0):
        content = path_cut.read_bytes()
        path_cut.write_bytes(content[: int(share * len(content))])
        assert "z." in message(path)
        path_cut.write_bytes(content)


@pytest.mark.parametrize("version", [2, 3])
def test_cut_chunks_of_blosc_in_zarr(version, tmp_path):
    zarr = pytest.importorskip("zarr", minversion="3.0")
    group = zarr.open_group(str(tmp_path / "z.zarr"), mode="w", zarr_format=version)
    codec = pytest.importorskip("numcodecs").Blosc() if version == 2 else zarr.codecs.BloscCodec()
    for name, array in (("embedding", Z), ("y", LABELS)):
        chunks = (7, *array.shape[1:])
        shape, dtype = array.shape, array.dtype
        group.create_array(name, shape=shape, dtype=dtype, chunks=chunks, compressors=codec)[:] = (
            array
        )
    assert np.array_equal(everything(EmbeddingSource(tmp_path / "z.zarr", "embedding"))[0], Z)
    names = ("y/1", "embedding/1.0") if version == 2 else ("y/c/1", "embedding/c/1/0")
    for name in names:
        path = tmp_path / "z.zarr" / name
        whole = path.read_bytes()
        for share in (0.9, 0.5, 0.05, 0.0):
            path.write_bytes(whole[: int(share * len(whole))])
            said = message(tmp_path / "z.zarr", "embedding", "y")
            assert f"is truncated: the chunk {name} has" in said
        path.write_bytes(whole)


def test_a_cut_npz_or_npy_behind_a_url(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    np.save(tmp_path / "z.npy", Z)
    fsspec.filesystem("memory").pipe("/cut/z.npy", (tmp_path / "z.npy").read_bytes()[:-9])
    assert "memory://cut/z.npy is truncated: 9 of" in message("memory://cut/z.npy")


def test_folders_within_folders(tmp_path):
    """Tables are partitioned into folders; what writers hide is no data."""
    for folder in ("source=a", "source=b/more", "_temporary", ".hidden"):
        (tmp_path / folder).mkdir(parents=True)
        np.save(tmp_path / folder / "z.npy", Z)
    found = [os.path.relpath(f, tmp_path) for f in find_files(str(tmp_path))]
    assert found == ["source=a/z.npy", "source=b/more/z.npy"]
    fsspec = pytest.importorskip("fsspec")
    for name in found:
        fsspec.filesystem("memory").pipe(f"/nested/{name}", (tmp_path / name).read_bytes())
    assert len(find_files("memory://nested")) == 2
    assert EmbeddingSource(str(tmp_path / "source=*" / "**" / "*.npy")).rows == 2 * ROWS


@pytest.mark.parametrize("inner", ["in", "in/z.npy", "in/*.npy"])
def test_an_archive_behind_a_url(inner, tmp_path):
    pytest.importorskip("fsspec")
    np.save(tmp_path / "z.npy", Z)
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.write(tmp_path / "z.npy", "in/z.npy")
    source = EmbeddingSource(f"zip://{inner}::{tmp_path / 'z.zip'}")
    rows = torch.cat([chunk.rows for chunk in source.chunks()])
    assert torch.equal(rows, torch.from_numpy(Z))


def test_one_column_is_read_from_all_files(tmp_path):
    np.savez(tmp_path / "a.npz", z=Z)
    np.savez(tmp_path / "b.npz", other=Z)
    assert "column must be one of those in" in message(tmp_path)
    assert "b.npz, other, got 'z'" in message(tmp_path)


def test_labels_and_groups_are_one_value_a_row(tmp_path):
    np.savez(tmp_path / "z.npz", z=Z, y=Z[:, :2])
    for what in ("labels_column", "group_column"):
        said = message(tmp_path / "z.npz", column="z", **{what: "y"})
        assert "y must hold one value a row" in said
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"z": list(Z), "y": list(Z[:, :2])}), tmp_path / "z.parquet")
    said = message(tmp_path / "z.parquet", column="z", labels_column="y")
    assert "y must hold one value a row" in said


def test_headers_of_safetensors_that_do_not_fit(tmp_path):
    for header, part in (
        ({"z": {"dtype": "F32", "shape": [10, 4], "data_offsets": [0, 40]}}, "damaged header: z"),
        ({"z": {"dtype": "F32"}}, "damaged header: z"),
        ([1, 2], "its header is no table"),
    ):
        data = json.dumps(header).encode()
        path = tmp_path / "z.safetensors"
        path.write_bytes(len(data).to_bytes(8, "little") + data + bytes(160))
        assert part in message(path)


def test_chunks_of_zarr_that_were_never_written(tmp_path):
    group = pytest.importorskip("zarr").open_group(str(tmp_path / "z.zarr"), mode="w")
    create = group.create_array if hasattr(group, "create_array") else group.create_dataset
    create("z", shape=(20, 3), chunks=(5, 3), dtype="f4")[:15] = 1
    assert "lacks 1 of its 4 chunks" in message(tmp_path / "z.zarr")


def test_rows_and_files_of_different_widths(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"z": [[1.0, 2.0], [3.0]]}), tmp_path / "ragged.parquet")
    assert "z must hold rows of one width" in message(tmp_path / "ragged.parquet")
    np.save(tmp_path / "a.npy", Z)
    np.save(tmp_path / "b.npy", Z[:, :4])
    found = message(str(tmp_path / "*.npy"))
    assert "rows of one width, got 6 in" in found
    assert "and 4 in" in found


def test_what_is_no_matrix_or_no_number(tmp_path):
    np.save(tmp_path / "line.npy", Z[0])
    assert "got shape (6,)" in message(tmp_path / "line.npy")
    np.save(tmp_path / "text.npy", np.array([["a", "b"]]))
    assert "integers or as real numbers of 16, 32 or 64 bits, got <U1" in message(
        tmp_path / "text.npy"
    )
    for name, kind in (("complex", np.complex64), ("long", np.longdouble), ("truth", np.bool_)):
        np.save(tmp_path / f"{name}.npy", Z.astype(kind))
        assert "must hold embeddings as integers or as real" in message(tmp_path / f"{name}.npy")
    for kind in (torch.complex64, torch.bool, torch.float8_e4m3fn):
        torch.save(torch.from_numpy(Z).to(kind), tmp_path / "z.pt")
        assert f"got {kind}" in message(tmp_path / "z.pt")
    np.save(tmp_path / "objects.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    assert "objects.npy" in message(tmp_path / "objects.npy")
    torch.save({"embedding": Z}, tmp_path / "pickled.pt")  # a numpy array: not weights only
    assert "pickled.pt must hold tensors alone" in message(tmp_path / "pickled.pt")
    np.savez(tmp_path / "short.npz", z=Z, y=LABELS[:3])
    assert "y must have one entry a row" in message(tmp_path / "short.npz", "z", "y")
    np.save(tmp_path / "z.npy", Z)
    assert "a .npy file holds no column 'y'" in message(tmp_path / "z.npy", None, "y")


def test_sources_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="got nothing at"):
        find_files(str(tmp_path / "nowhere" / "*.npy"))
    with pytest.raises(ValueError, match="got nothing at"):
        find_files(str(tmp_path))
    (tmp_path / "z.csv").touch()
    with pytest.raises(ValueError, match=r"one of the formats \.npy, .* got \.csv"):
        find_files(str(tmp_path / "z.csv"))
    np.save(tmp_path / "z.npy", Z)
    np.savez(tmp_path / "z.npz", z=Z)
    with pytest.raises(ValueError, match=r"got \.npy, \.npz"):
        find_files(str(tmp_path))
    pytest.importorskip("fsspec")
    with pytest.raises(ValueError, match="URL that fsspec knows, got nothing-known://z"):
        find_files("nothing-known://z.npy")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    for module, name in (
        ("zarr", "z.zarr"),
        ("lance", "z.lance"),
        ("pyarrow.parquet", "z.parquet"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        path = tmp_path / name
        path.mkdir() if name != "z.parquet" else path.touch()
        with pytest.raises(ImportError, match=r"pip install 'lightly-collapse\[embeddings\]'"):
            everything(EmbeddingSource(path))


@pytest.mark.parametrize("kind", ["npy", "npz", "parquet fixed", "safetensors"])
def test_memory_does_not_grow_with_the_file(kind, tmp_path):
    path = tmp_path / f"z.{kind.split()[0]}"
    z = np.zeros((400_000, 128), dtype=np.float32)  # 200 MB
    if kind == "npy":
        np.save(path, z)
    elif kind == "parquet fixed":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        column = pa.FixedSizeListArray.from_arrays(pa.array(z.reshape(-1)), z.shape[1])
        pq.write_table(pa.table({"z": column}), path)
    else:
        WRITERS[kind](path, z, np.zeros(len(z), int), np.full(len(z), "a"))
    code = (
        "import resource, sys\n"
        "from lightly_collapse.io.embeddings import EmbeddingSource\n"
        "chunks = EmbeddingSource(sys.argv[1]).chunks()\n"
        "first = len(next(chunks).rows)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "rows = first + sum(len(c.rows) for c in chunks)\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(rows, (after - before) // 1024)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, growth = map(int, done.stdout.split())
    assert rows == 400_000
    # Pages of a mapped file count as resident, though the system takes them back when it needs.
    assert growth < (250 if kind == "npy" else 80)
