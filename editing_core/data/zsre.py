"""ZsRE, the question answering slice that MEND's authors prepared for evaluation.

In: a record with `src`, `answers`, `alt`, `loc`. Out: an EditRequest with one paraphrase, and one neighbor: an
unrelated Natural Questions query. Source: Levy et al. 2017, https://arxiv.org/abs/1706.04115; slice: Mitchell et
al. 2022, https://arxiv.org/abs/2110.11309.
"""

from typing import Any

from editing_core.data.fields import case_id, items, template_of, text, texts
from editing_core.data.problems import Malformed, naming, naming_all
from editing_core.types import EditRequest, Probe

DIRECTIONS = ("answers", "alt")
NAMES = {
    "subject": "subject",
    "prompt": "src",
    "target_true": "answers",
    "paraphrases": "rephrase",
    "case_id": "case_id",
}


def parse(record: Any, row: int, source: str = "zsre", direction: str = "answers") -> EditRequest:
    """One record.

    direction: "answers" writes the right answer, as Meng et al. 2023 do: ZsRE holds no old object, so nothing is
    compared. "alt" writes the wrong alternative in place of it, as Yao et al. 2023 do; records that have none are
    malformed. Where there are several answers the first counts.
    """
    subject, right = text(record, "subject"), _answer(record)
    new, old = (right, None) if direction == "answers" else (text(record, "alt"), right)
    # A direction is called as the field that holds the new object.
    with naming_all({**NAMES, "target_new": direction}):
        return EditRequest(
            subject=subject,
            prompt=template_of(text(record, "src"), subject, "src"),
            target_new=new,
            target_true=old,
            paraphrases=(text(record, "rephrase"),),
            neighbors=(_unrelated(record),),
            case_id=case_id(record, row),
            source=source,
            compare=old is not None,
        )


def _answer(record: Any) -> str:
    if not items(record, "answers"):
        raise Malformed("answers", "The list of answers is empty or missing", "give at least one answer")
    return texts(record, "answers")[0]


def _unrelated(record: Any) -> Probe:
    with naming("loc"):
        # The queries carry no question mark; the published evaluation adds it.
        return Probe(f"{text(record, 'loc')}?", text(record, "loc_ans"), family="nq")
