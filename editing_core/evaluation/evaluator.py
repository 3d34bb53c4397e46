"""Evaluator: the model as it is now, requests -> the tidy probe table and the collapse perplexity."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from math import exp

import pandas as pd

from editing_core import paths
from editing_core.evaluation.scoring import score_objects, text_perplexities
from editing_core.models.language_model import LanguageModel
from editing_core.types import EditRequest

PROBE_COLUMNS = ["case_id", "kind", "number", "prompt", "target_new", "target_true", "p_new", "p_true"]
PROBE_COLUMNS += ["logp_new", "logp_true", "rank_new", "rank_true", "hit_new", "hit_true", "answer", "choices"]


@cache
def bundled_texts() -> tuple[str, ...]:
    """The held-out texts that come with EditScope."""
    return tuple(json.loads((paths.assets() / "benchmark" / "heldout.json").read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Evaluator:
    """Scores requests under the current weights. texts: what the collapse perplexity is measured on."""

    texts: Sequence[str] = field(default_factory=bundled_texts)

    def score(self, lm: LanguageModel, requests: Sequence[EditRequest]) -> pd.DataFrame:
        """One row per probe: the edit prompt, its paraphrases and its neighbors, in the requests' order.

        p_* are exp of the mean token log-probability; choices the model's first choice at each position
        of the true object (of the new one for edit prompts and paraphrases) and answer their text.
        """
        asked = [(request, *probe) for request in requests for probe in _probes(request)]
        new_pairs = [(prompt, request.target_new) for request, _, _, prompt, _ in asked]
        true_pairs = [(prompt, answer) for _, _, _, prompt, answer in asked]
        # Together, because both objects of a prompt mostly share one forward row.
        scores = score_objects(lm, new_pairs + true_pairs)
        new, true = scores[: len(asked)], scores[len(asked) :]
        rows = []
        for (request, kind, number, prompt, answer), n, t in zip(asked, new, true, strict=True):
            choices = t.choices if kind == "neighbor" else n.choices
            said = str(lm.tokenizer.decode(list(choices))).strip()
            chances = (exp(n.logp), exp(t.logp), n.logp, t.logp)
            outcome = (n.rank, t.rank, n.hit, t.hit, said, list(choices))
            rows.append((request.case_id, kind, number, prompt, request.target_new, answer, *chances, *outcome))
        return pd.DataFrame(rows, columns=PROBE_COLUMNS)

    def collapse(self, lm: LanguageModel) -> float:
        """Arithmetic mean over texts of their perplexity."""
        values = text_perplexities(lm, self.texts)
        return sum(values) / len(values)


def _probes(request: EditRequest) -> list[tuple[str, int, str, str]]:
    """(kind, number, prompt, true answer) of everything asked about a request."""
    true = request.target_true or ""
    probes = [("edit", 0, request.full_prompt, true)]
    probes += [("paraphrase", i, prompt, true) for i, prompt in enumerate(request.paraphrases)]
    probes += [("neighbor", i, n.prompt, n.answer) for i, n in enumerate(request.neighbors)]
    return probes
