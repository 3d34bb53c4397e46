"""Materials: what editors are built from besides their settings; the same for all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from editing_core.conventions import CLEAN, Conventions
from editing_core.editors.assist import Assist
from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.covariance import Corpus, Covariance, CovarianceStore
from editing_core.editors.steps.rows import Objective
from editing_core.editors.steps.subjects import subject_moment
from editing_core.errors import BadRequest, StatisticsMissing
from editing_core.models.language_model import LanguageModel
from editing_core.types import Watch, ignore


@dataclass(frozen=True, eq=False)
class Materials:
    """The unedited model, its statistics, assistance and seeds.

    corpus: what the model's statistics were collected from, None where they never were. subjects: places
    (template, subject) of known facts for subject statistics.
    """

    lm: LanguageModel
    store: CovarianceStore
    corpus: Corpus | None
    seed: int = 0
    assist: Assist = field(default_factory=Assist)
    conventions: Conventions = CLEAN
    subjects: Sequence[tuple[str, str]] = ()
    watch: Watch = ignore

    def objective(self, contexts: Contexts) -> Objective:
        """What targets are optimised for, with these contexts."""
        return Objective(contexts, self.assist, self.conventions.objects)

    def covariances(self, layers: Sequence[int], floor: float) -> dict[int, Covariance]:
        """Per layer what the closed form protects; StatisticsMissing when it was never collected."""
        if self.corpus is None:
            name = self.lm.name
            raise StatisticsMissing(
                f"No covariance statistics are bundled for {name}; collect them with "
                f"'editscope stats --model {name} --collect TEXTFILE', one document per line."
            )
        return {layer: self._assisted(layer, self.store.get(self.lm, layer, self.corpus, floor)) for layer in layers}

    def _assisted(self, layer: int, tokens: Covariance) -> Covariance:
        a = self.assist
        if a.statistics == "tokens":
            return tokens
        if not self.subjects:
            raise BadRequest("No known subjects are left for subject statistics; use the statistics of tokens.")
        subjects = subject_moment(self.lm, layer, self.subjects, self.watch)
        if a.statistics == "scaled":
            ratio = float(subjects.matrix.trace() / tokens.matrix.trace())
            return tokens.mixed(tokens, a.token_share, a.subject_share * ratio)
        return tokens.mixed(subjects, a.token_share, a.subject_share)
