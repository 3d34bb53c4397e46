"""EditScope's engine: edit facts in a language model and see what happened.

Start with `run_edit` in session.py.
"""

from editing_core.editors.stopping import StopSettings
from editing_core.errors import Cancelled, EditingError
from editing_core.evaluation.verdict import Verdict
from editing_core.models.delta import WeightDelta
from editing_core.models.host import ModelHost
from editing_core.models.language_model import LanguageModel
from editing_core.runs.record import EditPlan, RunResult
from editing_core.session import look, run_edit
from editing_core.types import EditRequest, Probe, Step

__all__ = [
    "Cancelled",
    "EditPlan",
    "EditRequest",
    "EditingError",
    "LanguageModel",
    "ModelHost",
    "Probe",
    "RunResult",
    "Step",
    "StopSettings",
    "Verdict",
    "WeightDelta",
    "look",
    "run_edit",
]
