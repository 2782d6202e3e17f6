"""Workflows and rows make prompts: what --set reaches, in both forms, and what it refuses."""

import json

import pytest
from sana_native.scale.graph import Options, Template, api_of, is_api, read_workflow
from sana_native.scale.rows import Row
from sana_native.tools.workflow import WorkflowError

SET = ["Text.prompt={prompt}", "KSampler.seed={seed}", "KSampler.steps={steps}", "Latent.size.width={width}"]


def prompt() -> dict:
    nodes = {
        "1": ("CLIPTextEncode", "Text", {"prompt": "old"}),
        "2": ("KSampler", "KSampler", {"seed": 1, "steps": 20, "cfg": 4.5, "tiled": False}),
        "3": ("EmptyLatent", "Latent", {"size.width": 256, "height": 256, "batch_size": 1}),
        "4": ("SaveImage", "Save", {"images": ["2", 0], "filename_prefix": "ComfyUI"}),
        "5": ("PreviewImage", "Look", {"images": ["2", 0]}),
    }
    return {
        key: {"class_type": kind, "inputs": dict(inputs), "_meta": {"title": title}}
        for key, (kind, title, inputs) in nodes.items()
    }


def row(index: int = 7, **settings) -> Row:
    return Row(index, f"line {index}", f"{index:09}", settings.pop("prompt", "a cat {seed}"), **settings)


def test_a_row_fills_the_inputs_that_set_names_and_leaves_the_rest():
    filled = Template(prompt(), [*SET, "KSampler.cfg=3", "KSampler.tiled=true"], Options(seed_base=100)).fill([row()])
    assert filled["1"]["inputs"] == {"prompt": "a cat {seed}"}
    assert filled["2"]["inputs"] == {"seed": 107, "steps": 20, "cfg": 3.0, "tiled": True}
    assert filled["3"]["inputs"]["size.width"] == 256
    assert filled["4"]["inputs"]["filename_prefix"] == "scale/000000007" and "5" not in filled


def test_a_rows_own_settings_count_and_texts_may_stand_around_a_field():
    template = Template(prompt(), [*SET[1:], "Text.prompt=photo of {prompt}, not {negative}"], Options())
    filled = template.fill([row(seed=5, steps=8, width=640, height=480)])
    assert filled["1"]["inputs"]["prompt"] == "photo of a cat {seed}, not "
    assert filled["2"]["inputs"]["seed"] == 5 and filled["2"]["inputs"]["steps"] == 8
    assert filled["3"]["inputs"]["size.width"] == 640


def test_a_ratio_is_binned_for_the_jobs_size():
    template = Template(prompt(), [*SET, "Latent.height={height}"], Options(size=1024))
    inputs = template.fill([row(aspect=(16, 9))])["3"]["inputs"]
    assert (inputs["size.width"], inputs["height"]) == (1344, 768)


def test_filling_changes_neither_the_template_nor_other_rows():
    source = prompt()
    template = Template(source, SET, Options())
    first, again = template.fill([row(steps=8)]), template.fill([row()])
    assert again["2"]["inputs"]["steps"] == 20 and first["2"]["inputs"]["steps"] == 8 and "5" in source


def test_other_formats_are_saved_by_the_packs_own_node():
    node = Template(prompt(), SET, Options(format="webp", quality=80)).fill([row()])["4"]
    assert node["class_type"] == "SanaNativeSaveNamed"
    assert node["inputs"] == {
        "images": ["2", 0], "name": "000000007", "folder": "scale", "format": "webp", "skip_existing": False,
        "quality": 80,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("Text.prompt", r'--set "Text\.prompt" is no assignment'),
        ("Prompt.prompt={prompt}", "0 nodes are called Prompt, expected one; give a title or class of one: "),
        ("Text.text={prompt}", "Text has no input text; it has prompt"),
        ("Text.prompt={promt}", r"the unknown field \{promt\}: known are prompt, negative, seed"),
        ("KSampler.steps=many", r'--set "KSampler\.steps=many": "many" is no number, where the graph has 20'),
        ("KSampler.tiled=yes", '"yes" is neither true nor false'),
        ("KSampler.steps=8", "No --set takes the prompt"),
    ],
)
def test_a_wrong_assignment_is_refused_in_a_sentence(assignment, sentence):
    with pytest.raises(WorkflowError, match=sentence):
        Template(prompt(), [assignment], Options())


def test_a_workflow_must_save_and_must_not_queue():
    nothing = {key: node for key, node in prompt().items() if key != "4"}
    with pytest.raises(WorkflowError, match="saves nothing: add a Save Image node"):
        Template(nothing, SET, Options())
    queueing = prompt() | {"9": {"class_type": "SanaNativePromptsFromFile", "inputs": {}}}
    with pytest.raises(WorkflowError, match="queues lines of its own"):
        Template(queueing, SET, Options())


def test_rows_of_equal_settings_make_batches():
    sets = ["Text.prompt={prompts}", "KSampler.seed={seeds}", "KSampler.steps={steps}", "Latent.batch_size={count}"]
    template = Template(prompt(), sets, Options(batch=2))
    rows = [row(i, steps=8 if i == 1 else None, prompt=f"p\n{i}") for i in range(5)]
    groups = list(template.groups(rows))
    assert [[one.index for one in group] for group in groups] == [[0, 2], [3, 4], [1]]
    inputs = {key: node["inputs"] for key, node in template.fill(groups[0]).items()}
    assert inputs["1"] == {"prompt": "p 0\np 2"} and inputs["2"]["seed"] == "0, 2" and inputs["3"]["batch_size"] == 2
    for lacking in ("{seeds}", "{count}"):
        with pytest.raises(WorkflowError, match=r"A batch needs the fields \{prompts\}, \{seeds\} and \{count\}"):
            Template(prompt(), [one for one in sets if lacking not in one], Options(batch=2))


def test_a_number_may_be_a_fraction_where_the_graph_holds_a_whole_one():
    whole = prompt()
    whole["2"]["inputs"]["cfg"] = 8
    for text, value in (("4.5", 4.5), ("6", 6)):
        assert Template(whole, [*SET, f"KSampler.cfg={text}"], Options()).prompt["2"]["inputs"]["cfg"] == value


def test_a_row_has_no_seed_where_none_is_set():
    sets = ["Text.prompt={prompt}", "KSampler.seed={seed}"]
    assert [Template(prompt(), sets[:n], Options(100)).seed_of(row(seed=5)) for n in (1, 2)] == [None, 5]
    assert Template(prompt(), sets, Options(100)).seed_of(row()) == 107
    assert Template(prompt(), sets[:1], Options()).unused([row(seed=5)]) == ["seed"]


def test_settings_that_no_set_takes_are_named():
    template = Template(prompt(), SET, Options())
    assert template.unused([row(cfg=3.0), row(negative="blurry"), row(steps=4)]) == ["cfg", "negative"]


def test_the_digest_follows_the_graph_and_not_what_rows_fill():
    digest = Template(prompt(), SET, Options()).digest()
    other, renamed = prompt(), prompt()
    other["1"]["inputs"]["prompt"] = "another old"
    renamed["5"]["_meta"]["title"] = "x"
    assert Template(other, SET, Options()).digest() == digest == Template(renamed, SET, Options()).digest()
    assert Template(prompt(), [*SET, "KSampler.cfg=3"], Options()).digest() != digest


def test_both_forms_are_read_and_anything_else_is_refused(tmp_path):
    saved = {"nodes": [{"id": 1, "type": "N", "widgets_values": ["x"]}], "links": []}
    (tmp_path / "w.json").write_text("\ufeff" + json.dumps(saved), encoding="utf-8")
    info = {"N": {"input": {"required": {"text": ["STRING", {}]}}, "display_name": "Node"}}
    assert api_of(read_workflow(tmp_path / "w.json"), info) == {
        "1": {"class_type": "N", "inputs": {"text": "x"}, "_meta": {"title": "Node"}}
    }
    assert is_api(prompt()) and api_of(prompt(), {}) == prompt()
    for torn in ({"nodes": [{"id": 1}], "links": []}, {"nodes": [{"id": 1, "type": "N"}]}, {"nodes": [7], "links": []}):
        with pytest.raises(WorkflowError, match=r"The workflow is torn \(.*\): save it again in ComfyUI"):
            api_of(torn, info)
    for text, sentence in (
        ("{", "is no JSON"),
        ("[]", "holds no workflow"),
        ("{}", "holds no workflow"),
        ('{"1": {"class_type": "N"}}', "holds no workflow"),
    ):
        (tmp_path / "w.json").write_text(text)
        with pytest.raises(WorkflowError, match=sentence):
            read_workflow(tmp_path / "w.json")
    with pytest.raises(WorkflowError, match="cannot be read"):
        read_workflow(tmp_path / "none.json")
