"""A config.json that says other shapes than the tensors have is refused at load, in one sentence."""

import json
from pathlib import Path

import pytest
from sana_native.models.registry import load_model
from sana_native.tests.support import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tokens = tiny.tokenizer(path / "tokenizer")
    tiny.transformer().save_pretrained(path / "transformer")
    tiny.dc_ae().save_pretrained(path / "vae")
    tiny.gemma(len(tokens)).save_pretrained(path / "text_encoder")
    return path


@pytest.fixture
def configured(folder):
    """A function that changes an entry of a component's config.json; what was there comes back."""
    before = {path: path.read_text() for path in folder.glob("*/config.json")}

    def change(component: str, **entries) -> str:
        path = folder / component / "config.json"
        path.write_text(json.dumps(json.loads(before[path]) | entries))
        return str(folder)

    yield change
    for path, text in before.items():
        path.write_text(text)


@pytest.mark.parametrize(
    ("component", "key", "told"),
    [
        ("transformer", "in_channels", 16),
        ("transformer", "out_channels", 64),
        ("transformer", "caption_channels", 2304),
        ("transformer", "cross_attention_dim", 1152),
        ("transformer", "patch_size", 2),
        ("vae", "latent_channels", 128),
        ("vae", "in_channels", 1),
        ("vae", "encoder_block_out_channels", [1, 2]),
        ("vae", "decoder_block_out_channels", [1, 2]),
        ("text_encoder", "hidden_size", 2304),
        ("text_encoder", "intermediate_size", 9216),
        ("text_encoder", "num_key_value_heads", 7),
    ],
)
def test_a_config_of_other_shapes_is_refused(component, key, told, configured):
    with pytest.raises(
        ValueError,
        match=rf"The config.json beside \S+ says {key} = .*, but its tensors have .*: put this model's own config.json "
        r"there\.$",
    ):
        load_model(component, configured(component, **{key: told}))


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
def test_entries_that_are_null_say_nothing(component, configured):
    entries = {"in_channels": None, "caption_channels": None, "latent_channels": None, "vocab_size": None}
    assert load_model(component, configured(component, **entries)) is not None
