"""How fast embeddings in Parquet are measured, and in how much memory.

    python -m tests.benchmarks.embeddings_at_scale --rows 10000000 --folder FOLDER [--ray]

Writes float16 rows of 256 dimensions to Parquet, 2.6 GB for five million, measures them by the
command in a child process whose peak memory and processor time the system reports, and prints them
beside two floors: the time to read the file's bytes, and that of one product of each row with a
256 x 256 matrix in float64, which any covariance needs. The files are removed.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

WIDTH, CHUNK, FILES = 256, 100_000, 10


def write(folder: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    scale = np.arange(1, WIDTH + 1, dtype=np.float32) ** -0.5
    for file in range(FILES):
        start, stop = file * rows // FILES, (file + 1) * rows // FILES
        kind = pa.schema([("embedding", pa.list_(pa.float16(), WIDTH))])
        with pq.ParquetWriter(folder / f"{file:02d}.parquet", kind, compression="none") as writer:
            for at in range(start, stop, CHUNK):
                z = rng.standard_normal((min(CHUNK, stop - at), WIDTH), dtype=np.float32) * scale
                flat = pa.array(z.astype(np.float16).ravel())
                column = pa.FixedSizeListArray.from_arrays(flat, WIDTH)
                writer.write_table(pa.table({"embedding": column}, schema=kind))


def seconds_to_read(folder: Path) -> float:
    began = time.perf_counter()
    for file in sorted(folder.glob("*.parquet")):
        with file.open("rb", buffering=0) as stream:
            # Without this the pages that were just written are read from memory.
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while stream.read(2**24):
                pass
    return time.perf_counter() - began


def seconds_of_products(rows: int) -> float:
    """One product of each row with a matrix, from the processor time of a hundredth of them."""
    z = torch.randn(max(rows // 100, 4096), WIDTH, dtype=torch.float64)
    matrix, part = torch.randn(WIDTH, WIDTH, dtype=torch.float64), 4096
    torch.mm(z[:part], matrix)
    began = time.process_time()
    for chunk in z.split(part):
        torch.mm(chunk, matrix)
    return (time.process_time() - began) * rows / len(z)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--ray", action="store_true", help="measure with two Ray workers as well")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        data = Path(name, "data")
        data.mkdir()
        began = time.perf_counter()
        write(data, given.rows)
        size = sum(f.stat().st_size for f in data.iterdir()) / 1e9
        print(f"{given.rows:,} rows written, {size:.2f} GB: {time.perf_counter() - began:.0f} s")
        read = seconds_to_read(data)
        print(f"read once: {read:.1f} s, {size / read:.2f} GB/s", flush=True)
        print(f"one product a row: {seconds_of_products(given.rows):.0f} processor seconds")
        for engine in ("local", *(["ray"] if given.ray else [])):
            words = ["measure", "--embeddings", str(data), "--engine", engine, "--output", name]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "lightly_collapse.cli", *words],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            took = time.perf_counter() - began
            used = resource.getrusage(resource.RUSAGE_CHILDREN)
            processor = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
            print(
                f"{engine}: {took:.0f} s, {given.rows / took:,.0f} rows/s; {processor:.0f} "
                f"processor seconds, {given.rows / processor:,.0f} rows a processor second; peak "
                f"memory of the command {used.ru_maxrss / 2**20:.2f} GiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
