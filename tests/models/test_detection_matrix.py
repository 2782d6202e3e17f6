"""Every released file and files of other models: one loader takes it or none does, and the page says what each says."""

import re
from functools import cache

import pytest
from sana_native.tests.support.known_files import (
    COMPONENTS,
    CONTROLNETS,
    FOREIGN_PATH,
    PIXART_CONTROLNETS,
    UNNAMED,
    answers,
    foreign,
    refusal,
    released,
)
from sana_native.tools import make_detection_matrix

RELEASED, FOREIGN = released(), foreign()
MERGED = [*CONTROLNETS, *PIXART_CONTROLNETS]
SANAS = {"Sprint": "SANA-Sprint", "SANA1.5": "SANA-1.5", "Sana_": "SANA "}  # the first that a name has
TRANSFORMERS = [
    path
    for path in RELEASED
    if re.search(r"^sana_.*(?:transformer|pth)|sana1|pixart.*(?:transformer|pth)", path.lower())
]
PIXELS = {"256": 256, "512": 512, "1024": 1024, "2K": 2048, "4K": 4096}


@cache
def told(path: str) -> dict[str, tuple[bool, str]]:
    return answers(path, RELEASED[path]())


@pytest.mark.parametrize("path", MERGED)
def test_the_authors_file_of_a_base_with_its_controlnet_serves_two_loaders(path):
    assert [component for component, (taken, _) in told(path).items() if taken] == ["transformer", "controlnet"]


@pytest.mark.parametrize("path", [path for path in RELEASED if path not in MERGED])
def test_one_loader_takes_a_release_and_the_others_name_that_loader(path):
    takes = {component for component, (taken, _) in told(path).items() if taken}
    assert len(takes) == 1
    (right,) = takes
    for component in set(COMPONENTS) - takes:
        assert f"(use {COMPONENTS[right]}), not " in told(path)[component][1]


@pytest.mark.parametrize("path", TRANSFORMERS)
def test_a_transformer_has_the_family_and_size_that_its_release_names(path):
    says = told(path)["transformer"][1]
    if "PixArt" in path:
        assert says.startswith("PixArt-Sigma" if "Sigma" in path else "PixArt-alpha")
        assert [kind in says for kind in ("LCM", "DMD")] == [kind in path for kind in ("LCM", "DMD")]
    else:
        assert says.startswith(next(name for mark, name in SANAS.items() if mark in path))
    (size,) = {size for size in PIXELS if re.search(rf"(?<!\d){size}(?=px|x|-MS|-ControlNet)", path)}
    assert says.endswith(f"native {PIXELS[size]} px")


def test_a_pixart_without_any_sign_is_the_only_guess_and_has_a_warning():
    guesses = [path for path in RELEASED if "nothing tells" in "".join(sentence for _, sentence in told(path).values())]
    assert guesses == [UNNAMED]


@pytest.mark.parametrize("name", FOREIGN)
def test_no_loader_takes_a_file_of_another_model(name):
    found = answers(FOREIGN_PATH, FOREIGN[name]())
    assert not any(takes for takes, _ in found.values())
    assert refusal(found).startswith(("is ", "has ")) and all(sentence.endswith(".") for _, sentence in found.values())


def test_there_are_twenty_files_of_other_models_at_least():
    assert len(FOREIGN) >= 20


def test_the_page_says_what_the_loaders_say():
    page = make_detection_matrix.PAGE.read_text(encoding="utf-8")
    assert page == make_detection_matrix.page(), "run python -m tools.make_detection_matrix"
