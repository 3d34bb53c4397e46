"""What a model is asked to go on writing about a fact: its generation prompts, or its own texts where it has none."""

from dataclasses import replace

from editing_core.data.suggest import relation_of
from editing_core.types import EditRequest

MOST = 5  # own texts that serve as generation prompts


def with_prompts(request: EditRequest) -> EditRequest:
    """The request with generation prompts and, where one fits, a relation.

    Without prompts of its own it has the texts that name its subject: the full prompt, then paraphrases, MOST in all.
    """
    own = (request.full_prompt, *(text for text in request.paraphrases if request.subject in text))
    prompts = request.generation_prompts or tuple(dict.fromkeys(own))[:MOST]
    relation = request.relation_id or relation_of(request.subject, request.prompt, request.target_true)
    return replace(request, generation_prompts=prompts, relation_id=relation)
