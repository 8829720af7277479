"""How fast embeddings in Parquet are measured, and in how much memory.

    python -m tests.benchmarks.embeddings_at_scale --rows 10000000 --folder FOLDER [--ray]

Writes float16 rows of 256 dimensions to Parquet, 2.6 GB for five million, measures them by the
command, and prints clock, processor time and peak memory beside two floors: the time to read the
file's bytes, and that of one product of each row with a 256 x 256 matrix in float64, which any
covariance needs. Processor time is that of the command and of all processes that it started, Ray's
among them, looked at twice a second; memory is that of the command's own process. The files are
removed.
"""

import argparse
import os
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


def observed(words: list[str]) -> tuple[float, float, float]:
    """Run the command: seconds by the clock, processor seconds, and GiB of its process at most."""
    began = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "lightly_collapse.cli", *words],
        stdout=subprocess.DEVNULL,
    )
    used, peak = dict[int, float](), 0
    while child.poll() is None:
        parents, seconds, memory = _processes()
        for each in seconds:
            above = each
            while above not in (0, child.pid):
                above = parents.get(above, 0)
            if above:
                used[each] = seconds[each]
        peak = max(peak, memory.get(child.pid, 0))
        time.sleep(0.5)
    if child.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {child.returncode}")
    return time.perf_counter() - began, sum(used.values()), peak / 2**30


def _processes() -> tuple[dict[int, int], dict[int, float], dict[int, int]]:
    """Of every process of the machine its parent, processor seconds, and bytes of memory."""
    parents, seconds, memory = dict[int, int](), dict[int, float](), dict[int, int]()
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = path.read_text().rpartition(") ")
        except OSError:  # it has ended
            continue
        fields, pid = rest.split(), int(path.parent.name)
        parents[pid], memory[pid] = int(fields[1]), int(fields[21]) * page
        seconds[pid] = (int(fields[11]) + int(fields[12])) / tick
    return parents, seconds, memory


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
            took, processor, peak = observed(words)
            print(
                f"{engine}: {took:.0f} s, {given.rows / took:,.0f} rows/s; {processor:.0f} "
                f"processor seconds, {given.rows / processor:,.0f} rows a processor second; peak "
                f"memory of the command {peak:.2f} GiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
