"""`editscope export` and `editscope import`: edits that leave EditScope, and edits from elsewhere."""

import argparse
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from editing_core import cli_plan, paths
from editing_core.bench import files
from editing_core.bench.config import RunConfig
from editing_core.bench.executors import folders
from editing_core.cli_plan import add_loading, add_model, end_progress, progress
from editing_core.errors import BadRequest
from editing_core.export.card import README, card
from editing_core.export.edit_file import read_edit
from editing_core.export.exporting import KINDS, check_target, export, shrunk
from editing_core.export.fitting import check_fits
from editing_core.export.hub import check_repository, push
from editing_core.export.importing import import_edit
from editing_core.export.origin import Origin, check_base, made_here
from editing_core.files import write_text
from editing_core.models.catalog import DEFAULT
from editing_core.models.delta import LowRank, WeightDelta
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel
from editing_core.runs.folder import RECORDS, RunFolder

SHOWN = 20  # facts that are listed


def add(commands: Any) -> None:
    """Both commands."""
    leaving = commands.add_parser("export", help="an edit as an adapter, a whole model, or a file to keep")
    which = leaving.add_mutually_exclusive_group(required=True)
    which.add_argument("--edit", type=Path, metavar="FILE", help="an edit file, an adapter's folder, or a zip of one")
    which.add_argument("--run", metavar="ID", help="a stored run: its edit; write --run=ID where it begins with -")
    leaving.add_argument("--root", type=Path, default=paths.runs(), help="where runs are kept")
    leaving.add_argument("--model", help=f"as in 'edit'; default: the run's own, or {DEFAULT}")
    add_loading(leaving, own="default: the run's own, or float32")
    leaving.add_argument("--as", choices=KINDS, required=True, dest="kind")
    leaving.add_argument(
        "--out", type=Path, required=True, metavar="PATH", help="a folder; of an edit a .safetensors file"
    )
    leaving.add_argument("--rank", type=int, help="compress: most columns per parameter")
    leaving.add_argument("--energy", type=float, help="compress: share of each update's squared norm to give up")
    leaving.add_argument("--no-check", action="store_true", help="do not load the export again to compare")
    leaving.add_argument("--push", metavar="USER/NAME", help="upload it to the hub, with the token in HF_TOKEN")
    leaving.add_argument("--public", action="store_true", help="a repository made by --push is not private")
    leaving.set_defaults(command=_export)
    coming = commands.add_parser("import", help="check an edit from elsewhere, and say what it is")
    coming.add_argument("path", type=Path, metavar="FILE_OR_FOLDER", help="as --edit of 'export'")
    add_model(coming)
    coming.set_defaults(command=_import)


def _export(options: argparse.Namespace) -> None:
    check_target(options.kind, options.out)
    token = _token(options)
    lm, delta = _from_run(options) if options.run else _from_file(options)
    delta = made_here(lm, shrunk(delta, options.rank, options.energy, progress))
    check = export(lm, delta, options.kind, options.out, progress, not options.no_check)
    end_progress()
    if note := Origin.of(delta.provenance).note:
        print(note)
    print(f"Written to {options.out}.")
    if check:
        if not check.ok:
            raise BadRequest(check.told())
        print(check.told())
    if token:
        told = card(lm, delta, options.kind, check)
        print(f"Uploaded to {_push(options, token, told)}")


def _token(options: argparse.Namespace) -> str:
    """The token for an upload; empty where none is asked for."""
    if not options.push:
        return ""
    check_repository(options.push)
    if not (token := os.environ.get("HF_TOKEN", "").strip()):
        raise BadRequest("--push needs a token in the environment variable HF_TOKEN; set it, or leave --push out.")
    return token


def _push(options: argparse.Namespace, token: str, told: str) -> str:
    """Upload what was written; gives its address. told: the README.md of an edit file, which lies among others."""
    if options.kind != "edit":
        return push(options.out, options.push, token, not options.public)
    with tempfile.TemporaryDirectory(prefix="editscope-push-") as place:
        shutil.copy(options.out, place)
        write_text(Path(place) / README, told)
        return push(Path(place), options.push, token, not options.public)


def _loaded(options: argparse.Namespace, usual: RunConfig) -> LanguageModel:
    """The model that is asked for, loaded as `usual` is where nothing else is said."""
    how = (options.dtype or usual.dtype, options.quantised or usual.quantised, options.revision or usual.revision)
    return cli_plan.load_model(options.model or usual.model, *how, options.device)


def _from_file(options: argparse.Namespace) -> tuple[LanguageModel, Edit]:
    lm = _loaded(options, RunConfig())
    return lm, import_edit(lm, options.edit)


def _from_run(options: argparse.Namespace) -> tuple[LanguageModel, Edit]:
    """The model and the result of a stored run, which may have been imported, and so is checked like a file."""
    folder = next((folder for folder in folders(options.root) if folder.id == options.run), None)
    if folder is None:
        raise BadRequest(f"There is no run {options.run[:40]!r}; 'editscope runs list' names those there are.")
    head = folder.head()
    path = folder.path / files.DELTA
    result = head.get("result")
    if not isinstance(result, Mapping) or not path.is_file():
        raise BadRequest(f"Run {folder.id} has kept no edit; choose one that is done, or do it again.")
    config = RunConfig.of(head["config"])
    lm = _loaded(options, config)
    delta = WeightDelta(read_edit(path).updates, _origin(folder, head, config).texts())
    with lm.lock:
        check_base(lm, Origin.of(delta.provenance))
        check_fits(lm, delta)
    return lm, delta


def _origin(folder: RunFolder, head: Mapping[str, Any], config: RunConfig) -> Origin:
    result = head["result"]
    versions = result.get("versions")
    told = {str(name): str(version) for name, version in versions.items()} if isinstance(versions, Mapping) else {}
    return Origin(
        model=config.model,
        revision=str(result.get("revision", "")),
        editor=" with ".join(filter(None, (config.editor, config.plan.assist.name))),
        requests=files.read_records(folder.path) if (folder.path / RECORDS).is_file() else (),
        versions=told,
        created=str(head.get("created", "")),
    )


def _import(options: argparse.Namespace) -> None:
    lm = cli_plan.load_model(options.model, *cli_plan.loading(options))
    delta = import_edit(lm, options.path)
    origin = Origin.of(delta.provenance)
    by = f" by {origin.editor}" if origin.editor else ""
    of = f"{len(delta.updates)} parameters" if delta.can_merge else " and ".join(sorted(delta.parts))
    print(f"An edit of {of} of {lm.name}{by}{f', {origin.created}' if origin.created else ''}")
    for request in origin.requests[:SHOWN]:
        print(f"{request.full_prompt} {request.target_true or '?'} -> {request.target_new}")
    if len(origin.requests) > SHOWN:
        print(f"and {len(origin.requests) - SHOWN:,} more facts")
    with lm.lock:
        proofs = delta.proofs(lm.model)
    for proof in proofs:
        update = delta.updates[proof.parameter]
        form = f"{update.left.shape[1]} columns" if isinstance(update, LowRank) else "whole"
        share = f"{proof.changed:,} of {proof.total:,} numbers changed"
        print(f"{proof.parameter}: {form}, rank {proof.rank}, relative norm {proof.relative_norm:.3g}, {share}")
    if origin.note:
        print(origin.note)
