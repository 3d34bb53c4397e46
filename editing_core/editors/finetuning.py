"""Fine-tuning: train some weights on the edits, and on what keeps everything else as it was.

    min  - sum over (prompt, answer) in E, P, R of log p(answer | prompt)

Plain fine-tuning of the edits' sentences fails; loss on the answer only (Mask), the edits behind made-up words
(Para) and unedited facts beside them (Rand, Sim) make it a rival of the specialists. Each is a setting of its
own. In: EditRequests. Out: a WeightDelta, low-rank where an adapter was trained, otherwise of the changed
weights. Source: Gangadhar and Stratos 2024, https://arxiv.org/abs/2402.11078; the baselines FT-L and FT-W are
those of Meng et al. 2022 and 2023.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import ceil, exp

import torch

from editing_core.depths import TRAINED
from editing_core.editors.base import Editor, EditOutcome, TargetLog
from editing_core.editors.finetuning_data import augmentation
from editing_core.editors.load import ENCODED, EXAMPLE_TOKENS, Load, gradients
from editing_core.editors.materials import Materials
from editing_core.editors.recipes import RECIPES
from editing_core.editors.row import PROTECTION, EditorRow, Preset
from editing_core.editors.steps.examples import Augmentation, Example, neighbor_examples
from editing_core.editors.steps.rows import Objective, log_perplexity
from editing_core.editors.steps.token_rows import Labels, items_of, text_rows
from editing_core.editors.steps.training import OPTIMISERS, SCHEDULES, Course, Loss, Trainer, thinned
from editing_core.errors import BadSetting
from editing_core.models.language_model import LanguageModel
from editing_core.models.trainable import (
    Lora,
    Trainable,
    adapted,
    embedding_module,
    linear_modules,
    parameters_in,
    unfrozen,
)
from editing_core.settings import Settings, setting
from editing_core.types import EditRequest, Watch, ignore

INGREDIENTS, WEIGHTS, TRAINING = "Ingredients", "Which weights", "Training"
COUNTS = "Trained in"  # begins the remark on how much was trained
TARGETS = {"attention": ("attention",), "mlp": ("mlp",), "attention and mlp": ("attention", "mlp")}


@dataclass(frozen=True)
class FineTuningSettings(Settings):
    """Settings of fine-tuning. As made, those of the paper's final method, FT + Mask + Para + Rand."""

    mask: bool = setting(
        True, "Mask: loss on the new object only; off: on the whole sentence", group=INGREDIENTS, on=True
    )
    paraphrases: int = setting(
        15,
        "Para: copies of each edit behind made-up words, so that it holds elsewhere too",
        0,
        100,
        (),
        INGREDIENTS,
        15,
    )
    random_facts: int = setting(
        20, "Rand: random unedited facts beside each edit, so that the rest stays", 0, 100, (), INGREDIENTS, 20
    )
    similar_facts: int = setting(
        0, "Sim: unedited facts most like each edit, so that its neighborhood stays", 0, 100, (), INGREDIENTS, 15
    )
    dpo: float = setting(
        0.0, "DPO: share of a loss that prefers the new object to the old one", 0.0, 1.0, (), INGREDIENTS, 0.5
    )
    language: float = setting(
        0.0, "Text: gamma, share of a language-model loss on other texts", 0.0, 1.0, (), INGREDIENTS, 0.1
    )
    prefix_tokens: int = setting(10, "Most tokens of a paraphrase's made-up words", 2, 50, group=INGREDIENTS)
    prefix_model: str = setting(
        "own",
        "Which unedited model makes the words up: the edited one, or the bundled small one",
        choices=("own", "pocket-gpt2"),
        group=INGREDIENTS,
    )
    encoder: str = setting(
        "sentence",
        "What tells how alike facts are: the sentence encoder where there is one, or the model's own mean state",
        choices=("sentence", "own"),
        group=INGREDIENTS,
    )
    texts: str = setting(
        "corpus",
        "Other texts: the corpus that comes with the model, or what the unedited model writes",
        choices=("corpus", "own"),
        group=INGREDIENTS,
    )
    beta: float = setting(0.5, "DPO's inverse temperature", 0.01, 10.0, group=INGREDIENTS)
    lora: bool = setting(True, "Train a low-rank adapter; off: the weights themselves", group=WEIGHTS)
    where: str = setting(
        "all",
        "Everywhere, whole blocks of the chosen layers, or only their MLP down-projections",
        choices=("all", "blocks", "down"),
        group=WEIGHTS,
    )
    layers: tuple[int, ...] = setting((3, 4, 5), "The chosen layers, where not all are trained", 0, 1000, group=WEIGHTS)
    targets: str = setting(
        "attention and mlp", "Which linear modules an adapter is for", choices=tuple(TARGETS), group=WEIGHTS
    )
    embeddings: bool = setting(
        False, "An adapter for the input embeddings too; not for models that share them with the output", group=WEIGHTS
    )
    rank: int = setting(32, "Rank of the adapter", 1, 512, group=WEIGHTS)
    alpha: float = setting(64.0, "The adapter's update counts alpha / rank times", 0.01, 4096.0, group=WEIGHTS)
    dropout: float = setting(0.05, "Dropout of the adapter's inputs", 0.0, 0.9, group=WEIGHTS)
    epochs: int = setting(6, "How often every example is seen", 1, 200, group=TRAINING)
    least_steps: int = setting(0, "Ours: with few examples, more epochs until so many steps", 0, 10_000, group=TRAINING)
    batch: int = setting(
        32, "Examples per step; gradients are accumulated where they do not fit", 1, 4096, group=TRAINING
    )
    rate: float = setting(7e-5, "Step size", 1e-8, 1.0, group=TRAINING)
    optimiser: str = setting("adamw", "Optimiser", choices=tuple(OPTIMISERS), group=TRAINING)
    schedule: str = setting("cosine", "How the step size falls", choices=tuple(SCHEDULES), group=TRAINING)
    warmup: float = setting(0.0, "Share of the steps in which the step size rises first", 0.0, 0.9, group=TRAINING)
    weight_decay: float = setting(0.0, "Weight decay", 0.0, 10.0, group=TRAINING)
    decay_by_count: bool = setting(False, "FT-W: weight decay times N^-0.870 e^0.156 for N edits", group=TRAINING)
    clip: float = setting(1.0, "Largest norm of a gradient; 0 is off", 0.0, 1000.0, group=TRAINING)
    bound: float = setting(
        0.0, "FT-L: how far a weight may move from where it was; 0 is off, as it must be with an adapter", 0.0, 1.0,
        group=TRAINING,
    )  # fmt: skip
    enough: float = setting(
        0.0, "A batch with a smaller loss is passed over; an epoch's ends it", 0.0, 10.0, group=TRAINING
    )
    labels: str = setting(
        "position",
        "Which tokens count: the answer's; as released by the paper (identity); all at the prompt's end (last)",
        choices=("position", "identity", "last"),
        group=TRAINING,
    )

    def decay(self, edits: int) -> float:
        """Weight decay for so many edits. FT-W's rule: Meng et al. 2023 (MEMIT), appendix."""
        return self.weight_decay * (edits**-0.87028798 * exp(0.15589562) if self.decay_by_count else 1.0)


@dataclass(frozen=True, eq=False)
class FineTuning(Editor):
    """The editor, with what it trains on beside the edits. about: remarks on how that was found."""

    settings: FineTuningSettings
    data: Augmentation
    objective: Objective
    seed: int = 0
    about: tuple[str, ...] = ()

    def edit(self, lm: LanguageModel, requests: Sequence[EditRequest], watch: Watch = ignore) -> EditOutcome:
        """Train on all requests together, from the weights as they are now."""
        s = self.settings
        loss = self._loss()
        devices = [device for device in lm.devices if device.type == "cuda"]
        examples = self._examples(requests)
        initial, _ = log_perplexity(lm, requests, self.objective)
        items = items_of(lm, examples, Labels(s.mask, s.labels, self.objective.objects), loss.dpo > 0)
        # An adapter's first values and its dropout come from torch's own generator.
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            with self._weights(lm) as weights:
                trainer = Trainer(lm, weights, loss, self._course(len(requests)), self.seed)
                trainer.run(items, text_rows(lm, self.data), watch)
                final, every = log_perplexity(lm, requests, self.objective)
                delta = weights.delta()
        steps, n = len(trainer.history), len(requests)
        log = TargetLog.measured(initial, final, every, thinned(trainer.history), steps=torch.full((n,), steps))
        return EditOutcome(delta, log, (*self.about, told(examples, steps)))

    def _examples(self, requests: Sequence[EditRequest]) -> list[Example]:
        found = [example for request in requests for example in self.data.examples(request)]
        assist = self.objective.assist
        if assist.neighbors != "off":
            behind = assist.neighbors == "nap"
            for request in requests:
                found += neighbor_examples(request, self.objective.contexts, behind)
        return found

    def _loss(self) -> Loss:
        s, assist = self.settings, self.objective.assist
        return Loss(s.dpo, s.beta, s.language, assist.weight, assist.weighting == "paper")

    def _course(self, edits: int) -> Course:
        s = self.settings
        return Course(
            rate=s.rate,
            epochs=s.epochs,
            batch=s.batch,
            least_steps=s.least_steps,
            optimiser=s.optimiser,
            schedule=s.schedule,
            warmup=s.warmup,
            decay=s.decay(edits),
            clip=s.clip,
            enough=s.enough,
            bound=s.bound,
        )

    def _weights(self, lm: LanguageModel) -> AbstractContextManager[Trainable]:
        s = self.settings
        if s.lora:
            return adapted(lm, adapter_modules(lm, s), Lora(s.rank, s.alpha, s.dropout))
        roots = {"blocks": lm.architecture.block, "down": lm.architecture.down}
        return unfrozen(lm, parameters_in(lm, [roots[s.where](n) for n in s.layers] if s.where in roots else None))


def adapter_modules(lm: LanguageModel, settings: FineTuningSettings) -> list[str]:
    """The modules an adapter is put beside."""
    s = settings
    if s.where == "down":
        return [lm.architecture.down(layer) for layer in s.layers]
    found = linear_modules(lm, TARGETS[s.targets], s.layers if s.where == "blocks" else None)
    return [*found, embedding_module(lm)] if s.embeddings else found


def told(examples: Sequence[Example], steps: int) -> str:
    """How much was trained, in one sentence."""
    counts: dict[str, int] = {}
    for example in examples:
        counts[example.kind] = counts.get(example.kind, 0) + 1
    parts = ", ".join(f"{kind} {count:,}" for kind, count in counts.items())
    return f"{COUNTS} {steps:,} steps on {len(examples):,} examples: {parts}."


def build_finetuning(settings: FineTuningSettings, materials: Materials) -> FineTuning:
    """The editor; BadSetting where settings do not go together."""
    s, m, about = settings, materials, list[str]()
    _check(s, m)
    objective, beside = m.objective(m.grouped()), augmentation(s, m, about)
    return FineTuning(s, beside, objective, m.seed, tuple(about))


def _check(s: FineTuningSettings, m: Materials) -> None:
    if s.lora and s.bound:
        raise BadSetting(f"The bound {s.bound:g} holds for weights, not for an adapter; set it to 0, or lora off.")
    if s.labels == "last" and not s.mask:
        raise BadSetting("Labels at the prompt's end are the new object's only; set mask on, or labels to position.")
    if s.lora:
        adapter_modules(m.lm, s)  # refuses what cannot be adapted


FORWARDS = 2  # counted, per step


def training_load(s: FineTuningSettings, facts: int, _depth: int) -> Load:
    """Steps of a training, and the words made up for it."""
    examples = facts * (1 + s.paraphrases + s.random_facts + s.similar_facts)
    batches = ceil(examples / s.batch)
    epochs = max(s.epochs, ceil(s.least_steps / batches))
    sides = (1 + (s.dpo > 0)) * (1 + (s.language > 0))  # the rejected answers, and the other texts
    steps = gradients(examples * EXAMPLE_TOKENS, FORWARDS * batches).times(epochs * sides)
    prefixes = Load(facts * s.paraphrases * s.prefix_tokens, s.prefix_tokens * ceil(facts * s.paraphrases / 32))
    return steps + prefixes + ENCODED.times(s.similar_facts > 0)


_POCKET = FineTuningSettings(rate=5e-4, epochs=6, least_steps=20)
ROW = EditorRow(
    "finetuning",
    "Fine-tuning",
    "Trains weights or an adapter on the edits, on paraphrases and on facts that should stay.",
    "https://arxiv.org/abs/2402.11078",
    FineTuningSettings,
    build_finetuning,
    lambda s: () if s.where == "all" else s.layers,
    by_depth=TRAINED,
    presets={
        "pocket-gpt2": Preset(_POCKET, "tried on the tune records, see docs/log.md"),
        "pocket-llama": Preset(_POCKET, "as pocket-gpt2's", True),
        "pocket-gptj": Preset(_POCKET, "as pocket-gpt2's", True),
        "gpt2-xl": Preset(FineTuningSettings(batch=256), "au-revoir/model-editing-ft, made for GPT-J", True),
        "gpt-j-6b": Preset(FineTuningSettings(batch=256), "au-revoir/model-editing-ft"),
        "llama-2-7b": Preset(FineTuningSettings(batch=256), "au-revoir/model-editing-ft, made for GPT-J", True),
    },
    load=training_load,
    cannot={
        PROTECTION: "keys are protected in a closed form, which training has not; set keys to 0 and statistics to "
        "tokens, or add random or similar facts."
    },
    needs_statistics=lambda _settings: False,
    needs_facts=lambda s: bool(s.random_facts or s.similar_facts),
    recipes=RECIPES,
    remark=(
        "Training writes what it optimises, so optimised and spread perplexity agree after the first "
        "iteration and the rule stops there; with the stop rule none, every further iteration trains on. "
        "NA and NAP train the edit neighbors' own answers beside the edits."
    ),
)
