"""A table of readings on disk: a row a reading, written atomically, read again on resuming."""

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

from lightly_collapse.io.files import atomic_write
from lightly_collapse.io.spectra import FILE_NAME, SpectraFile

_FORMULA = re.compile(r"\s*[=+\-@]|\t")  # in what a spreadsheet reads; a number is no text here


class ReadingsTable:
    """`collapse.csv`: one row for each value of a key column.

    Args:
        path: the file; its folder is made when the first row is written.
        key: name of the column that tells rows apart, such as `step`.

    Attributes:
        path: the file.
        spectra: the file of spectra beside it.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> ReadingsTable(Path(folder, "collapse.csv"), "step").add({"step": 5, "rank": 3.0})
        >>> print(Path(folder, "collapse.csv").read_text().strip())
        step,rank
        5,3.0
    """

    def __init__(self, path: str | Path, key: str) -> None:
        self.path = Path(path)
        self.spectra = SpectraFile(self.path.with_name(FILE_NAME), key)
        self._key = key
        self._rows: dict[int, dict[str, object]] = {}

    def resume(self, before: int) -> None:
        """Take the file's rows with a key below `before`, where training goes on from there.

        Args:
            before: with 0, nothing is taken: a new run replaces the file.

        Raises:
            OSError: if the file cannot be read, or is no table.
        """
        self._rows = {}
        self.spectra.resume(before)
        if not before or not self.path.is_file():
            return
        try:
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
        except (csv.Error, UnicodeDecodeError) as error:
            raise OSError(f"no table ({error})") from error
        for row in rows:
            key = row.get(self._key) or ""
            if key.isdecimal() and int(key) < before:
                self._rows[int(key)] = {n: v for n, v in row.items() if n is not None and v}

    def add(self, row: Mapping[str, object], *, write: bool = True) -> None:
        """Add a row and write the file; a row with the same key is replaced.

        A text that a spreadsheet would take for a formula gets an apostrophe before it.

        Args:
            row: values by column; a column that a row lacks is left empty.
            write: whether this process writes.

        Raises:
            OSError: if the file cannot be written.
        """
        self._rows[int(str(row[self._key]))] = {str(_cell(n)): _cell(v) for n, v in row.items()}
        if not write:
            return
        columns = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows.values())
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.path, buffer.getvalue().encode())


def _cell(value: object) -> object:
    """A value as a cell; a name may come from anyone, and a formula in it can run programs."""
    if not isinstance(value, str):
        return value
    # Readers take a carriage return for the end of a row.
    text = value.replace("\r", " ")
    return f"'{text}" if _FORMULA.match(text) else text
