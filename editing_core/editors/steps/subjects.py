"""Subject statistics: second moments of keys at the last tokens of subjects, an extension of ours.

The usual statistic is over all tokens of a text and hardly knows the keys an edit can damage, which stand at
subjects' last tokens. Mixing those in protects them. Subjects that are edited or measured must be left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.keys import SubjectRows, keys_of
from editing_core.models.language_model import LanguageModel
from editing_core.statistics.covariance import Covariance
from editing_core.types import Step, Watch, ignore

PLACES_PER_STEP = 1000


@torch.no_grad()
def subject_moments(
    lm: LanguageModel, layers: Sequence[int], places: Sequence[tuple[str, str]], watch: Watch = ignore
) -> dict[int, Covariance]:
    """Per layer the (d_in, d_in) mean of k k^T over places (template, subject), each on its bare prompt."""
    totals: dict[int, Tensor] = {}
    for start in range(0, len(places), PLACES_PER_STEP):
        rows = SubjectRows.of(lm, places[start : start + PLACES_PER_STEP], Contexts())
        for layer in layers:
            keys = keys_of(lm, rows, Contexts(), layer)  # (d_in, places)
            moment = (keys @ keys.T).cpu()
            totals[layer] = totals[layer] + moment if layer in totals else moment
        done = min(start + PLACES_PER_STEP, len(places))
        watch(Step("statistics", done, len(places), note="keys of subjects"))
    return {layer: Covariance(total / len(places), len(places)) for layer, total in totals.items()}
