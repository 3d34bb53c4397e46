"""Why a model cannot be had, in one sentence with what to do: gated, unknown, offline, or broken."""

from collections.abc import Iterator

from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from editing_core.errors import ModelUnavailable

BUNDLED = "or choose the bundled pocket-gpt2"


def unavailable(name: str, source: str, revision: str, error: Exception) -> ModelUnavailable:
    """What loading ran into, as a refusal. source: the hub id or folder it was loaded from."""
    chain = list(_chain(error))
    # The most telling first: a gated repository is also one that is not found.
    told = (
        (
            GatedRepoError,
            f"is gated: accept its licence on https://huggingface.co/{source}, log in with 'hf auth login' or set "
            f"HF_TOKEN, and load it again, {BUNDLED}",
        ),
        (
            RevisionNotFoundError,
            f"has no revision {revision[:60]!r}; name a branch, tag or commit of https://huggingface.co/{source}",
        ),
        (
            (RepositoryNotFoundError, HFValidationError),
            f"is not on the hub under {source!r}, or is private; check the name, log in with 'hf auth login' where it "
            f"is yours, {BUNDLED}",
        ),
        (
            (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError),
            "is not on this machine and the hub cannot be reached; check the network and that HF_HUB_OFFLINE is not "
            f"set, {BUNDLED}",
        ),
    )
    for kinds, why in told:
        if any(isinstance(cause, kinds) for cause in chain):
            return ModelUnavailable(f"The model {name!r} {why}.")
    if any("trust_remote_code" in str(cause) for cause in chain):
        return ModelUnavailable(
            f"The model {name!r} runs Python code of its own repository, which EditScope never does; choose a "
            "model whose architecture is part of transformers."
        )
    return ModelUnavailable(
        f"The model {name!r} could not be loaded ({first_line(error)}); check the name and the network, {BUNDLED}."
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from or while handling, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: Exception) -> str:
    """The beginning of an error's text, or its type."""
    lines = str(error).strip().splitlines()
    return lines[0][:160].rstrip(".") if lines else type(error).__name__
