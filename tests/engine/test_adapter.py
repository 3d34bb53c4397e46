"""Edits as adapters: what `peft` loads from the files does what the applied edit does."""

import json

import pytest
import torch
from peft import PeftModel

from editing_core.editors.finetuning import FineTuningSettings
from editing_core.editors.materials import Materials
from editing_core.errors import BadRequest
from editing_core.export.adapter import write_adapter
from editing_core.models.delta import Dense, LowRank, WeightDelta
from editing_core.models.trainable import embedding_module, linear_modules
from editing_core.registry import editor_row
from tests.conftest import DISTINCT, each_of, tiny_model

tiny_lm = each_of(DISTINCT)

SETTINGS = FineTuningSettings(paraphrases=0, random_facts=0, epochs=4, rate=1e-2, rank=3, alpha=6.0)


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def reloaded(family, folder):
    """A fresh model with the adapter on, by peft alone."""
    return PeftModel.from_pretrained(tiny_model(family).model, str(folder)).eval()


def check(lm, delta, folder):
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    write_adapter(lm, delta, folder)
    plain = logits(lm.model, ids)
    with delta.applied(lm):
        edited = logits(lm.model, ids)
    found = logits(reloaded(lm.name.removeprefix("tiny-"), folder), ids)
    assert (edited - plain).abs().max() > 1e-2
    # Two ways to add the same numbers up, in float32.
    assert torch.allclose(found, edited, atol=1e-5 * float(edited.abs().max()))


def test_a_trained_adapter_leaves_the_app_and_does_the_same(tiny_lm, requests_, tmp_path):
    editor = editor_row("finetuning").build(SETTINGS, Materials(tiny_lm, None, None, requests=requests_))
    check(tiny_lm, editor.edit(tiny_lm, requests_).delta, tmp_path / "new" / "folder")


def test_a_folder_that_cannot_be_made_is_refused(tiny_models, tmp_path):
    lm = tiny_models("llama")
    name = f"{lm.architecture.down(0)}.weight"
    rows, columns = lm.model.get_parameter(name).shape
    (tmp_path / "taken").write_text("a file", encoding="utf-8")
    with pytest.raises(BadRequest, match="name another folder"):
        write_adapter(lm, WeightDelta({name: LowRank(torch.ones(rows, 1), torch.ones(1, columns))}), tmp_path / "taken")


def test_ranks_may_differ_from_module_to_module(tiny_lm, tmp_path):
    names = linear_modules(tiny_lm, ("mlp",))
    updates = {}
    for rank, name in enumerate(names, start=1):
        shape = tiny_lm.model.get_parameter(f"{name}.weight").shape
        rows, columns = shape[::-1] if tiny_lm.architecture.family == "gpt2" else shape
        generator = torch.Generator().manual_seed(rank)
        left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
        updates[f"{name}.weight"] = LowRank(0.1 * left, torch.randn(rank, columns, generator=generator).double())
    check(tiny_lm, WeightDelta(updates), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert sorted(config["rank_pattern"].values()) == list(range(1, len(names) + 1))
    assert config["revision"] == tiny_lm.revision


def test_embeddings_go_along(tiny_models, tmp_path):
    lm = tiny_models("gptj")
    name = embedding_module(lm)
    rows, width = lm.model.get_parameter(f"{name}.weight").shape
    left = torch.zeros(rows, 2)
    left[5:8] = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    check(
        lm,
        WeightDelta(
            {f"{name}.weight": LowRank(left, torch.randn(2, width, generator=torch.Generator().manual_seed(2)))}
        ),
        tmp_path,
    )


@pytest.mark.parametrize(
    "delta", [WeightDelta(), WeightDelta({"transformer.h.0.mlp.c_proj.weight": Dense(torch.ones(32, 128))})]
)
def test_what_is_no_adapter_is_refused(tiny_models, tmp_path, delta):
    with pytest.raises(BadRequest, match="adapter"):
        write_adapter(tiny_models("gpt2"), delta, tmp_path / "none")
    assert not (tmp_path / "none").exists()
