"""IKE: show the model the new facts, with worked examples of how to use one, before every prompt.

Nothing is trained and no weight changes. The examples are known facts most like the edit, each with a made-up new
object: copies repeat it, updates carry it over to another wording, retentions answer another question as before.
In: EditRequests. Out: Demonstrations. Source: Zheng et al. 2023, https://arxiv.org/abs/2305.12740.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from editing_core.editors.base import Editor, EditOutcome, TargetLog
from editing_core.editors.ike_data import Found, Pool, Retrieval
from editing_core.editors.load import AT_ONCE, ENCODED, PROBES, Load
from editing_core.editors.materials import Materials
from editing_core.editors.pocket import pocket
from editing_core.editors.row import ASSIST, EditorRow, Preset
from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.rows import Objective, log_perplexity
from editing_core.errors import BadRequest
from editing_core.models.demonstrations import KINDS, Demonstrations, NewFact, Shown, bare, shown
from editing_core.models.language_model import LanguageModel
from editing_core.models.tokens import Coder
from editing_core.settings import Settings, setting
from editing_core.types import EditRequest, Step, Watch, ignore

SPARE = 4  # candidates for each place: a fact without another wording or a neighbor cannot fill every one


@dataclass(frozen=True)
class IkeSettings(Settings):
    """Settings of IKE."""

    demonstrations: int = setting(
        32, "k, demonstrations before the new facts; of those that do not fit, the least similar are left out", 0, 128
    )
    form: str = setting(
        "paper",
        "paper: copies, updates and retentions as 1 : 3 : 4, the most similar last, and the new fact as a copy of its "
        "own; framework: as later code has it, the three of each fact searched together, the most similar first",
        choices=("paper", "framework"),
    )
    encoder: str = setting(
        "sentence",
        "What tells how alike facts are: the sentence encoder where there is one, or the model's own mean state",
        choices=("sentence", "own"),
    )
    facts: int = setting(8, "Ours: most new facts that may stand before a prompt together", 1, 1000)
    room: int = setting(
        64, "Ours: tokens that stay free for a prompt and its object; more where what is measured is longer", 8, 100_000
    )


@dataclass(frozen=True, eq=False)
class Ike(Editor):
    """The editor with what it found. room: tokens the longest measured prompt and object take. about: remarks."""

    once: ClassVar[str] = "the same new facts would stand before prompts again."
    settings: IkeSettings
    retrieval: Retrieval
    objective: Objective
    room: int = 0
    seed: int = 0
    about: tuple[str, ...] = ()

    def edit(self, lm: LanguageModel, requests: Sequence[EditRequest], watch: Watch = ignore) -> EditOutcome:
        """Put together what is shown; BadRequest where that are too many facts."""
        s = self.settings
        new = tuple(NewFact(request.subject, request.prompt, request.target_new) for request in requests)
        paper = s.form == "paper"
        cases = [request.case_id for request in requests]
        picked = self.retrieval.demonstrations(cases, s.demonstrations, self.seed)
        # Kept as they are, those too that do not fit: another model may read more.
        edit = Demonstrations(picked, new, paper, paper, max(s.room, self.room))
        self._check(lm, edit)
        watch(Step("demonstrations", 0, len(requests)))
        initial, _ = log_perplexity(lm, requests, self.objective)
        with edit.applied(lm) as view:
            final, every = log_perplexity(view, requests, self.objective)
            told = _told(view, s.demonstrations)
        watch(Step("demonstrations", len(requests), len(requests)))
        return EditOutcome(edit, TargetLog.measured(initial, final, every), (*self.about, told))

    def _check(self, lm: LanguageModel, edit: Demonstrations) -> None:
        before = lm.frame.edit if isinstance(lm.frame, Shown) else None
        count = len((before.joined(edit) if before else edit).new)
        if count > self.settings.facts:
            raise BadRequest(
                f"{count} new facts would stand before every prompt, at most {self.settings.facts} may; edit fewer "
                "together, raise facts, or choose an editor that changes weights."
            )


def _told(view: LanguageModel, asked: int) -> str:
    """What stands before prompts in one sentence."""
    assert isinstance(view.frame, Shown)
    assert view.frame.edit
    here = view.frame.edit
    counts = {kind: sum(d.kind == kind for d in here.demonstrations) for kind in KINDS}
    parts = ", ".join(f"{kind} {count}" for kind, count in counts.items() if count)
    return (
        f"{here.tokens(view, bare(view.frame)):,} of {view.context:,} tokens stand before every prompt, "
        f"{len(here.demonstrations)} of {asked} demonstrations among them{f' ({parts})' if parts else ''}."
    )


def build_ike(settings: IkeSettings, materials: Materials) -> Ike:
    """The editor, with what it may show."""
    s, m = settings, materials
    about: list[str] = []
    pool = Pool.of(m.facts() if s.demonstrations else (), m.requests, m.seed)
    retrieval = _retrieve(s, m, pool, about)
    return Ike(s, retrieval, m.objective(Contexts()), longest(m.lm, m.requests), m.seed, tuple(about))


def _retrieve(s: IkeSettings, m: Materials, pool: Pool, about: list[str]) -> Retrieval:
    """The facts most like each request, and in the framework's form the demonstrations of those most like it."""
    if not pool.known or not m.requests:
        if s.demonstrations:
            about.append("No known fact is left to demonstrate with; the new facts stand alone.")
        return Retrieval(pool, {})
    told = [f"{r.full_prompt} {r.target_new}" for r in m.requests]
    near = _found(s, m, told, [known.sentence for known in pool.known], SPARE * s.demonstrations, about)
    cases = [r.case_id for r in m.requests]
    if s.form == "paper":
        return Retrieval(pool, dict(zip(cases, near, strict=True)))
    # Not of all facts: their texts are several times as long, and those of a fact unlike the edit are no more like it.
    numbers = sorted({entry.number for found in near for entry in found})
    each = tuple(d for n in numbers for kind in KINDS if (d := pool.shown(pool.known[n], kind, m.seed)))
    asked = [shown(fact, r.full_prompt) for fact, r in zip(told, m.requests, strict=True)]
    best = _found(s, m, asked, [d.text for d in each], s.demonstrations, [])
    return Retrieval(pool, dict(zip(cases, best, strict=True)), each)


def _found(
    s: IkeSettings, m: Materials, asked: Sequence[str], texts: Sequence[str], count: int, about: list[str]
) -> list[tuple[Found, ...]]:
    """For each text asked for those most like it, the most similar first."""
    alike = m.most_like(asked, texts, count, s.encoder, about)
    return [
        tuple(Found(number, rank, cosine) for rank, (number, cosine) in enumerate(zip(*row, strict=True), 1))
        for row in zip(alike.numbers, alike.cosines, strict=True)
    ]


def longest(lm: LanguageModel, requests: Sequence[EditRequest]) -> int:
    """Tokens of the longest prompt with an object that is measured."""
    coder = Coder(lm.tokenizer, bare(lm.frame))
    pairs = set[tuple[str, str]]()
    for r in requests:
        objects = [name for name in (r.target_new, r.target_true) if name]
        pairs |= {(prompt, name) for prompt in (r.full_prompt, *r.paraphrases) for name in objects}
        probes = (*r.neighbors, *r.locality, *r.portability)
        pairs |= {(p.prompt, name) for p in probes for name in (p.answer, *p.aliases, *objects)}
    return max((len(text.ids) for text in coder.continuations(sorted(pairs))), default=0)


SHOWN_TOKENS = 28  # of a demonstration


def reading_load(s: IkeSettings, facts: int, _depth: int) -> Load:
    """What stands before every prompt that is measured, and looking for it."""
    shown = SHOWN_TOKENS * (s.demonstrations + 2 * facts)
    tokens = facts * (2 * PROBES + 2) * shown
    return Load(tokens, ceil(tokens / AT_ONCE)) + ENCODED.times(s.demonstrations > 0)


ROW = EditorRow(
    "ike",
    "IKE",
    "Shows the new facts, with worked examples, before every prompt; no weight changes.",
    "https://arxiv.org/abs/2305.12740",
    IkeSettings,
    build_ike,
    lambda _settings: (),
    presets={
        **pocket(IkeSettings(demonstrations=4), "four fit the bundled models' short contexts", True),
        "pocket-gpt2-reader": Preset(
            IkeSettings(demonstrations=1, form="framework"), "searched on 30 tune records, see docs/log.md"
        ),
        "gpt2-xl": Preset(IkeSettings(demonstrations=16), "half of GPT-J's, its context is half as long", True),
        "gpt-j-6b": Preset(IkeSettings(), "pkunlp-icler/IKE"),
        "llama-2-7b": Preset(IkeSettings(demonstrations=16, form="framework"), "EasyEdit"),
    },
    needs_statistics=lambda _settings: False,
    needs_facts=lambda s: bool(s.demonstrations),
    cannot={
        ASSIST: "neighbors assist while a target is optimised or spread, and demonstrations do neither; set neighbors "
        "to off, keys to 0 and statistics to tokens."
    },
    whole_rows=True,
    load=reading_load,
    beside=True,
    remark="Nothing is optimised, so there is one iteration. It takes a model that uses what it reads in its prompt.",
)
