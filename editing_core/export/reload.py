"""Load an export as its receiver would, and write what the model says: logits of given token rows.

A script of its own that knows torch, transformers, peft and safetensors, and nothing of EditScope; that is what makes
its answer a proof. `python -I reload.py JOB.json`, where the job is an object of

    kind        "adapter", "merged" or "edit"
    export      folder of the adapter or the merged model, or file of the edit
    base        folder or hub id of the unedited model; revision: of a hub id, else empty
    dtype, device, attention, threads
    quantisation  what bitsandbytes is asked for, empty for plain weights
    rows        lists of token numbers, each read alone
    out         safetensors file to write: "0", "1", ... are logits (tokens, vocabulary) of the rows in float32
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D


def load(job: dict[str, Any]) -> Any:
    """The edited model of a job, ready to be asked."""
    if job["kind"] == "merged":
        return _model(job, job["export"], "")
    base = _model(job, job["base"], job["revision"])
    if job["kind"] == "edit":
        add_edit(base, Path(job["export"]))
        return base
    from peft import PeftModel  # here, because the import takes seconds and the others need none

    return PeftModel.from_pretrained(base, job["export"], torch_device=job["device"]).eval()


def _model(job: dict[str, Any], place: str, revision: str) -> Any:
    named: dict[str, Any] = {"revision": revision} if revision else {}
    if job["quantisation"]:
        asked = BitsAndBytesConfig.from_dict(job["quantisation"])
        named |= {"quantization_config": asked, "device_map": {"": job["device"]}}
    model = AutoModelForCausalLM.from_pretrained(
        place,
        dtype=getattr(torch, job["dtype"]),
        attn_implementation=job["attention"],
        use_safetensors=True,
        trust_remote_code=False,
        **named,
    )
    for module in model.modules():  # on some processors weights would be repacked for other arithmetic
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    return (model if job["quantisation"] else model.to(job["device"])).eval()


@torch.no_grad()
def add_edit(model: torch.nn.Module, path: Path) -> None:
    """Add the updates of an edit file to the weights: left @ right or value, in float64, rounded once."""
    with safe_open(path, framework="pt") as file:
        names = sorted({key.rpartition("|")[0] for key in file.keys()})  # noqa: SIM118 - not a dict
        for name in names:
            parameter = model.get_parameter(name)
            update = _update(file, name).to(parameter.device)
            if not parameter.is_floating_point():
                add_beside(model.get_submodule(name.rpartition(".")[0]), update)
                continue
            if isinstance(model.get_submodule(name.rpartition(".")[0]), Conv1D) and update.dim() == 2:
                update = update.T
            parameter.copy_((parameter.double() + update).to(parameter.dtype))


def add_beside(module: torch.nn.Module, update: torch.Tensor) -> None:
    """Add what the update makes of a packed layer's input to its output, in float32."""
    matrix = update.float()

    def hook(_module: torch.nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return (output.float() + given[0].float() @ matrix.T).to(output.dtype)

    module.register_forward_hook(hook)


def _update(file: Any, name: str) -> torch.Tensor:
    """(d_out, d_in) or (d,) in float64."""
    if f"{name}|value" in set(file.keys()):
        return file.get_tensor(f"{name}|value").double()  # type: ignore[no-any-return]
    return file.get_tensor(f"{name}|left").double() @ file.get_tensor(f"{name}|right").double()  # type: ignore[no-any-return]


@torch.no_grad()
def logits(model: Any, rows: list[list[int]], device: str) -> dict[str, torch.Tensor]:
    """(tokens, vocabulary) in float32 on the CPU, of each row by its number."""
    found = {}
    for number, row in enumerate(rows):
        ids = torch.tensor([row], device=device)
        found[str(number)] = model(input_ids=ids, use_cache=False).logits[0].float().cpu().contiguous()
    return found


def main(path: str) -> None:
    """Do the job in a file."""
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    save_file(logits(load(job), job["rows"], job["device"]), job["out"])


if __name__ == "__main__":
    main(sys.argv[1])
