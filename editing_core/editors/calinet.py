"""CaliNET: a few more neurons beside late MLPs, trained together on all facts to correct.

    min  mean over facts of NLL(object | prompt, in several contexts)  +  weight * KL(before || now) on unrelated facts

The KL term is ours: the published method has none, and changes much it should not. Everything below the first of the
layers is computed once. Source: Dong et al. 2022, https://arxiv.org/abs/2210.03329; beside a gated MLP the neurons
are gated too, which is ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import ceil

import torch

from editing_core.editors.base import Editor, EditOutcome, TargetLog
from editing_core.editors.load import AT_ONCE, ENCODED, ROW_TOKENS, Load, gradients
from editing_core.editors.materials import Materials
from editing_core.editors.row import PROTECTION, EditorRow, Preset
from editing_core.editors.steps.calibration import Calibration, CalibrationSettings
from editing_core.editors.steps.contexts import Contexts, draw_prefixed
from editing_core.editors.steps.examples import Case, Example, random_facts, similar_facts
from editing_core.editors.steps.rows import Objective, log_perplexity
from editing_core.editors.steps.training import thinned
from editing_core.models.language_model import LanguageModel
from editing_core.settings import setting
from editing_core.types import EditRequest, Watch, ignore


@dataclass(frozen=True)
class CaliNetSettings(CalibrationSettings):
    """Settings of CaliNET, and what it is trained on."""

    contexts: int = setting(5, "Random beginnings each fact is also trained behind; none is as in the survey", 0, 100)
    context_tokens: int = setting(10, "Tokens of such a beginning", 2, 50)
    random_facts: int = setting(32, "Ours: random unedited facts per edit that should stay as they are", 0, 1000)
    similar_facts: int = setting(32, "Ours: unedited facts most like each edit that should stay as they are", 0, 1000)
    most_facts: int = setting(512, "Ours: at most so many of them for all edits together", 1, 100_000)
    encoder: str = setting(
        "sentence",
        "What tells how alike facts are: the sentence encoder where there is one, or the model's own mean state",
        choices=("sentence", "own"),
    )


@dataclass(frozen=True, eq=False)
class CaliNet(Editor):
    """The editor. unrelated: by case, facts that should stay. about: remarks on how these were found."""

    settings: CaliNetSettings
    unrelated: Mapping[Case, tuple[Example, ...]]
    objective: Objective
    seed: int = 0
    about: tuple[str, ...] = ()

    def edit(self, lm: LanguageModel, requests: Sequence[EditRequest], watch: Watch = ignore) -> EditOutcome:
        """Train neurons for all requests together, beside what the model carries already."""
        n = len(requests)
        initial, _ = log_perplexity(lm, requests, self.objective)
        rows = [row for i, request in enumerate(requests) for row in self.objective.rows(lm, request, i)]
        kept = self._kept(requests)
        calibration = Calibration(lm, self.settings, rows, [self._asked(lm, fact) for fact in kept], self.seed)
        history = calibration.solve(watch)
        edit = calibration.edit(tuple(request.case_id for request in requests))
        with edit.applied(lm):
            final, every = log_perplexity(lm, requests, self.objective)
        steps = torch.full((n,), len(history))
        log = TargetLog.measured(initial, final, every, thinned(history), steps=steps)
        said = f"Trained {len(history):,} steps on {len(rows):,} sentences of edits and {len(kept):,} unrelated facts."
        return EditOutcome(edit, log, (*self.about, said))

    def _kept(self, requests: Sequence[EditRequest]) -> list[Example]:
        """Unrelated facts, each once: a part of every request's where there are too many of all."""
        mine = [self.unrelated.get(request.case_id, ()) for request in requests]
        turns = (fact for turn in zip_longest(*mine) for fact in turn if fact is not None)
        different = {(fact.prompt, fact.answer): fact for fact in turns}
        return [*different.values()][: self.settings.most_facts]

    def _asked(self, lm: LanguageModel, fact: Example) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """An unrelated fact as ids, and where its answer is predicted."""
        text = lm.coder.continuation(fact.prompt, fact.answer, self.objective.objects)
        return text.inputs, tuple(text.positions)


def build_calinet(settings: CaliNetSettings, materials: Materials) -> CaliNet:
    """The editor, with the facts that should stay; BadSetting where nothing tells which are alike."""
    s, m, about = settings, materials, list[str]()

    def alike(asked: Sequence[str], known: Sequence[str], count: int) -> list[list[int]]:
        return m.most_like(asked, known, count, s.encoder, about).numbers

    prefixed = draw_prefixed(m.lm, ((s.context_tokens, s.contexts),), m.seed) if s.contexts else ()
    pool = m.facts() if s.random_facts or s.similar_facts else ()
    similar = similar_facts(m.requests, pool, s.similar_facts, m.seed, alike)
    unrelated = interleaved(similar, random_facts(m.requests, pool, s.random_facts, m.seed))
    return CaliNet(s, unrelated, m.objective(Contexts.flat(prefixed)), m.seed, tuple(about))


def interleaved(*parts: Mapping[Case, tuple[Example, ...]]) -> dict[Case, tuple[Example, ...]]:
    """Several kinds of facts by case, taken in turn, so that the first ones are of all kinds."""
    cases = dict.fromkeys(case for part in parts for case in part)
    turns = {case: zip_longest(*(part.get(case, ()) for part in parts)) for case in cases}
    return {case: tuple(fact for turn in turns[case] for fact in turn if fact) for case in cases}


def calibration_load(s: CaliNetSettings, facts: int, depth: int) -> Load:
    """Steps on the calibrated blocks and those above, and what is computed for that once."""
    edits, others = facts * (1 + s.contexts), min(s.most_facts, facts * (s.random_facts + s.similar_facts))
    every = (edits + others) * ROW_TOKENS
    above = (depth - min(s.layers)) / depth
    one = above * min(1.0, s.batch / edits) * every
    steps = gradients(one, above * ceil(one / AT_ONCE)).times(s.steps)
    return steps + Load(every, ceil(every / AT_ONCE)) + ENCODED.times(s.similar_facts > 0)


_PUBLISHED = {"random_facts": 0, "similar_facts": 0, "start": "random", "optimiser": "adafactor", "warmup": 100}
_PUBLISHED |= {"steps": 5000}
_POCKET = CaliNetSettings(layers=(5,), neurons=16, rate=3e-3, kl=10.0, random_facts=64, similar_facts=64)
ROW = EditorRow(
    "calinet",
    "CaliNET",
    "A few more neurons beside late MLPs, trained on all facts together.",
    "https://arxiv.org/abs/2210.03329",
    CaliNetSettings,
    build_calinet,
    lambda s: s.layers,
    by_depth=(2, 1.0),
    presets={
        "pocket-gpt2": Preset(_POCKET, "tried on the tune records, see docs/log.md"),
        "pocket-llama": Preset(_POCKET, "as pocket-gpt2's", True),
        "pocket-gptj": Preset(_POCKET.changed({"layers": (6,)}), "as pocket-gpt2's", True),
        "gpt2-xl": Preset(CaliNetSettings(layers=(46, 47)), "the last two layers, as published for T5", True),
        "gpt-j-6b": Preset(CaliNetSettings(layers=(26, 27)), "the last two layers, as published for T5", True),
        "llama-2-7b": Preset(CaliNetSettings(layers=(30, 31)), "the last two layers, as published for T5", True),
    },
    faithful={"*": _PUBLISHED},
    needs_statistics=lambda _settings: False,
    needs_facts=lambda s: bool(s.random_facts or s.similar_facts),
    cannot={
        PROTECTION: "keys are protected in a closed form, which it has not; set keys to 0 and statistics to tokens, or "
        "raise the number of similar facts."
    },
    whole_rows=True,
    load=calibration_load,
    beside=True,
)
