"""GRACE: remember every edit's prompt at one layer, with an output of that layer that makes the new object likely.

    key     what the layer reads at the prompt's last token
    value   argmin over v of - log p(new object | prompt, layer's output there := v), by Adam
    radius  how near another prompt's query must come to get that value, see `models.entries`

No weight changes, and what is outside every radius meets the unedited model to the bit. In: EditRequests. Out: a
Codebook. Source: Hartvigsen et al. 2023, https://arxiv.org/abs/2211.11031.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import ClassVar

import torch
from torch import Tensor

from editing_core.editors.base import Editor, EditOutcome, TargetLog
from editing_core.editors.load import AT_ONCE, BARE_TOKENS, ROW_TOKENS, Load, gradients
from editing_core.editors.materials import Materials
from editing_core.editors.row import ASSIST, EditorRow, Preset
from editing_core.editors.steps.contexts import Contexts, draw_openings
from editing_core.editors.steps.radii import calibrated
from editing_core.editors.steps.rows import Objective, log_perplexity
from editing_core.editors.steps.values import Search, Values, optimised
from editing_core.errors import BadSetting
from editing_core.models.codebook import QUERIES, Codebook, carried, queries, sites
from editing_core.models.entries import PLACES, Entries, Insertion, inserted
from editing_core.models.language_model import LanguageModel
from editing_core.models.tokens import Continuation
from editing_core.settings import Settings, setting
from editing_core.types import EditRequest, Step, Watch, ignore

WHERE, RADII, VALUES = "Where", "Radii", "Values"
PREFIXES, PREFIX_TOKENS, UNRELATED = 10, 10, 500  # of a calibration: made-up words, and prompts of other facts


@dataclass(frozen=True)
class GraceSettings(Settings):
    """Settings of GRACE. As made, those published for GPT-J where ours are not better."""

    layer: int = setting(25, "The layer that remembers; a late one, where a prompt's end tells facts apart", 0, 1000,
                         group=WHERE)  # fmt: skip
    query: str = setting(
        "down",
        "What is compared at a prompt's end: the input of the MLP's down-projection, or of the whole MLP",
        choices=QUERIES,
        group=WHERE,
    )
    places: str = setting(
        "last",
        "Where the value stands: at the prompt's last token, at all of the prompt, or behind it too, which reaches "
        "objects that are scored but not texts that are written [replacement]",
        choices=PLACES,
        group=WHERE,
    )
    radius: float = setting(1.0, "Radius of a new entry, in units of the layer's own states [eps]", 0.0, 1e6,
                            group=RADII)  # fmt: skip
    calibrate: str = setting(
        "off",
        "Set the radius between how far the edits' paraphrases end (behind made-up prefixes, or their own, which are "
        "measured too) and how near unrelated facts do",
        choices=("off", "prefixes", "paraphrases"),
        group=RADII,
    )
    share: bool = setting(
        False,
        "A near entry of the same new object reaches further instead of a new one, as published; a later split or a "
        "nearer entry may take the fact away again",
        group=RADII,
    )
    published_radii: bool = setting(
        False, "Radii as in the published code, where a ball that was made smaller may grow again", group=RADII
    )
    steps: int = setting(100, "Most gradient steps per value [n_iter]", 1, 1000, group=VALUES)
    rate: float = setting(1.0, "Adam's step size on the value [edit_lr]", 1e-4, 10.0, group=VALUES)
    start: str = setting(
        "warm",
        "Where values start: at the layer's own output, or at random, as published [val_init]",
        choices=("warm", "cold"),
        group=VALUES,
    )
    stop_below: float = setting(
        0.01, "A value is finished when its loss falls below this; 0 is off", 0.0, 10.0, group=VALUES
    )


@dataclass(frozen=True, eq=False)
class Grace(Editor):
    """The editor. radius: of new entries, measured where the settings ask for it. about: how it was measured."""

    once: ClassVar[str] = "what is remembered already would be found and left as it is."
    settings: GraceSettings
    objective: Objective
    radius: float
    seed: int = 0
    about: tuple[str, ...] = ()

    def edit(self, lm: LanguageModel, requests: Sequence[EditRequest], watch: Watch = ignore) -> EditOutcome:
        """Insert the requests in order, behind what the model's codebooks hold already."""
        s, before = self.settings, carried(lm.model)
        before.check_beside(s.layer, s.query)
        initial, _ = log_perplexity(lm, requests, self.objective)
        texts = lm.coder.continuations([(r.full_prompt, r.target_new) for r in requests], self.objective.objects)
        keys = queries(lm, s.layer, s.query, [r.full_prompt for r in requests])
        asked = [self._insertion(*part) for part in zip(requests, keys, texts, strict=True)]
        plan = _planned(before, asked, watch)
        fresh = [number for number, (new, source) in enumerate(zip(asked, plan, strict=True)) if source is new]
        found = self._values(lm, [requests[i] for i in fresh], [texts[i] for i in fresh], watch)
        value = dict(zip((asked[i] for i in fresh), found.value, strict=True))
        log = [
            replace(new, value=value.get(source, source.value), places=source.places)
            for new, source in zip(asked, plan, strict=True)
            if source is not None
        ]
        book = Codebook(s.layer, s.query, tuple(log))
        with book.applied(lm) as edited:
            final, every = log_perplexity(edited, requests, self.objective)
        targets = _logged(found, fresh, initial, final, every)
        return EditOutcome(book, targets, (*self.about, *_told(lm, s, texts, plan, asked)))

    def _insertion(self, request: EditRequest, key: Tensor, text: Continuation) -> Insertion:
        """The operation of a request, its value still to be found."""
        s, labels, prompt = self.settings, text.object_ids, request.full_prompt
        return Insertion(
            key,
            torch.zeros(0),
            self.radius,
            labels,
            request.case_id,
            prompt,
            s.places,
            shares=s.share,
            published=s.published_radii,
        )

    def _values(
        self, lm: LanguageModel, requests: Sequence[EditRequest], texts: Sequence[Continuation], watch: Watch
    ) -> Values:
        """Those of requests that become entries. The seed of a cold start hangs on the request alone."""
        s, site = self.settings, sites(lm, self.settings.layer, self.settings.query)[1]
        search = Search(s.steps, s.rate, s.stop_below, s.places)
        seeds = [random.Random(f"{self.seed}|{request.case_id}").getrandbits(63) for request in requests]
        return optimised(lm, site, texts, search, seeds if s.start == "cold" else None, watch)


def _planned(before: Codebook, asked: Sequence[Insertion], watch: Watch) -> list[Insertion | None]:
    """Per insertion whose value it gets: its own, that of an entry it shares, or None where it is there and answered.

    Queries do not hang on values of their own layer, so what becomes of each insertion is known before any value is.
    """
    plan: list[Insertion | None] = []
    entries, there = before.entries, {(old.prompt, old.case, old.labels) for old in before.log}
    for number, new in enumerate(asked):
        if (new.prompt, new.case, new.labels) in there and _answers(entries, new):
            plan.append(None)
        else:
            entries = inserted(entries, new)
            plan.append(new if new in entries.made else entries.made[int(entries.nearest(new.key[None])[0])])
        watch(Step("insert", number + 1, len(asked)))
    return plan


def _answers(entries: Entries, new: Insertion) -> bool:
    """Whether a prompt gets its new object's value already."""
    numbers, _, hits = entries.route(new.key[None])
    return bool(hits[0]) and entries.made[int(numbers[0])].labels == new.labels


def _logged(found: Values, fresh: Sequence[int], initial: Tensor, final: Tensor, every: Tensor) -> TargetLog:
    """The log of all requests; those without a value of their own took no steps."""
    n, at = len(initial), torch.tensor(fresh, dtype=torch.long)

    def spread(part: Tensor, otherwise: float) -> Tensor:
        return torch.full((n,), otherwise, dtype=part.dtype).index_put((at,), part)

    own = {"steps": spread(found.steps, 0), "norm": spread(found.norm, 0.0), "finite": spread(found.finite, True)}
    return TargetLog.measured(initial, final, every, found.history, **own)


def _told(
    lm: LanguageModel,
    s: GraceSettings,
    texts: Sequence[Continuation],
    plan: Sequence[Insertion | None],
    asked: Sequence[Insertion],
) -> tuple[str, ...]:
    """Remarks on what became of the requests."""
    notes = []
    shared = sum(source is not None and source is not new for new, source in zip(asked, plan, strict=True))
    if shared:
        notes.append(f"{shared} of {len(plan)} facts get the value of a near entry that has the same new object.")
    if s.layer == lm.layers - 1 and s.places != "all" and any(len(text.object_ids) > 1 for text in texts):
        notes.append(
            f"Layer {s.layer} is the last one: what it puts out at a prompt decides the first token of an object only, "
            "and some new objects have more; choose a lower layer."
        )
    return tuple(notes)


def build_grace(settings: GraceSettings, materials: Materials) -> Grace:
    """The editor with its radius; BadSetting where there is nothing to measure one on."""
    s, m = settings, materials
    sites(m.lm, s.layer, s.query)
    objective = m.objective(Contexts())
    if s.calibrate == "off":
        return Grace(s, objective, s.radius, m.seed)
    found = calibrated(m.lm, s.layer, s.query, _alike(s, m), _unrelated(m))
    kind = "prompts behind made-up prefixes" if s.calibrate == "prefixes" else "paraphrases, which are measured too,"
    return Grace(s, objective, found.radius, m.seed, (found.told(kind),))


def _alike(s: GraceSettings, m: Materials) -> list[tuple[str, tuple[str, ...]]]:
    """Every edit prompt with others that ask the same."""
    if s.calibrate == "prefixes":
        prefixes = draw_openings(m.lm, PREFIXES, PREFIX_TOKENS, m.seed)
        found = [(r.full_prompt, tuple(prefix + r.full_prompt for prefix in prefixes)) for r in m.requests]
    else:
        found = [(r.full_prompt, r.paraphrases) for r in m.requests]
    if not any(others for _, others in found):
        raise BadSetting(f"calibrate is {s.calibrate}, but no edit has such paraphrases; choose another, or off.")
    return found


def _unrelated(m: Materials) -> list[str]:
    facts = m.facts()
    if not facts:
        raise BadSetting("No known facts are left to measure unrelated prompts on; set calibrate to off.")
    return [fact.prompt for fact in random.Random(m.seed).sample(list(facts), min(UNRELATED, len(facts)))]


def values_load(s: GraceSettings, facts: int, _depth: int) -> Load:
    """Keys, values, and what a radius is measured on."""
    tokens = facts * BARE_TOKENS
    measured = Load((PREFIXES * facts + UNRELATED) * ROW_TOKENS, 2).times(s.calibrate != "off")
    return gradients(tokens, ceil(tokens / AT_ONCE)).times(s.steps) + Load(2 * tokens, 2) + measured


ROW = EditorRow(
    "grace",
    "GRACE",
    "Remembers each edit's prompt at one layer and answers there; no weight changes.",
    "https://arxiv.org/abs/2211.11031",
    GraceSettings,
    build_grace,
    lambda s: [s.layer],
    by_depth=(1, 0.8),
    presets={
        "pocket-gpt2": Preset(
            GraceSettings(layer=4, query="mlp", radius=9.0), "layer and radius searched on the tune records"
        ),
        "pocket-llama": Preset(
            GraceSettings(layer=5, query="mlp", radius=10.7),
            "between paraphrases and other facts of the tune records",
            True,
        ),
        "pocket-gptj": Preset(
            GraceSettings(layer=6, query="mlp", radius=9.8),
            "between paraphrases and other facts of the tune records",
            True,
        ),
        "gpt2-xl": Preset(GraceSettings(layer=35, query="mlp", steps=200), "EasyEdit's layer, radius not tuned", True),
        "gpt-j-6b": Preset(GraceSettings(steps=200), "EasyEdit"),
        "llama-2-7b": Preset(GraceSettings(layer=27, steps=50), "EasyEdit"),
    },
    needs_statistics=lambda _settings: False,
    needs_facts=lambda s: s.calibrate != "off",
    faithful={"*": {"start": "cold", "share": True, "published_radii": True, "stop_below": 0.0}},
    cannot={
        ASSIST: "prompts outside its radii stay as they were and no keys are protected, so neighbors and statistics "
        "have no part in it; set neighbors to off, keys to 0 and statistics to tokens."
    },
    whole_rows=True,
    load=values_load,
    beside=True,
    remark="What is outside every radius stays as it was to the bit; paraphrases outside get nothing either.",
)
