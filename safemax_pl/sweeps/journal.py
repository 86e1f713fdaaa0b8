"""Repair of a study's journal after a full disk, a crash of the machine or a killed worker."""

import json
import re
import warnings
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from pathlib import Path

from safemax_pl.common.files import atomic, digest
from safemax_pl.common.untrusted import regular

MAX_BYTES = 256 * 2**20  # of a journal; a trial writes some 5 KiB


def repair(path: Path) -> None:
    """Keep the whole records of a journal, one a line, and drop what is none.

    Optuna reads up to a torn line, but the next record that it appends ends up in that line, and every record after
    that is an error. A record that stands behind a torn one in the same line is kept. A damaged journal is kept too, as
    `study.journal.damaged-<digest>`, and a warning says so. Nobody may write at the same time.

    Args:
        path: of the journal; nothing is done where there is none.
    """
    if not path.exists():
        return
    content = regular(path, MAX_BYTES).read_bytes()
    records = [record for line in content.split(b"\n") for record in _records(line)]
    whole = b"".join(record + b"\n" for record in records)
    if whole == content:
        return
    copy = path.with_name(f"{path.name}.damaged-{digest(content)}")
    with atomic(copy) as part:
        part.write_bytes(content)
    with atomic(path) as part:
        part.write_bytes(whole)
    warnings.warn(
        f"{path} was damaged, by a full disk or a crash: its {len(records)} whole records are kept, and a copy of what "
        f"it was in {copy.name}",
        stacklevel=2,
    )


def _records(line: bytes) -> Iterator[bytes]:
    """The records in a line, of which there should be one."""
    if _is_record(_parsed(line)):
        yield line
        return
    text, end = line.decode(errors="replace"), 0
    for found in re.finditer(r'\{"op_code"', text):
        if found.start() >= end:
            try:
                record, end = JSONDecoder().raw_decode(text, found.start())
            except JSONDecodeError:
                continue
            if _is_record(record):
                yield text[found.start() : end].encode()


def _parsed(line: bytes) -> object:
    try:
        return json.loads(line)
    except ValueError:  # no JSON, no UTF-8
        return None


def _is_record(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("op_code"), int) and isinstance(value.get("worker_id"), str)
