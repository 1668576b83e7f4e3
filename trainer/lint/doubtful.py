"""The pairs whose labels a model doubts, as a file for people to look at (`trainer label`)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.data.pairs import PairTable
from trainer.lint.score_checks import Scores, suspect_rows
from trainer.system.console import console
from trainer.system.files import write_file


def write_doubtful(path: Path, tables: Sequence[PairTable], cosines: Sequence[Scores]) -> None:
    """Write the suspect pairs of some tables in one file, those of a table the most suspect first, with the file and
    row of each; and say what to do with it. Where there are none nothing is written, and it is said of which tables the
    model can doubt none.

    Args:
        cosines: [N] of each table's pairs by the model.

    Raises StorageError.
    """
    columns: dict[str, list[Any]] = {}
    for table, of_table in zip(tables, cosines, strict=True):
        suspects, looked = suspect_rows(table, of_table)
        if not looked:
            console.print(
                f"{table.source}: the model tells its labels apart too little to doubt any; trainer label --choose "
                "wrong with the same --pairs and --model asks about the pairs that it gets most wrong",
                markup=False,
            )
        doubted = table.take(suspects)
        cells = doubted.columns() | {"labels": doubted.label.astype(int).tolist()}
        cells |= {"files": [table.source] * len(doubted), "rows": doubted.row.tolist()}
        for name, values in cells.items():
            columns.setdefault(name, []).extend(values)
    count = len(columns["labels"])
    if not count:
        console.print("No label is doubted: nothing to write for --doubtful")
        return
    write_file(path, json.dumps(columns, ensure_ascii=False) + "\n")
    command = f"trainer label --pairs {shlex.quote(str(path))} --choose order --output labels.json"
    console.print(f"{path}: {count} doubted label{'s' * (count > 1)}; to have people decide:\n{command}", markup=False)
