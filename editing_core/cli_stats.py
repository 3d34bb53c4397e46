"""`editscope stats`: what covariance statistics a model has, and the collection of more."""

import argparse
from typing import Any

from editing_core import cli_plan
from editing_core.cli_plan import add_model, end_progress, pairs, progress
from editing_core.errors import BadRequest, BadSetting
from editing_core.models.language_model import LanguageModel
from editing_core.registry import editor_row
from editing_core.statistics.corpus import Corpus, TextSource
from editing_core.statistics.covariance import CovarianceStore
from editing_core.statistics.text_sources import HUB, source_of


def add(commands: Any) -> None:
    """The command."""
    stats = commands.add_parser("stats", help="show or collect the covariance statistics of a model")
    add_model(stats)
    stats.add_argument("--editor", default="memit")
    stats.add_argument(
        "--collect",
        nargs="?",
        const="",
        metavar="TEXT",
        help=f"a text file with one document per line, or {HUB}REPOSITORY[:CONFIG]; without one the model's own text",
    )
    stats.add_argument("--documents", type=int, metavar="N", help="collect from the first N documents only")
    stats.add_argument("--split", default="train", help="of a data set on the hub")
    stats.add_argument("--column", default="text", help="of a data set on the hub")
    stats.add_argument("--text-revision", default="main", help="of a data set on the hub")
    stats.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as for edit, e.g. layers=0,1")
    stats.set_defaults(command=_stats)


def _stats(options: argparse.Namespace) -> None:
    if options.documents is not None and (options.collect is None or options.documents < 1):
        raise BadRequest(
            f"--documents {options.documents} says from how many documents to collect, at least 1; give it with "
            "--collect."
        )
    lm, store = cli_plan.load_model(options.model, *cli_plan.loading(options)), CovarianceStore()
    layers = _layers(options, lm)
    source = _source(options, lm, store)
    if source is None:
        print(f"{lm.name}: no statistics; collect them with --collect TEXTFILE (one document per line).")
        return
    if options.collect is not None:
        _collect(lm, store, layers, source)
        bundled = Corpus.bundled(lm.name)
        if bundled is None:
            store.remember(lm, source)
        elif source.digest != bundled.digest:
            print(f"Runs of {lm.name} go on with the statistics of the text that comes with it.")
    for layer in layers:
        there = store.has(lm, [layer], source)
        tokens = f"{store.get(lm, layer, source).tokens:,} tokens of {source.name}" if there else "not collected"
        print(f"{lm.name} layer {layer}: {tokens}")
        if there and store.get(lm, layer, source).remark:
            print(f"    {store.get(lm, layer, source).remark}")


def _layers(options: argparse.Namespace, lm: LanguageModel) -> list[int]:
    row = editor_row(options.editor)
    layers = list(row.layers(row.preset(options.model).settings.changed(pairs(options.set))))
    if layers and max(layers) >= lm.layers:
        raise BadSetting(
            f"{row.label} wants layer {max(layers)}, {lm.name} has layers 0 to {lm.layers - 1}; name others with --set."
        )
    return layers


def _source(options: argparse.Namespace, lm: LanguageModel, store: CovarianceStore) -> TextSource | None:
    """What is named, or else the bundled or the last text; its first documents where that is asked for."""
    if options.collect:
        return source_of(options.collect, options.split, options.column, options.text_revision, options.documents)
    source = store.text_of(lm)
    return source.first(options.documents) if source and options.documents else source


def _collect(lm: LanguageModel, store: CovarianceStore, layers: list[int], source: TextSource) -> None:
    if store.has(lm, layers, source):
        return
    documents, tokens = store.begun(lm, layers, source)
    print(f"Collecting layers {layers}: {store.estimate(lm, layers, source)}.", flush=True)
    if tokens:
        print(f"Of that {documents:,} documents or more, {tokens:,} tokens, are done already.", flush=True)
    store.collect(lm, layers, source, progress)
    end_progress()
