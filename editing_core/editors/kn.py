"""KN, knowledge neurons: the few MLP neurons that bring up the old object are made to say the new one.

A neuron of the inner layer is read as a memory cell: its activation says that a fact is being recalled, its column of
the down-projection what is recalled. Neurons with a large share in the old object's probability, by integrated
gradients at the prompt's last token, all get the same vector added to their columns:

    v = write * embedding(new) - erase * embedding(old),   W' = W + v m^T,   m: 1 at the chosen neurons, else 0

In: one EditRequest. Out: a WeightDelta of rank one per touched block. Source: Dai et al. 2022,
https://arxiv.org/abs/2104.08696.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from editing_core.editors.base import Editor, EditOutcome, TargetLog
from editing_core.editors.load import BARE_TOKENS, ROWS, Load, gradients
from editing_core.editors.materials import Materials
from editing_core.editors.row import ASSIST, BATCH, EditorRow, Preset
from editing_core.editors.steps.attribution import GRIDS, Site, before_activation, inner_scores, questions
from editing_core.editors.steps.contexts import Contexts, draw_prefixed
from editing_core.editors.steps.rows import Objective, log_perplexity
from editing_core.errors import BadSetting, ModelUnavailable
from editing_core.models.delta import LowRank, WeightDelta
from editing_core.models.language_model import LanguageModel
from editing_core.models.slots import matrix_shape
from editing_core.models.subjects import plain_embeddings
from editing_core.settings import Settings, setting
from editing_core.types import EditRequest, Step, Watch, ignore

FINDING, WRITING = "Finding neurons", "Writing"
NEURONS = "neurons"  # what provenance calls them
TOLD = 12  # neurons that a remark names


@dataclass(frozen=True)
class KnSettings(Settings):
    """Settings of KN. In brackets: the name in the published code."""

    points: int = setting(
        20, "Scaled copies of the activations that gradients are averaged over [steps]", 5, 1000, group=FINDING
    )
    threshold: float = setting(
        0.2, "A neuron is chosen above this share of the largest score [adaptive_threshold]", 0.0, 1.0, group=FINDING
    )
    most: int = setting(100, "Ours: most neurons, those with the largest scores", 1, 100_000, group=FINDING)
    refine: str = setting(
        "off",
        "Only neurons that several wordings share: the fact behind random prefixes, or its paraphrases, which are "
        "measured too",
        choices=("off", "prefixes", "paraphrases"),
        group=FINDING,
    )
    share: float = setting(
        0.4, "With refine: in more than this share of the wordings [p]; without it nothing", 0.0, 0.99, group=FINDING
    )
    site: str = setting(
        "post",
        "Whose shares are looked at: activations (post), or what the activation function gets, as in the published "
        "code (pre)",
        choices=("post", "pre"),
        group=FINDING,
    )
    grid: str = setting(
        "right", "Points of the path: j/M as in the paper, or with both ends as in its code", choices=tuple(GRIDS),
        group=FINDING,
    )  # fmt: skip
    old: str = setting(
        "request",
        "What is attributed and erased: the request's old object, or as in the published code the model's first choice",
        choices=("request", "choice"),
        group=FINDING,
    )
    follow: str = setting(
        "answer",
        "What stands before further tokens of an old object: its own, or as in the published code the model's choices",
        choices=("answer", "choice"),
        group=FINDING,
    )
    write: float = setting(2.0, "Factor of the new object's vector", 0.0, 1000.0, group=WRITING)
    erase: float = setting(2.0, "Factor of the old object's vector", 0.0, 1000.0, group=WRITING)
    several: str = setting(
        "mean",
        "Vector of an object of several tokens: their mean, the first one's, or their sum without a factor, as in the "
        "published code",
        choices=("mean", "first", "sum"),
        group=WRITING,
    )
    vector: str = setting(
        "embedding",
        "Vectors of tokens: their input embeddings, or the rows the head reads them with, another thing in models that "
        "do not share the two",
        choices=("embedding", "head"),
        group=WRITING,
    )


@dataclass(frozen=True)
class Neuron:
    """A neuron of the inner layer and the score it was chosen by."""

    layer: int
    unit: int
    score: float


@dataclass(frozen=True, eq=False)
class Kn(Editor):
    """The editor. prefixes: contexts of the wordings that refine compares."""

    settings: KnSettings
    objective: Objective
    prefixes: Contexts = field(default_factory=Contexts)

    def edit(self, lm: LanguageModel, requests: Sequence[EditRequest], watch: Watch = ignore) -> EditOutcome:
        """Write the one request; BadSetting for more than one."""
        ROW.check(len(requests))
        (request,) = requests
        initial, _ = log_perplexity(lm, requests, self.objective)
        old = request.target_true if self.settings.old == "request" else None
        scores = self._scores(lm, request, old, watch)
        kept, passed = chosen(scores, self.settings)
        vector = self._vector(lm, request, old)
        delta = written(lm, kept, vector)
        with delta.on(lm.model):
            final, every = log_perplexity(lm, requests, self.objective)
        log = TargetLog.measured(
            initial,
            final,
            every,
            steps=torch.tensor([self.settings.points]),
            norm=vector.norm()[None],
            finite=torch.tensor([delta.finite and bool(scores.isfinite().all())]),
        )
        return EditOutcome(delta, log, self._notes(request, old, kept, passed))

    def _scores(self, lm: LanguageModel, request: EditRequest, old: str | None, watch: Watch) -> Tensor:
        """(wordings, layers, inner) float32, of the bare prompt first."""
        s = self.settings
        prompts = self._wordings(request)
        asked = [questions(lm, prompt, old, self.objective.objects, s.follow) for prompt in prompts]
        total = len(prompts) * lm.layers
        found = []
        for number, of_one in enumerate(asked):
            rows = []
            for layer in range(lm.layers):
                site = Site.inner(lm, layer) if s.site == "post" else before_activation(lm, layer)
                rows.append(inner_scores(lm, of_one, site, s.points, s.grid))
                note = f"layer {layer}, wording {number + 1} of {len(prompts)}"
                watch(Step("attribute", number * lm.layers + layer + 1, total, note=note))
            found.append(torch.stack(rows))
        return torch.stack(found)

    def _wordings(self, request: EditRequest) -> list[str]:
        s, prompt = self.settings, request.full_prompt
        if s.refine == "prefixes":
            return [self.prefixes.prefix(number) + prompt for number in range(len(self.prefixes))]
        return [prompt, *(request.paraphrases if s.refine == "paraphrases" else ())]

    def _vector(self, lm: LanguageModel, request: EditRequest, old: str | None) -> Tensor:
        """(width,) what is added to every chosen neuron's column."""
        s = self.settings

        def of(tokens: Sequence[int], factor: float) -> Tensor:
            rows = token_vectors(lm, tokens, s.vector)
            if s.several == "sum" and len(tokens) > 1:
                return rows.sum(0)
            return factor * (rows[0] if s.several == "first" else rows.mean(0))

        prompt, objects = request.full_prompt, self.objective.objects
        new = [token for _, token in questions(lm, prompt, request.target_new, objects)]
        gone = [token for _, token in questions(lm, prompt, old, objects)]
        return of(new, s.write) - of(gone, s.erase)

    def _notes(self, request: EditRequest, old: str | None, kept: Sequence[Neuron], passed: int) -> tuple[str, ...]:
        if not kept:
            return (f"{request.subject}: no neuron passed, so nothing was changed; lower the threshold or the share.",)
        layers = len({neuron.layer for neuron in kept})
        cut = f", the best of {passed} that passed" if passed > len(kept) else ""
        whose = f"the old object {old!r}" if old else "the model's first choice"
        first = f"{request.subject}: {len(kept)} neurons in {layers} layers, chosen by their part in {whose}{cut}: "
        more = ", ..." if len(kept) > TOLD else ""
        notes = [f"{first}{', '.join(f'{n.layer}:{n.unit} {n.score:.3g}' for n in kept[:TOLD])}{more}."]
        if self.settings.refine == "paraphrases":
            count = len(request.paraphrases)
            notes.append(f"The neurons were refined over {count} paraphrases; their generalization is not held out.")
        return tuple(notes)


def chosen(scores: Tensor, settings: KnSettings) -> tuple[list[Neuron], int]:
    """The neurons, best first, and how many passed before the cap. scores: (wordings, layers, inner).

    Per wording the coarse set is what lies above the threshold's share of the largest score; with several, what is in
    more than `share` of them. Where no score is positive nothing is chosen.
    """
    tops = scores.flatten(1).amax(1).clamp(min=0)[:, None, None]
    coarse = (scores > settings.threshold * tops) & (tops > 0)
    kept = coarse[0] if len(scores) == 1 else coarse.float().mean(0) > settings.share
    mean = scores.mean(0)
    places = kept.nonzero().tolist()
    neurons = [Neuron(layer, unit, float(mean[layer, unit])) for layer, unit in places]
    return sorted(neurons, key=lambda n: -n.score)[: settings.most], len(neurons)


def written(lm: LanguageModel, neurons: Sequence[Neuron], vector: Tensor) -> WeightDelta:
    """The edit that adds a vector (width,) to these neurons' columns. Its provenance names them with their scores."""
    updates, told = {}, []
    for layer in sorted({neuron.layer for neuron in neurons}):
        own = [neuron for neuron in neurons if neuron.layer == layer]
        down = lm.architecture.down(layer)
        shape = matrix_shape(lm.model.get_submodule(down))
        if shape is None or shape[0] != len(vector):
            raise ModelUnavailable(
                f"{lm.name} has token vectors of {len(vector)} numbers, which do not fit the output of its MLPs, and "
                "KN adds the one to the other; choose another editor."
            )
        mask = torch.zeros(1, shape[1])
        mask[0, [neuron.unit for neuron in own]] = 1.0
        updates[f"{down}.weight"] = LowRank(vector[:, None].clone(), mask)
        told.append(f"{layer}: " + ", ".join(f"{neuron.unit} {neuron.score:.3g}" for neuron in own))
    return WeightDelta(updates, {NEURONS: "; ".join(told)} if told else {})


@torch.no_grad()
def token_vectors(lm: LanguageModel, tokens: Sequence[int], vector: str) -> Tensor:
    """(tokens, width) float32 on the processor. vector: "embedding" or "head"."""
    if vector == "head":
        weight: Tensor = lm.head.weight  # type: ignore[assignment]
        if weight.dim() == 2 and weight.is_floating_point() and weight.device.type != "meta":
            return weight[list(tokens)].float().cpu()
        raise BadSetting(f"The head of {lm.name} is packed or offloaded; set vector to embedding.")
    return plain_embeddings(lm, tokens)


def build_kn(settings: KnSettings, materials: Materials) -> Kn:
    """The editor, with its random beginnings where neurons are refined by them."""
    prefixes = Contexts()
    if settings.refine == "prefixes":
        prefixes = Contexts.flat(draw_prefixed(materials.lm, ((10, 5),), materials.seed))
    return Kn(settings, materials.objective(Contexts()), prefixes)


def attribution_load(s: KnSettings, facts: int, depth: int) -> Load:
    """Scaled copies of every wording in every layer, for both tokens of an object."""
    wordings = {"off": 1, "prefixes": ROWS, "paraphrases": 3}[s.refine]
    rows = 2 * facts * wordings * depth
    return gradients(rows * s.points * BARE_TOKENS, rows) + Load(rows * BARE_TOKENS, rows)


ROW = EditorRow(
    "kn",
    "KN",
    "Makes the few MLP neurons that recall the old object say the new one.",
    "https://arxiv.org/abs/2104.08696",
    KnSettings,
    build_kn,
    lambda _settings: (),
    presets={
        "pocket-gpt2": Preset(KnSettings(threshold=0.6, write=3.0, erase=1.0), "tried on ten tune records"),
        "gpt2-xl": Preset(KnSettings(), "EasyEdit"),
        "gpt-j-6b": Preset(KnSettings(threshold=0.1), "EasyEdit"),
        "llama-2-7b": Preset(KnSettings(write=1.0, erase=1.0), "factors as in KN's own code", True),
    },
    needs_statistics=lambda _settings: False,
    faithful={"*": {"site": "pre", "grid": "ends", "old": "choice", "follow": "choice", "several": "sum"}},
    cannot={
        BATCH: "its neurons are those of one fact; write facts one after the other (protocol single or sequential), "
        "or choose another editor.",
        ASSIST: "it optimises nothing that neighbors could assist; set neighbors off, keys to 0 and statistics to "
        "tokens, or choose another editor.",
    },
    whole_rows=True,
    load=attribution_load,
    one_by_one=True,
    remark="Other facts use the same neurons, so neighbors mostly change too.",
)
