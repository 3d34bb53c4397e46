"""Stored runs read back: from a folder to what tables, comparisons and charts need."""

from collections.abc import Iterable

import pandas as pd

from editing_core.bench.config import RunConfig
from editing_core.errors import BadRequest, EditingError
from editing_core.runs.folder import RunFolder
from editing_core.runs.tables import Finished


def read_finished(folder: RunFolder) -> Finished:
    """A run with at least one finished iteration; of one that ended early the last iteration stands for the result."""
    head = folder.head()
    config, result = RunConfig.of(head["config"]), head.get("result", {})
    try:
        rows = pd.read_csv(folder.path / "iterations.csv")
        probes = pd.read_parquet(folder.path / "probes.parquet")
    except (OSError, ValueError) as error:
        raise BadRequest(f"Run {folder.id} has finished no iteration yet; wait, or resume it.") from error
    return Finished(
        id=folder.id,
        name=config.name,
        model=config.model,
        editor=config.editor,
        assist=config.plan.assist.name or "off",
        dataset=str(result.get("dataset", config.dataset)),
        protocol=config.sharing.label,
        trial=config.trial,
        n_edits=int(result.get("n_edits", probes["case_id"].nunique())),
        chosen=int(result.get("chosen", rows["k"].max())),
        iterations=rows,
        probes=probes,
    )


def read_all(found: Iterable[RunFolder]) -> tuple[list[Finished], list[str]]:
    """Every run that has something to show, and why the others have not."""
    runs, problems = [], []
    for folder in found:
        try:
            runs.append(read_finished(folder))
        except EditingError as error:
            problems.append(str(error))
    return runs, problems
