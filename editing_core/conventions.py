"""How prompts are read and numbers measured where there is a choice, each behind its own switch.

CLEAN is what EditScope does by itself. FAITHFUL repeats the published code of the UnderEdit & OverEdit paper
(arXiv:2503.11895) and of the libraries it builds on, quirks included, so that its tables can be met.
"""

from dataclasses import dataclass

from editing_core.errors import BadSetting
from editing_core.models.chat import STYLES
from editing_core.settings import Settings, setting


@dataclass(frozen=True)
class Conventions(Settings):
    """One switch per difference; the first choice is the clean one."""

    objects: str = setting(
        "joined",
        "Token ids of an object: what it adds to its prompt, or the object encoded alone, which gives SentencePiece "
        "models a stray space token",
        choices=("joined", "alone"),
    )
    padding: str = setting(
        "right",
        "Padding while scoring: right, or left without position ids, which shifts learned positions",
        choices=("right", "left"),
    )
    accuracy: str = setting(
        "token_mean",
        "When objects of several tokens count as said: by the share of right tokens given those before, only when all "
        "are right, or by the share of right tokens in what the model says by itself",
        choices=("token_mean", "all_tokens", "greedy_match"),
    )
    neighbor_accuracy: str = setting(
        "token_mean",
        "A neighbor counts by the share of its tokens that stayed, or only when all stayed",
        choices=("token_mean", "all_tokens"),
    )
    unrelated: str = setting(
        "whole",
        "ZsRE's unrelated question as one probe, or as one probe for each token of its answer",
        choices=("whole", "per_token"),
    )
    reference: str = setting(
        "gold",
        "Which answer a neighbor should keep preferring: the data set's, or the model's own before the edit",
        choices=("gold", "pre_edit"),
    )
    zeros: str = setting(
        "kept",
        "A part of zero makes the score zero, or is dropped from the harmonic mean",
        choices=("kept", "dropped"),
    )
    perplexity_terms: str = setting(
        "T-1",
        "What the sum over a text's T-1 predictions is divided by",
        choices=("T-1", "T"),
    )
    edit_perplexity: str = setting(
        "edit",
        "Edit-target perplexity over the edit's own rows, or over the assisting neighbors' rows too",
        choices=("edit", "all"),
    )
    factor: str = setting(
        "plain",
        "PMET's optimised perplexity as it is, or with the lowered loss factor in the exponent",
        choices=("plain", "inside"),
    )
    chat: str = setting(
        "none",
        "Instruct models: prompts by themselves; in the chat template, as what the assistant says and goes on with; or "
        "as what the user says and the assistant answers with the object",
        choices=STYLES,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chat == "question" and self.unrelated == "per_token":
            raise BadSetting(
                "unrelated is 'per_token', which puts parts of an answer behind the question, where chat 'question' "
                "has the user speaking; choose unrelated 'whole' or chat 'statement'."
            )


CLEAN = Conventions()
FAITHFUL = Conventions(
    objects="alone",
    padding="left",
    neighbor_accuracy="all_tokens",
    unrelated="per_token",
    reference="pre_edit",
    zeros="dropped",
    perplexity_terms="T",
    edit_perplexity="all",
    factor="inside",
)
CONVENTIONS = {"clean": CLEAN, "faithful": FAITHFUL}
