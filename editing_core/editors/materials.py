"""Materials: what editors are built from besides their settings; the same for all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from editing_core.conventions import CLEAN, Conventions
from editing_core.editors.assist import Assist
from editing_core.editors.steps.contexts import Contexts, draw_prefixed
from editing_core.editors.steps.rows import Objective
from editing_core.editors.steps.subjects import subject_moments
from editing_core.errors import BadRequest, BadSetting, StatisticsMissing
from editing_core.models.language_model import LanguageModel
from editing_core.statistics.covariance import Covariance, CovarianceStore, TextSource
from editing_core.types import EditRequest, Probe, Watch, ignore


@dataclass(frozen=True)
class Alike:
    """For each text the numbers of those most like it, best first, with their cosines, and what found them."""

    numbers: list[list[int]]
    cosines: list[list[float]]
    told: str


@dataclass(frozen=True, eq=False)
class Materials:
    """The unedited model, its statistics, assistance and seeds.

    corpus: what the model's statistics were collected from, None where they never were. subjects: places
    (template, subject) of known facts for subject statistics. requests: everything that will be edited and measured.
    facts, texts: give known facts and texts that say nothing of that, for editors that train on them. alike: which of
    some texts (second) are most like others (first), so many each, by the model's own states when asked so.
    """

    lm: LanguageModel
    store: CovarianceStore
    corpus: TextSource | None
    seed: int = 0
    assist: Assist = field(default_factory=Assist)
    conventions: Conventions = CLEAN
    subjects: Sequence[tuple[str, str]] = ()
    watch: Watch = ignore
    requests: Sequence[EditRequest] = ()
    facts: Callable[[], Sequence[Probe]] = tuple
    texts: Callable[[], Sequence[str]] = tuple
    alike: Callable[[Sequence[str], Sequence[str], int, bool], Alike] | None = None

    def grouped(self) -> Contexts:
        """MEMIT's contexts: five prefixes of ten tokens, the bare prompt half of every key."""
        return Contexts.grouped(draw_prefixed(self.lm, ((10, 5),), self.seed))

    def objective(self, contexts: Contexts) -> Objective:
        """What targets are optimised for, with these contexts."""
        return Objective(contexts, self.assist, self.conventions.objects)

    def most_like(
        self, asked: Sequence[str], known: Sequence[str], count: int, encoder: str, about: list[str]
    ) -> Alike:
        """For each text asked the `count` known ones most like it; what found them is added to `about`.

        encoder: "own" for the model's own states. BadSetting where nothing tells how alike texts are.
        """
        if self.alike is None:
            raise BadSetting("Nothing tells here how alike facts are; ask for none by likeness.")
        found = self.alike(asked, known, count, encoder == "own")
        about.append(found.told)
        return found

    def covariances(self, layers: Sequence[int], floor: float) -> dict[int, Covariance]:
        """Per layer what the closed form protects; StatisticsMissing when it was never collected."""
        if self.corpus is None:
            name = self.lm.name
            raise StatisticsMissing(
                f"No covariance statistics are bundled for {name}; collect them with "
                f"'editscope stats --model {name} --collect TEXTFILE', one document per line."
            )
        tokens = {layer: self.store.get(self.lm, layer, self.corpus, floor) for layer in layers}
        return tokens if self.assist.statistics == "tokens" else self._mixed(tokens)

    def _mixed(self, tokens: dict[int, Covariance]) -> dict[int, Covariance]:
        """Statistics of subjects mixed in, or for the control as much of the tokens' own."""
        a = self.assist
        if not self.subjects:
            raise BadRequest("No known subjects are left for subject statistics; use the statistics of tokens.")
        mixed = {}
        for layer, subjects in subject_moments(self.lm, list(tokens), self.subjects, self.watch).items():
            own = tokens[layer]
            ratio = float(subjects.matrix.trace() / own.matrix.trace())
            other, share = (own, a.subject_share * ratio) if a.statistics == "scaled" else (subjects, a.subject_share)
            mixed[layer] = own.mixed(other, a.token_share, share)
        return mixed
