"""The plan's editor, made from the unedited model: layers checked, statistics at hand, known facts within reach."""

from collections.abc import Sequence

from editing_core.data.encoder import encoder_of, nearest
from editing_core.data.pool import silent, unedited
from editing_core.data.subjects import known_facts, subject_places
from editing_core.editors.base import Editor
from editing_core.editors.materials import Alike, Materials
from editing_core.errors import BadSetting
from editing_core.models.edit import Edit
from editing_core.models.language_model import LanguageModel
from editing_core.registry import editor_row
from editing_core.runs.record import EditPlan
from editing_core.statistics.covariance import Corpus, CovarianceStore
from editing_core.types import EditRequest, Probe, Watch, ignore


def check_asked(plan: EditPlan, facts: int, chunks: int = 1) -> None:
    """BadSetting where the plan's editor cannot edit so many facts at once, or so many chunks one after the other."""
    editor_row(plan.editor).check(facts, chunks, plan.assist)


def check_base(plan: EditPlan, base: Edit) -> None:
    """BadSetting where the plan's editor cannot be used on top of what is on."""
    row = editor_row(plan.editor)
    if base.gated and not row.whole_rows:
        kinds = " and ".join(sorted(kind for kind, part in base.parts.items() if part.gated))
        raise BadSetting(
            f"{row.label} reads parts of rows, which cannot be done on top of an edit that looks at whole prompts "
            f"({kinds}); switch that edit off."
        )


def build_editor(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    plan: EditPlan,
    store: CovarianceStore,
    watch: Watch = ignore,
    pool: Sequence[Probe] = (),
) -> Editor:
    """The plan's editor, with statistics at hand and contexts drawn from the unedited model.

    requests: what is edited and measured; statistics of subjects and facts to train on leave it out. pool: known
    facts in place of the bundled ones.
    """
    row = editor_row(plan.editor)
    row.check(assist=plan.assist)
    layers = row.layers(plan.settings)
    if max(layers, default=0) >= lm.layers:
        raise BadSetting(
            f"Layer {max(layers)} was asked for, {lm.name} has layers 0 to {lm.layers - 1}; choose among them."
        )
    corpus = Corpus.bundled(lm.name)
    if corpus and row.needs_statistics(plan.settings):
        store.collect(lm, layers, corpus, watch)
    subjects = []
    if plan.assist.statistics != "tokens":
        subjects = subject_places((text for request in requests for text in request.texts), plan.seed)
    materials = Materials(
        lm,
        store,
        corpus or store.corpus_of(lm),
        plan.seed,
        plan.assist,
        plan.conventions,
        subjects,
        watch,
        requests=requests,
        facts=lambda: unedited(pool or known_facts(plan.seed), requests),
        texts=lambda: silent(corpus.documents if corpus else (), requests),
        alike=lambda asked, known, count, own: _alike(lm, asked, known, count, own),
    )
    return row.build(plan.settings, materials)


def statistics_remark(lm: LanguageModel, plan: EditPlan, store: CovarianceStore) -> tuple[str, ...]:
    """What is to know of the statistics that the plan's editor was built with; mostly nothing."""
    row, corpus = editor_row(plan.editor), store.text_of(lm)
    if corpus is None or not row.needs_statistics(plan.settings):
        return ()
    remarks = [store.get(lm, layer, corpus).remark for layer in row.layers(plan.settings)]
    return tuple(f"Key statistics: {remark[0].lower()}{remark[1:]}" for remark in dict.fromkeys(remarks) if remark)


def _alike(lm: LanguageModel, asked: Sequence[str], known: Sequence[str], count: int, own: bool) -> Alike:
    encoder = encoder_of(lm, own)
    numbers, cosines = nearest(encoder.encode(asked), encoder.encode_once(known), count)
    return Alike(numbers, cosines, encoder.note or f"Alike are facts that {encoder.name} says are.")
