"""T-Patcher: one neuron in the last MLP for every token the model gets wrong.

    loss = l_e + a * l_act + m * (l_m1 + l_m2)

    l_e    NLL of the new object
    l_act  exp(-(q k + b)) at the neuron's own query q: it fires there
    l_m1   exp(s - beta), s = q k + b over the memory's queries: it is silent there
    l_m2   exp(s - s_own + gamma): and stays below what it does at its own

The memory holds queries, MLP inputs at single tokens, of ordinary texts and of earlier edits. Requests are written one
after the other. Only the block of the neurons and those above are run while they are trained. Source: Huang et al.
2023, https://arxiv.org/abs/2301.09785.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch
from torch import Tensor

from editing_core.editors.base import Editor, EditOutcome, TargetLog
from editing_core.editors.load import AT_ONCE, BARE_TOKENS, Load, gradients
from editing_core.editors.materials import Materials
from editing_core.editors.row import PROTECTION, EditorRow, Preset
from editing_core.editors.steps.contexts import Contexts, draw_texts
from editing_core.editors.steps.patching import Patching, PatchSettings
from editing_core.editors.steps.rows import Objective, log_perplexity
from editing_core.editors.steps.training import thinned
from editing_core.models.beside import mlp_inputs
from editing_core.models.language_model import LanguageModel
from editing_core.models.neurons import SideNeurons, neurons_on
from editing_core.settings import setting
from editing_core.types import EditRequest, Watch, ignore, noting

LONGEST = 64  # tokens of a text that are read for the memory
OWN_TEXTS = 64  # most texts the model writes where it has no corpus


@dataclass(frozen=True)
class TPatcherSettings(PatchSettings):
    """Settings of T-Patcher, and where its memory comes from."""

    memory: int = setting(
        2000, "Queries of ordinary texts in the memory; as published those of 40,000 examples", 0, 10**6
    )


@dataclass(frozen=True, eq=False)
class TPatcher(Editor):
    """The editor. memory: (n, d) queries of ordinary texts, on the unedited model. about: remarks on where from."""

    settings: TPatcherSettings
    memory: Tensor
    objective: Objective
    about: tuple[str, ...] = ()

    def edit(self, lm: LanguageModel, requests: Sequence[EditRequest], watch: Watch = ignore) -> EditOutcome:
        """Patch the requests in order; each sees the neurons of those before it."""
        initial, _ = log_perplexity(lm, requests, self.objective)
        total, logs, wrong = SideNeurons(), list[TargetLog](), list[int]()
        for n, request in enumerate(requests):
            with total.applied(lm):
                patching = Patching(lm, self.settings, self.objective.rows(lm, request, 0), self._memory(lm))
                history = patching.solve(noting(watch, f"fact {n + 1} of {len(requests)}"))
            total = total.joined(patching.patch(request.case_id))
            logs.append(_log(initial[n : n + 1], history))
            wrong.append(patching.wrong)
        with total.applied(lm):
            final, every = log_perplexity(lm, requests, self.objective)
        log = replace(TargetLog.join(logs), log_p_final=final, log_p_all=every)
        return EditOutcome(total, log, (*self.about, *self._remarks(wrong)))

    def _memory(self, lm: LanguageModel) -> Tensor:
        """(n, d): of ordinary texts, and where the neurons were made to fire that are on."""
        earlier = [g.queries for g in neurons_on(lm) if g.layer == self.settings.layer and g.queries is not None]
        return torch.cat([self.memory, *(q.to(self.memory) for q in earlier)])

    def _remarks(self, wrong: Sequence[int]) -> list[str]:
        """wrong: per request how many tokens of the new object did not come first."""
        most, found = self.settings.patches, []
        if right := wrong.count(0):
            found.append(f"{right} of {len(wrong)} facts were right already and got no neuron.")
        if cut := sum(n > most for n in wrong):
            found.append(
                f"{cut} of {len(wrong)} facts have more than {most} wrong tokens; the first {most} were patched."
            )
        return found


def _log(initial: Tensor, history: Sequence[dict[str, float]]) -> TargetLog:
    """Of one request; what is final is filled in when all are written."""
    return TargetLog.measured(initial, initial, initial, thinned(history), steps=torch.tensor([len(history)]))


def build_t_patcher(settings: TPatcherSettings, materials: Materials) -> TPatcher:
    """The editor with its memory."""
    m, about = materials, list[str]()
    texts = list(m.texts()) if settings.memory else []
    if settings.memory and not texts:
        about.append(f"No corpus comes with {m.lm.name}; the memory is of texts it wrote itself before the edit.")
        enough = min(OWN_TEXTS, 2 * ceil(settings.memory / LONGEST))  # some end early
        texts = list(draw_texts(m.lm, enough, min(LONGEST, m.lm.context), m.seed))
    memory = draw_memory(m.lm, settings.layer, texts, settings.memory, m.seed)
    return TPatcher(settings, memory, m.objective(Contexts()), tuple(about))


def draw_memory(lm: LanguageModel, layer: int, texts: Sequence[str], count: int, seed: int) -> Tensor:
    """(at most count, d) MLP inputs at tokens of the texts, which are taken in random order until there are so many."""
    order, rows, left = list(texts), list[tuple[int, ...]](), count
    random.Random(seed).shuffle(order)
    for text in order:
        if left <= 0:
            break
        row = tuple(lm.tokenizer(text)["input_ids"])[: min(LONGEST, lm.context)]
        rows += [row] if row else []
        left -= len(row)
    if not rows:
        return torch.zeros(0, lm.model.config.get_text_config().hidden_size, dtype=lm.precision, device=lm.device)
    return lm.fitting(lambda: mlp_inputs(lm, layer, rows, [range(len(row)) for row in rows]))[:count]


def patching_load(s: TPatcherSettings, facts: int, depth: int) -> Load:
    """Steps on the last block alone, facts one after the other, and texts written where there is no corpus."""
    one = gradients(BARE_TOKENS / depth, 1 / depth).times(s.steps) + Load(2 * BARE_TOKENS, 2)
    texts = Load(OWN_TEXTS * LONGEST**2 / 2, LONGEST).times(s.memory > 0)
    return one.times(facts) + texts + Load(s.memory, ceil(s.memory / AT_ONCE))


ROW = EditorRow(
    "t-patcher",
    "T-Patcher",
    "One neuron in the last MLP for every wrong token, silent elsewhere.",
    "https://arxiv.org/abs/2301.09785",
    TPatcherSettings,
    build_t_patcher,
    lambda s: [s.layer],
    by_depth=(1, 1.0),
    presets={
        "pocket-gpt2": Preset(TPatcherSettings(layer=5), "the published settings, fewer steps"),
        "pocket-llama": Preset(TPatcherSettings(layer=5), "as pocket-gpt2's, its last layer", True),
        "pocket-gptj": Preset(TPatcherSettings(layer=6), "as pocket-gpt2's, its last layer", True),
        "gpt2-xl": Preset(TPatcherSettings(layer=47), "the published settings, fewer steps", True),
        "gpt-j-6b": Preset(TPatcherSettings(), "the published settings, fewer steps", True),
        "llama-2-7b": Preset(TPatcherSettings(layer=31), "the published settings, fewer steps", True),
    },
    needs_statistics=lambda _settings: False,
    faithful={"*": {"value": "amplified", "smoothing": 0.1, "steps": 2000}},
    cannot={
        PROTECTION: "keys are protected in a closed form, which it has not; set keys to 0 and statistics to tokens."
    },
    whole_rows=True,
    load=patching_load,
    one_by_one=True,
    beside=True,
)
