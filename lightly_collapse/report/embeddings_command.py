"""What `lightly-collapse measure --embeddings` does."""

from pathlib import Path

from rich.console import Console

from lightly_collapse.functional.intrinsic_dimension import DEFAULT_LID_K
from lightly_collapse.functional.spectrum import DEFAULT_RTOL
from lightly_collapse.io.files import atomic_write, check_writable_folder
from lightly_collapse.report.collapse_report import CollapseReport
from lightly_collapse.report.embeddings import Engine, Neighbors, measure_embeddings
from lightly_collapse.report.pages.figures import to_png


def embeddings_command(
    embeddings: str,
    column: str | None = None,
    labels_column: str | None = None,
    group_by: str | None = None,
    neighbors: Neighbors = "sample",
    engine: Engine = "local",
    address: str | None = None,
    output: Path = Path("collapse-measure"),
    rtol: float = DEFAULT_RTOL,
    lid_k: int = DEFAULT_LID_K,
    seed: int = 0,
    name: str | None = None,
) -> CollapseReport:
    """Measure embeddings and write `measure.json`, `measure.html` and `spectrum.png`.

    Args:
        embeddings: path, folder, glob or URL of files.
        column: see `measure_embeddings`.
        labels_column: see `measure_embeddings`.
        group_by: see `measure_embeddings`.
        neighbors: see `measure_embeddings`.
        engine: see `measure_embeddings`.
        address: see `measure_embeddings`.
        output: folder to write to; made if needed.
        rtol: see `measure_embeddings`.
        lid_k: see `measure_embeddings`.
        seed: of the sample.
        name: of the embeddings in tables and figures; the source's by default.

    Returns:
        The report.

    Raises:
        ValueError: as `measure_embeddings`, or if a package that is needed is not installed.
        OSError: if a file cannot be read or written.
    """
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
    for line in [*report.verdict(), *report.notes]:
        console.print(line, markup=False)
    console.print(f"Wrote measure.json, measure.html and spectrum.png to {folder}", markup=False)
    return report
