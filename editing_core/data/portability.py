"""ZsRE and CounterFact records with a question that can be answered only by reasoning on from the edit.

In: a record of either kind with `portability`. Out: its EditRequest with one portability probe.
Source: Yao et al. 2023, https://arxiv.org/abs/2305.13172.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from editing_core.data import counterfact, zsre
from editing_core.data.fields import text
from editing_core.data.problems import naming
from editing_core.types import EditRequest, Probe

QUESTION, ANSWER = "portability.New Question", "portability.New Answer"


def parse(record: Any, row: int, source: str = "portability") -> EditRequest:
    """One record. Of ZsRE the alternative is written, because the new question follows from that one."""
    if isinstance(record, Mapping) and counterfact.REWRITE in record:
        request = counterfact.parse(record, row, source)
    else:
        request = zsre.parse(record, row, source, direction="alt")
    with naming(QUESTION):
        probe = Probe(text(record, QUESTION), text(record, ANSWER), family="one_hop")
    return replace(request, portability=(probe,))
