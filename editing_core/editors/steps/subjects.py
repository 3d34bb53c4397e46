"""Subject statistics: second moments of keys at the last tokens of subjects, an extension of ours.

The usual statistic is over all tokens of a text and hardly knows the keys an edit can damage, which stand at
subjects' last tokens. Mixing those in protects them. Subjects that are edited or measured must be left out.
"""

from collections.abc import Sequence

import torch

from editing_core.editors.steps.contexts import Contexts
from editing_core.editors.steps.covariance import Covariance
from editing_core.editors.steps.keys import SubjectRows, keys_of
from editing_core.models.language_model import LanguageModel
from editing_core.types import Step, Watch, ignore

PLACES_PER_STEP = 1000


@torch.no_grad()
def subject_moment(
    lm: LanguageModel, layer: int, places: Sequence[tuple[str, str]], watch: Watch = ignore
) -> Covariance:
    """(d_in, d_in) mean of k k^T over places (template, subject), each on its bare prompt."""
    total = torch.zeros(0)
    for start in range(0, len(places), PLACES_PER_STEP):
        some = places[start : start + PLACES_PER_STEP]
        keys = keys_of(lm, SubjectRows.of(lm, some, Contexts()), Contexts(), layer)  # (d_in, places)
        total = keys @ keys.T if start == 0 else total + keys @ keys.T
        done = min(start + PLACES_PER_STEP, len(places))
        watch(Step("statistics", done, len(places), note=f"keys of subjects, layer {layer}"))
    return Covariance((total / len(places)).cpu(), len(places))
