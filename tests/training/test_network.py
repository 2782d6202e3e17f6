"""The model's copy that a training works on."""

from types import SimpleNamespace

import pytest
from comfy.model_patcher import ModelPatcher
from sana_native.tests.support import workbench as bench
from sana_native.training.network import copy_for_training, require_trainable


def test_a_model_of_no_family_is_refused_in_words_that_fit_every_training():
    with pytest.raises(ValueError, match="^No LoRA can be trained on a SimpleNamespace model: connect the model of"):
        require_trainable(SimpleNamespace(model=SimpleNamespace()))


def test_the_copy_computes_with_its_weights_themselves(monkeypatch):
    """In the host's dynamic memory, its choice on a GPU, layers compute with copies, which no gradient leaves."""
    asked, clone = [], ModelPatcher.clone
    monkeypatch.setattr(ModelPatcher, "clone", lambda self, **options: asked.append(options) or clone(self, **options))
    model = bench.model("sana")
    copy = copy_for_training(model)
    assert asked[0] == {"disable_dynamic": True, "force_deepcopy": True}
    assert not copy.is_dynamic() and copy.model is not model.model
