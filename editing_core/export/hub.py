"""Exports onto the Hugging Face hub. The token goes to the library and nowhere else: into no log and no error."""

from pathlib import Path

from editing_core.errors import BadRequest
from editing_core.models.catalog import HUB_ID

LONGEST = 96  # letters of a repository's name, as the hub has it
FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "README.md")
_REASONS = {
    401: "the token is not valid; make one with the right to write",
    403: "the token has no right to write there; use one that has, or another name",
    404: "there is no such user or organisation, or the token has no right to see it; check the name",
    429: "too many requests were made; try again later",
}


def push(folder: Path, repository: str, token: str, private: bool = True) -> str:
    """Upload an export's files as a model repository, made where it is missing; gives its address.

    repository: "USER/NAME". token: of that user, with the right to write. private: of a repository that is made.
    BadRequest in one sentence for everything that goes wrong.
    """
    check_repository(repository)
    if not token.strip():
        raise BadRequest("No token was given, uploading needs one; set the environment variable HF_TOKEN.")
    if not folder.is_dir() or not any(path.is_file() for path in folder.iterdir()):
        raise BadRequest(f"There is no folder {folder.name!r} with files in it; export the edit first.")
    links = [path.name for path in folder.rglob("*") if path.is_symlink()]
    if links:
        raise BadRequest(f"{links[0][:60]} is a link, only files of an export are uploaded; take it away.")
    from huggingface_hub import HfApi  # here, because nothing else needs it

    try:
        api = HfApi(token=token.strip())
        api.create_repo(repository, private=private, exist_ok=True, repo_type="model")
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            repo_type="model",
            allow_patterns=list(FILES),
            commit_message="An edit made with EditScope",
        )
    except Exception as error:  # noqa: BLE001 - told as a refusal
        # Each layer of the library raises its own kind; a cause could carry the request and with it the token.
        raise BadRequest(f"{repository} could not be written: {_reason(error)}.") from None
    return f"https://huggingface.co/{repository}"


def check_repository(repository: str) -> None:
    """BadRequest unless it is a name the hub allows."""
    strange = ".." in repository or "--" in repository or repository.endswith((".git", ".", "-"))
    if len(repository) > LONGEST or strange or not HUB_ID.fullmatch(repository):
        raise BadRequest(
            f"{repository[:60]!r} is no name of a repository, up to {LONGEST} letters, digits, '-', '_' and '.' in the "
            "form USER/NAME are allowed; correct it."
        )


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in _REASONS:
        return _REASONS[status]
    told = f"{type(error).__name__}{f', status {status}' if status else ''}"
    return f"{told}; check the connection and try again"
