"""What `lightly-collapse measure --embeddings` does."""

from rich.console import Console

from lightly_collapse._arguments import (
    AtLeastTwo,
    EmbeddingFiles,
    Name,
    OutputFolder,
    Seed,
    Share,
    validated,
)
from lightly_collapse._combinations import check_engine
from lightly_collapse.functional.intrinsic_dimension import DEFAULT_LID_K
from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.report.collapse_report import CollapseReport
from lightly_collapse.report.embeddings import Engine, Neighbors, measure_embeddings
from lightly_collapse.report.pages.figures import to_png


@validated
def embeddings_command(
    embeddings: EmbeddingFiles,
    column: str | None = None,
    labels_column: str | None = None,
    group_by: str | None = None,
    neighbors: Neighbors = "sample",
    engine: Engine = "local",
    address: str | None = None,
    output: OutputFolder = "collapse-measure",
    rtol: Share = DEFAULT_RTOL,
    lid_k: AtLeastTwo = DEFAULT_LID_K,
    seed: Seed = 0,
    name: Name | None = None,
) -> CollapseReport:
    """Measure the collapse of embeddings in files: numbers, figures and a page.

    Writes `measure.json`, `measure.html` and `spectrum.png`; see `measure_embeddings`.

    Args:
        embeddings: path, folder, glob or URL of .npy, .npz, .pt, .safetensors, .parquet, .zarr,
            .lance or .tar (WebDataset) files.
        column: of the embeddings, where it is not the only one.
        labels_column: of classes, for kNN and linear accuracy.
        group_by: a column; each of its groups is measured by itself too.
        neighbors: rows in which mLID's neighbours are sought; all takes a second pass.
        engine: local, or ray for the workers of a Ray cluster.
        address: of the Ray cluster.
        output: folder to write to; made if missing.
        rtol: a dimension below this times the largest singular value counts as collapsed.
        lid_k: neighbours of the local intrinsic dimensionality.
        seed: of the sample.
        name: of the embeddings in tables and figures; the source's by default.

    Returns:
        The report.

    Raises:
        ValueError: as `measure_embeddings`, or if a package that is needed is not installed.
        OSError: if a file cannot be read or written.
    """
    check_engine(engine, address)
    folder = check_writable_folder(output)
    try:
        report = measure_embeddings(
            embeddings,
            column=column,
            labels_column=labels_column,
            group_by=group_by,
            neighbors=neighbors,
            engine=engine,
            address=address,
            rtol=rtol,
            lid_k=lid_k,
            seed=seed,
            name=name,
            progress=True,
        )
    except ImportError as error:
        raise ValueError(str(error)) from error
    report.save(folder / "measure.json")
    report.to_html(folder / "measure.html")
    atomic_write(folder / "spectrum.png", to_png(report.plot()))
    console = Console(highlight=False, soft_wrap=True)
    console.print(report.table(), markup=False)
    console.print(f"\n{report.interval_table()}\n", markup=False)
    for line in [*report.verdict(), *report.notes]:
        console.print(line, markup=False)
    console.print(f"Wrote measure.json, measure.html and spectrum.png to {folder}", markup=False)
    return report
