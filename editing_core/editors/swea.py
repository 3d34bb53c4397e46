"""SWEA+OS: offsets for the embeddings of a subject's tokens, optimised and then rid of what carried the old object.

First the offsets D that make the new objects likely are optimised, one for each subject with all its facts. Then the
dimensions of the embeddings E that bring up the old object, by integrated gradients from zero to E, are suppressed:

    added = D - suppress * (mask * E),   mask: 1 where the score is above a share of the largest one

In: EditRequests. Out: SubjectOffsets. Source: Li et al. 2024, https://arxiv.org/abs/2401.17809.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from editing_core.editors.base import Editor, EditOutcome, TargetLog
from editing_core.editors.load import AT_ONCE, BARE_TOKENS, FACT_TOKENS, ROW_TOKENS, Load, gradients
from editing_core.editors.materials import Materials
from editing_core.editors.pocket import pocket
from editing_core.editors.row import ASSIST, EditorRow, Preset
from editing_core.editors.steps.attribution import GRIDS, Path, Site, integrated_gradients, questions
from editing_core.editors.steps.offset_rows import Case, carried, case_of, exchanged, forms_of, matches
from editing_core.editors.steps.offsets import OffsetSettings, Optimised, optimise_offsets
from editing_core.editors.steps.rows import Objective, log_perplexity
from editing_core.models.language_model import LanguageModel, fitted
from editing_core.models.reading import read
from editing_core.models.subjects import Finder, Ids, Offset, SubjectOffsets, Wish, offsets_on
from editing_core.settings import setting
from editing_core.types import EditRequest, Probe, Step, Watch, ignore, noting

TOGETHER = 64  # subjects that are optimised side by side
MOST_KEPT = 8  # known facts of a subject that are kept


@dataclass(frozen=True)
class SweaSettings(OffsetSettings):
    """Settings of SWEA+OS."""

    suppress: float = setting(
        0.5, "Share of an embedding that is taken off in dimensions that carry the old object; 0 is off", 0.0, 2.0
    )
    threshold: float = setting(
        0.35, "Such a dimension has a score above this share of the largest; above 1 there is none", 0.0, 2.0
    )
    points: int = setting(20, "Scaled copies of the embeddings that gradients are averaged over", 5, 1000)
    grid: str = setting("right", "Points of the path: j/M as in the paper, or with both ends", choices=tuple(GRIDS))


@dataclass(frozen=True, eq=False)
class Swea(Editor):
    """The editor. kept: per subject prompts about other facts of it that the unedited model knows."""

    once: ClassVar[str] = "a subject's offsets are optimised with all its facts until these are likely."
    settings: SweaSettings
    objective: Objective
    kept: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def edit(self, lm: LanguageModel, requests: Sequence[EditRequest], watch: Watch = ignore) -> EditOutcome:
        """Write all requests; a subject's facts together, also those the edits that are on were made for."""
        initial, _ = log_perplexity(lm, requests, self.objective)
        asked = by_subject(lm, requests)
        forms = {subject: forms_of(lm, facts, self.objective) for subject, facts in asked.items()}
        on = [ids for edit in offsets_on(lm.model) for ids in edit.table]
        finder = Finder.of([*on, *(ids for own in forms.values() for ids in own)])
        cases = {
            subject: case_of(lm, facts, forms[subject], finder, self.objective, self.kept.get(subject, ()))
            for subject, facts in asked.items()
        }
        found = [case for case in cases.values() if case]
        results, history = self._optimised(lm, found, watch)
        sound = {case.subject: (case, result) for case, result in zip(found, results, strict=True) if result.finite}
        taken = self._suppressed(lm, [r for r in requests if r.subject in sound], cases, finder, watch)
        edit = self._edit(lm, sound, taken, requests)
        with edit.applied(lm) as edited:
            final, every = log_perplexity(edited, requests, self.objective)
        of = {case.subject: result for case, result in zip(found, results, strict=True)}
        log = _log([of.get(r.subject) for r in requests], (initial, final, every), history)
        return EditOutcome(edit, log, self._notes(lm, requests, cases, sound, finder))

    def _optimised(
        self, lm: LanguageModel, cases: Sequence[Case], watch: Watch
    ) -> tuple[list[Optimised], tuple[dict[str, float], ...]]:
        results: list[Optimised] = []
        history: tuple[dict[str, float], ...] = ()
        for start in range(0, len(cases), TOGETHER):
            some = cases[start : start + TOGETHER]
            told = noting(watch, f"subjects {start + 1}-{start + len(some)} of {len(cases)}")
            part, terms = optimise_offsets(lm, some, self.settings, told)
            results += part
            history = history or terms
        return results, history

    def _suppressed(
        self,
        lm: LanguageModel,
        requests: Sequence[EditRequest],
        cases: Mapping[str, Case | None],
        finder: Finder,
        watch: Watch,
    ) -> dict[Ids, Tensor]:
        """By form (tokens, width), true where a dimension carries an old object. Facts that are on had theirs."""
        before = {(name, w.prompt) for edit in offsets_on(lm.model) for name, own in edit.wishes.items() for w in own}
        masks: dict[Ids, Tensor] = {}
        for number, request in enumerate(requests if self.settings.suppress else ()):
            case = cases[request.subject]
            if case and request.place[::-1] not in before:
                for form, mask in self._carrying(lm, request, case, finder):
                    masks[form] = masks[form] | mask if form in masks else mask
            watch(Step("suppress", number + 1, len(requests)))
        return masks

    def _carrying(
        self, lm: LanguageModel, request: EditRequest, case: Case, finder: Finder
    ) -> Iterator[tuple[Ids, Tensor]]:
        """Per form of the subject in the request's prompt, which dimensions of its tokens carry the old object."""
        s, site = self.settings, Site.embedding(lm)
        asked = questions(lm, request.full_prompt, request.target_true, self.objective.objects)
        places = [next(matches(ids, finder, case.forms), None) for ids, _ in asked]
        for form in case.forms:
            paths = [
                Path(exchanged(ids, place[0], place[1], form), token, (place[0] + n,))
                for (ids, token), place in zip(asked, places, strict=True)
                if place
                for n in range(len(form))
            ]
            if paths:
                scores = torch.cat(integrated_gradients(lm, paths, site, s.points, s.grid))
                mean = scores.view(-1, len(form), scores.shape[-1]).mean(0).cpu()
                yield form, carrying(mean, s.threshold)

    def _edit(
        self,
        lm: LanguageModel,
        sound: Mapping[str, tuple[Case, Optimised]],
        masks: Mapping[Ids, Tensor],
        requests: Sequence[EditRequest],
    ) -> SubjectOffsets:
        """What is new in the offsets: without what is on already."""
        table: dict[Ids, Offset] = {}
        for case, result in sound.values():
            gone = carried(lm, case.forms, "taken")
            for form, embedding in case.forms.items():
                learned = result.offsets[case.slot(form, 0) :]
                if form in case.carried:
                    learned = learned - case.carried[form]
                mask = masks.get(form, torch.zeros_like(embedding, dtype=torch.bool))
                if form in gone:
                    mask = mask & (gone[form] == 0)
                table[form] = Offset(case.subject, learned.clone(), self.settings.suppress * mask * embedding)
        names = {own.subject for own in table.values()}
        wishes = {
            name: tuple(Wish(r.prompt, r.target_new, r.target_true) for r in requests if r.subject == name)
            for name in sound
            if name in names
        }
        return SubjectOffsets(table, wishes)

    def _notes(
        self,
        lm: LanguageModel,
        requests: Sequence[EditRequest],
        cases: Mapping[str, Case | None],
        sound: Mapping[str, object],
        finder: Finder,
    ) -> tuple[str, ...]:
        notes = []
        lost = [name for name, case in cases.items() if case is None]
        if lost:
            notes.append(f"{lost[0]}: left out, its tokens stand inside those of a longer subject ({len(lost)} such).")
        broken = [name for name, case in cases.items() if case and name not in sound]
        if broken:
            notes.append(f"{broken[0]}: left out, its offsets are no finite numbers ({len(broken)} such).")
        prompts = [(r.subject, prompt) for r in requests for prompt in r.paraphrases if cases[r.subject]]
        forms = {name: case.forms for name, case in cases.items() if case}
        missed = sum(next(matches(lm.coder.encode(p), finder, forms[name]), None) is None for name, p in prompts)
        if missed:
            notes.append(f"{missed} of {len(prompts)} paraphrases do not name the subject in tokens that are known.")
        if count := sum(len(self.kept.get(name, ())) for name in cases):
            notes.append(f"{count} other known facts of the subjects are kept as they were.")
        return tuple(notes)


def by_subject(lm: LanguageModel, requests: Sequence[EditRequest]) -> dict[str, list[EditRequest]]:
    """Requests by subject, each with the facts that edits which are on were made for, but those asked anew."""
    found: dict[str, list[EditRequest]] = {}
    for request in requests:
        found.setdefault(request.subject, []).append(request)
    for subject, own in found.items():
        prompts = {request.prompt for request in own}
        earlier = [wish for edit in offsets_on(lm.model) for wish in edit.wishes.get(subject, ())]
        latest = {wish.prompt: wish for wish in earlier if wish.prompt not in prompts}
        own += [EditRequest(subject, wish.prompt, wish.new, wish.old) for wish in latest.values()]
    return found


def carrying(scores: Tensor, threshold: float) -> Tensor:
    """(tokens, width) bool: scores above a share of the largest. None where no score is positive."""
    top = scores.max().clamp(min=0.0)
    return (scores > threshold * top) & (top > 0)


def _log(
    results: Sequence[Optimised | None], losses: tuple[Tensor, Tensor, Tensor], history: tuple[dict[str, float], ...]
) -> TargetLog:
    norms = [float(result.offsets.norm()) if result else 0.0 for result in results]
    return TargetLog.measured(
        *losses,
        history,
        steps=torch.tensor([result.steps if result else 0 for result in results]),
        norm=torch.tensor(norms),
        clamped=torch.tensor([bool(result and result.clamped) for result in results]),
        finite=torch.tensor([result is None or result.finite for result in results]),
    )


@fitted
@torch.no_grad()
def known(lm: LanguageModel, facts: Sequence[Probe]) -> list[Probe]:
    """Those whose answer's tokens are all the model's first choice."""
    texts = lm.coder.continuations([(fact.prompt, fact.answer) for fact in facts])
    hits = set[int]()
    for numbers, logits in read(lm, [text.inputs for text in texts], [text.positions for text in texts]):
        choices = logits.argmax(-1).cpu().split([len(texts[n].object_ids) for n in numbers])
        hits |= {n for n, own in zip(numbers, choices, strict=True) if tuple(own.tolist()) == texts[n].object_ids}
    return [fact for n, fact in enumerate(facts) if n in hits]


def build_swea(settings: SweaSettings, materials: Materials) -> Swea:
    """The editor, with the known facts to keep."""
    m = materials
    names = {request.subject for request in m.requests}
    facts = [fact for fact in m.facts() if fact.subject in names] if settings.preserve else []
    kept: dict[str, tuple[str, ...]] = {}
    for fact in known(m.lm, facts):
        kept[str(fact.subject)] = (*kept.get(str(fact.subject), ()), fact.prompt)[:MOST_KEPT]
    return Swea(settings, m.objective(m.grouped()), kept)


def offsets_load(s: SweaSettings, facts: int, _depth: int) -> Load:
    """Offsets, then scaled copies of two forms of a subject's three tokens, one at a time."""
    paths = 6 * facts * (s.suppress > 0)
    copies = gradients(paths * s.points * BARE_TOKENS, ceil(paths * s.points * BARE_TOKENS / AT_ONCE))
    rows = gradients(2 * FACT_TOKENS * facts, ceil(facts / TOGETHER)).times(s.steps)
    return rows + copies + Load(MOST_KEPT * facts * ROW_TOKENS, 2)


ROW = EditorRow(
    "swea",
    "SWEA+OS",
    "Adds offsets to a subject's embeddings wherever a prompt names it; no weight changes.",
    "https://arxiv.org/abs/2401.17809",
    SweaSettings,
    build_swea,
    lambda _settings: (),
    presets={
        "pocket-gpt2": Preset(SweaSettings(), "GPT-J's, tried on the tune records"),
        **pocket(SweaSettings(), "as pocket-gpt2's", True, ("pocket-llama", "pocket-gptj")),
        "gpt2-xl": Preset(SweaSettings(), "as GPT-J's", True),
        "gpt-j-6b": Preset(SweaSettings(), "xpq-tech/SWEA"),
        "llama-2-7b": Preset(SweaSettings(), "xpq-tech/SWEA"),
    },
    needs_statistics=lambda _settings: False,
    needs_facts=lambda s: s.preserve > 0,
    faithful={"*": {"preserve": 0.0, "start": "embeddings"}},
    cannot={
        ASSIST: "neighbors are about other subjects, whose embeddings it leaves alone, and it has no closed form; set "
        "neighbors off, keys to 0 and statistics to tokens."
    },
    whole_rows=True,
    load=offsets_load,
    beside=True,
    remark="Other spellings of the subject's name are other tokens and are not found.",
)
