"""Everything the engine refuses, as sentences for the person who asked.

    EditingError
    |-- BadRequest            an edit, a probe or a file that cannot be used
    |   `-- SubjectMissing    the prompt does not hold the subject's place
    |-- BadSetting            a hyper-parameter outside its range, or unknown
    |-- UnknownName           no such model, editor, example, data set or stop rule
    |-- ModelUnavailable      not found, or of a family without an architecture row
    |-- StatisticsMissing     the editor needs covariance statistics that were never collected
    |-- OutOfMemory           even the smallest forward does not fit
    |-- NoGpu                 a GPU was not lent, or not for as long as the work takes
    `-- NotFinite             the edit produced infinities or not-a-numbers; nothing was kept

Page and command line show these as they are; any other exception is a defect and keeps its traceback.
"""


class EditingError(Exception):
    """Base of all refusals. `str(error)` is one sentence: what came, what is allowed, what to do."""


class BadRequest(EditingError):
    """An edit, a probe or a file that cannot be used."""


class SubjectMissing(BadRequest):
    """The prompt does not hold the subject's place exactly once."""


class BadSetting(EditingError):
    """A hyper-parameter outside its range, or unknown."""


class UnknownName(EditingError):
    """No such model, editor, example, data set or stop rule."""


class ModelUnavailable(EditingError):
    """The model was not found, or its family has no architecture row."""


class StatisticsMissing(EditingError):
    """The editor needs covariance statistics that were never collected for this model."""


class NoGpu(EditingError):
    """A GPU was not lent, or not for as long as the work takes."""


class NotFinite(EditingError):
    """The edit produced infinities or not-a-numbers; nothing of it was kept."""


class OutOfMemory(EditingError):
    """Even the smallest forward does not fit into the memory there is."""


class Cancelled(Exception):
    """Raised through `watch` to leave work early; every `with` on the way out restores the model."""
