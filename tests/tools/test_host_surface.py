"""The page of what the pack uses of ComfyUI is up to date, and ComfyUI has all of it."""

import ast

import pytest
from sana_native.tools import host_surface
from sana_native.tools.host_surface import OPTIONAL, OVERRIDE, PAGE, SET, Use, lacking, page, uses_of
from sana_native.tools.structure import pack_files


@pytest.fixture(scope="module")
def uses():
    return uses_of(pack_files())


@pytest.fixture
def uses_in(tmp_path, monkeypatch):
    """What a source text of the pack uses of the host."""

    def read(text: str) -> set[tuple[str, str, tuple[str, ...]]]:
        monkeypatch.setattr(host_surface, "ROOT", tmp_path)
        file = tmp_path / f"file_{len(list(tmp_path.iterdir()))}.py"
        file.write_text(text)
        return {(use.symbol, use.how, use.keywords) for use in uses_of([file])}

    return read


def test_the_page_is_up_to_date(uses):
    assert PAGE.read_text(encoding="utf-8") == page(uses), "run: python -m tools.host_surface"


def test_this_host_has_every_name_and_takes_every_keyword(uses):
    assert [sentence for use in uses if (sentence := lacking(use))] == []
    assert len(uses) > 200


def test_the_memory_of_a_step_is_left_to_the_host(uses):
    """Newer hosts ask for it through the patcher, with arguments that a method of ours would not take."""
    assert not [use for use in uses if use.how == OVERRIDE and use.symbol.endswith("memory_required")]


def test_every_file_that_imports_the_host_is_listed(uses):
    importing = {
        file.relative_to(host_surface.ROOT).as_posix()
        for file in pack_files()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if (isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in host_surface.HOST)
        or (isinstance(node, ast.Import) and any(one.name.split(".")[0] in host_surface.HOST for one in node.names))
    }
    assert importing <= {use.place for use in uses} and len(importing) > 30


def test_names_of_the_host_are_found_under_whatever_name_they_are_imported(uses_in):
    found = uses_in(
        "import comfy.utils\nimport comfy.model_management as mm\nfrom comfy.ops import cast_to_input as cast\n"
        "comfy.utils.ProgressBar(3)\nmm.soft_empty_cache()\ncast(1, 2)\n"
    )
    assert {symbol for symbol, *_ in found} == {
        "comfy.utils.ProgressBar",
        "comfy.model_management.soft_empty_cache",
        "comfy.ops.cast_to_input",
    }


def test_overridden_methods_calls_of_super_and_keywords_are_found(uses_in):
    found = uses_in(
        "import comfy.sd\nclass Own(comfy.sd.VAE):\n"
        "    def decode(self, samples_in, extra=1):\n        self.own = 1\n        self.vae_dtype = None\n"
        "        return super().decode(samples_in, vae_options={})\n"
        "    def another(self):\n        return self.output_device\n"
    )
    assert found == {
        ("comfy.sd.VAE", "", ()),
        ("comfy.sd.VAE.decode", OVERRIDE, ()),
        ("comfy.sd.VAE.decode", "", ("vae_options",)),
        ("comfy.sd.VAE.decode", "", ()),
        ("comfy.sd.VAE.vae_dtype", SET, ()),
        ("comfy.sd.VAE.output_device", "", ()),
    }


def test_attributes_of_annotated_arguments_are_found(uses_in):
    found = uses_in("from comfy.sd import CLIP\ndef run(clip: CLIP | None):\n    return clip.patcher.model\n")
    assert ("comfy.sd.CLIP.patcher", "", ()) in found


def test_what_the_pack_asks_for_first_may_be_absent(uses_in):
    found = uses_in('import comfy.sd\nnewer = getattr(comfy.sd, "not_there", None)\n')
    assert ("comfy.sd.not_there", OPTIONAL, ()) in found
    assert lacking(Use("comfy.sd.not_there", OPTIONAL, "a.py")) is None
    found = uses_in('import comfy.sd\nif hasattr(comfy.sd, "newer"):\n    comfy.sd.newer.call(word=1)\n')
    assert {how for symbol, how, _ in found if symbol.startswith("comfy.sd.newer")} == {OPTIONAL}


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (Use("comfy.sd.not_there", "", "a.py"), r"comfy.sd.not_there is not in this ComfyUI (a.py)"),
        (Use("comfy.not_there.thing", "", "a.py"), r"comfy.not_there.thing is not in this ComfyUI (a.py)"),
        (Use("comfy.sd.VAE.not_there", OVERRIDE, "a.py"), r"comfy.sd.VAE.not_there is not in this ComfyUI (a.py)"),
        (Use("comfy.sd.VAE.decode", "", "a.py", ("sharp",)), r"comfy.sd.VAE.decode does not take sharp (a.py)"),
    ],
)
def test_what_a_host_lacks_is_said(use, sentence):
    assert lacking(use) == sentence
