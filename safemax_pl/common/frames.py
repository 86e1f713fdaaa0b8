"""Write pandas tables as CSV files."""

from pathlib import Path

import pandas as pd

from safemax_pl.common.escaping import cell
from safemax_pl.common.files import atomic


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table without its index, atomically; no text is read as a formula (`escaping.cell`)."""
    columns = {cell(name): pd.Series(list(map(cell, column)), dtype=object) for name, column in frame.items()}
    with atomic(path) as part:
        pd.DataFrame(columns).to_csv(part, index=False, lineterminator="\r\n")
