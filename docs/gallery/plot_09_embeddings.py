"""Embeddings in a file
====================

Embeddings that lie in Parquet, Zarr, NumPy or WebDataset files are measured in one pass and bounded
memory, whole or by group. A rare group often uses fewer dimensions.
"""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lightly_collapse.report import measure_embeddings

rng = np.random.default_rng(0)
common = rng.standard_normal((4000, 64)) * np.linspace(1, 0.1, 64)
rare = rng.standard_normal((200, 64)) * np.r_[np.ones(8), np.full(56, 0.005)]
rows = np.concatenate([common, rare]).astype(np.float16)
table = pa.table(
    {
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 64),
        "source": ["common"] * 4000 + ["rare"] * 200,
    }
)
path = Path(tempfile.mkdtemp()) / "embeddings.parquet"
pq.write_table(table, path)

# %%
# The same command: ``lightly-collapse measure --embeddings FILE --group-by source``

report = measure_embeddings(path, column="embedding", group_by="source")
for layer in report.layers:
    low, high = layer.intervals.get("effective_rank", (float("nan"),) * 2)
    print(f"{layer.name:14} {layer.value('effective_rank'):5.1f}  [{low:.1f}, {high:.1f}]")

# %%
figure, axes = plt.subplots(figsize=(6, 4))
for layer in report.layers:
    s = np.array(layer.spectrum)
    axes.semilogy(np.arange(1, len(s) + 1), s / s[0], label=layer.name)
axes.set(xlabel="index", ylabel="singular value / largest", ylim=(1e-3, 1.2))
axes.legend()
