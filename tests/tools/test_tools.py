"""The tools around the pack: preparing a host, a real server, the demo command line."""

import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time

import pytest
from sana_native.tools import demo, host
from sana_native.tools.comfy_server import ComfyServer, PromptRefused, ServerError

PROMPT = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 32, "batch_size": 1, "color": 255}},
    "2": {
        "class_type": "SaveImage",
        "inputs": {"images": ["1", 0], "filename_prefix": "tools"},
        "_meta": {"title": "Save"},
    },
}


def prompt_with(node_id, **inputs):
    changed = json.loads(json.dumps(PROMPT))
    changed[node_id]["inputs"].update(inputs)
    return changed


# tools/host.py


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is the judge here")
@pytest.mark.parametrize("extra", ["test", "demo", "lint", "registry", "scale"])
def test_extras_are_read_as_a_toml_parser_reads_them(extra):
    import tomllib

    pyproject = tomllib.loads((host.ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert host.read_extra(extra) == pyproject["project"]["optional-dependencies"][extra]


def test_unknown_extra_is_one_sentence():
    with pytest.raises(host.HostError, match="no extra called nonsense; use one that is listed"):
        host.read_extra("nonsense")


def make_archive(path, names):
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))


def test_only_the_wanted_folder_of_an_archive_is_extracted(tmp_path):
    inside = "top/vendor/ComfyUI/"
    make_archive(tmp_path / "a.tar.gz", [inside + "main.py", inside + "comfy/sd.py", "top/other.py"])
    host.extract_folder(tmp_path / "a.tar.gz", ("vendor", "ComfyUI"), tmp_path / "out")
    files = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert [name.replace("\\", "/") for name in files] == ["comfy/sd.py", "main.py"]


def test_archive_cannot_write_outside_its_folder(tmp_path):
    make_archive(tmp_path / "a.tar.gz", ["top/vendor/ComfyUI/../../../evil.py"])
    with pytest.raises(host.HostError, match=r"unsafe path top/vendor/ComfyUI/\.\./\.\./\.\./evil\.py"):
        host.extract_folder(tmp_path / "a.tar.gz", ("vendor", "ComfyUI"), tmp_path / "out")
    assert not list(tmp_path.rglob("evil.py"))


def test_host_path_without_comfyui_names_the_cure(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(host.HostError, match="holds no ComfyUI .* set COMFYUI_PATH"):
        host._host_path(host.Path(sys.executable))


def test_host_that_is_too_old_is_refused(monkeypatch, tmp_path):
    for name in ("main.py", "requirements.txt"):
        (tmp_path / name).touch()
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.3.64"\n')
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(host.HostError, match=r"older than 0\.30\.0; update it"):
        host._host_path(host.Path(sys.executable))


def test_interpreter_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setenv("COMFYUI_PYTHON", "/no/such/python")
    with pytest.raises(host.HostError, match="COMFYUI_PYTHON=/no/such/python is not a program"):
        host.prepare()


def private_folder(monkeypatch, tmp_path):
    """Let host.py work in `tmp_path`, without an environment of its own."""
    monkeypatch.setattr(host, "PRIVATE", tmp_path)
    monkeypatch.delenv("COMFYUI_PYTHON", raising=False)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)


def test_old_python_is_told_so(monkeypatch, tmp_path):
    private_folder(monkeypatch, tmp_path)
    monkeypatch.setattr(host.sys, "version_info", (3, 9, 18))
    with pytest.raises(host.HostError, match=r"too old for ComfyUI; run make with PYTHON="):
        host.prepare()


def test_missing_venv_module_names_the_package(monkeypatch, tmp_path):
    private_folder(monkeypatch, tmp_path)
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(host.HostError, match="cannot create virtual environments; .* apt install python3-venv"):
        host.prepare()


@pytest.mark.parametrize(
    "output, cure",
    [
        ("ERROR: No matching distribution found for torch==2.11.0", "check the network connection"),
        ("/usr/bin/python3: No module named pip", "install pip for this Python"),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left",
            "No space left; correct this",
        ),
    ],
)
def test_failed_pip_is_one_sentence_with_a_cure(output, cure):
    with pytest.raises(host.HostError, match="^Could not install the requirements: .*" + cure) as caught:
        host._run([sys.executable, "-c", f"import sys; print({output!r}); sys.exit(1)"], "install the requirements")
    assert "\n" not in str(caught.value)


def test_requirements_are_installed_once_and_again_when_a_list_changes(monkeypatch, tmp_path, capsys):
    private_folder(monkeypatch, tmp_path)
    monkeypatch.setattr(host, "DISK_NEEDED_GB", 0)
    (tmp_path / "requirements.txt").write_text("aiohttp\n")
    python, calls = tmp_path / "venv" / "bin" / "python", []
    python.parent.mkdir(parents=True)
    monkeypatch.setattr(host, "_pip", lambda *arguments, **_: calls.append(arguments))
    host._install(python, tmp_path, ["test"])
    assert "about 7 GB, which takes several minutes. COMFYUI_PYTHON names" in capsys.readouterr().err
    host._install(python, tmp_path, ["test"])
    assert capsys.readouterr().err == ""
    assert len(calls) == 1 and "pytest==9.2.0" in calls[0]
    host._install(python, tmp_path, ["lint"])
    host._install(python, tmp_path, ["test", "lint"])
    assert len(calls) == 2
    (tmp_path / "requirements.txt").write_text("aiohttp\nyarl\n")
    host._install(python, tmp_path, ["test"])
    host._install(python, tmp_path, ["lint"])
    assert len(calls) == 4


def test_full_disk_is_noticed_before_the_download(monkeypatch, tmp_path):
    private_folder(monkeypatch, tmp_path)
    monkeypatch.setattr(host, "DISK_NEEDED_GB", 10**9)
    with pytest.raises(host.HostError, match="GB of free disk space"):
        host._install(tmp_path / "venv" / "bin" / "python", tmp_path, [])


def test_a_front_end_is_fetched_once(monkeypatch, tmp_path):
    calls = []

    def pip(_, *arguments, what):
        calls.append((arguments[-1], what))
        static = host.Path(arguments[arguments.index("--target") + 1], *host.FRONT_END_PAGES)
        static.mkdir(parents=True)
        (static / "index.html").touch()

    monkeypatch.setattr(host, "PRIVATE", tmp_path)
    monkeypatch.setattr(host, "_pip", pip)
    monkeypatch.setenv("FRONTEND", "1.58.1")
    for _ in range(2):
        option, folder = host.front_end_arguments()
        assert option == "--front-end-root" and (host.Path(folder) / "index.html").is_file()
    assert calls == [("comfyui-frontend-package==1.58.1", "fetch comfyui-frontend-package 1.58.1")]
    assert [path.name for path in (tmp_path / "front-end").iterdir()] == ["1.58.1"]


def test_without_a_wanted_front_end_the_host_takes_its_own(monkeypatch):
    monkeypatch.delenv("FRONTEND", raising=False)
    assert host.front_end_arguments() == []


def test_a_front_end_that_is_no_version_is_said(monkeypatch):
    monkeypatch.setenv("FRONTEND", "newest")
    with pytest.raises(
        host.HostError, match="FRONTEND=newest is no version of comfyui-frontend-package; give one such"
    ):
        host.front_end_arguments()


def test_linked_folder_follows_a_new_target(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    for name in ("one", "two", "two"):
        host.link_folder(tmp_path / name, tmp_path / "place")
        assert (tmp_path / "place" / "file").read_text() == name
    assert (tmp_path / "one" / "file").read_text() == "one"


def test_folder_is_copied_where_links_are_impossible(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("no links here")

    (tmp_path / "one" / ".comfyui").mkdir(parents=True)
    (tmp_path / "one" / "file").write_text("one")
    monkeypatch.setattr(host.os, "symlink", refuse)
    monkeypatch.setattr(host.os, "name", "posix")
    for _ in range(2):
        host.link_folder(tmp_path / "one", tmp_path / "place")
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["file"]


def test_command_line_runs_python_and_returns_its_exit_code(tmp_path):
    environment = {"COMFYUI_PYTHON": sys.executable, "COMFYUI_PATH": str(tmp_path), "PATH": "", "PYTHONPATH": ""}
    for name in ("main.py", "requirements.txt"):
        (tmp_path / name).touch()
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.30.0"\n')
    done = subprocess.run(
        [sys.executable, "-m", "tools.host", "--", "-c", "import sys; sys.exit(7)"],
        cwd=host.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_bare_make_lists_every_target_and_runs_none():
    told = subprocess.run(["make", "PYTHON=false"], cwd=host.ROOT, capture_output=True, text=True, check=True).stdout
    makefile = (host.ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    assert set(re.findall(r"^  ([\w-]+) +\S", told, re.MULTILINE)) == targets and {"demo", "test", "help"} <= targets


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_passes_the_prompt_exactly_as_typed():
    prompt = 'it\'s "quoted", costs $5 and $(HOME); `date`'
    done = subprocess.run(
        ["make", "demo", "PYTHON=echo", f"PROMPT={prompt}"], cwd=host.ROOT, capture_output=True, text=True, check=True
    )
    assert f"--prompt {prompt} --model" in done.stdout


# tools/comfy_server.py


def test_server_runs_a_prompt_and_hands_back_its_image(comfy_server):
    server = comfy_server()
    seen = []
    result = server.run(prompt_with("1", color=0x00FF00), on_progress=lambda *step: seen.append(step), timeout=60)
    assert server.fetch_image(result.images()[0]).startswith(b"\x89PNG")
    assert set(result.seconds) == {"1", "2"} and all(value >= 0 for value in result.seconds.values())


def test_cached_nodes_have_no_time(comfy_server):
    server, prompt = comfy_server(), prompt_with("1", color=0x0000FE)
    server.run(prompt, timeout=60)
    again = server.run(prompt, timeout=60)
    assert again.seconds == {} and again.images()


@pytest.mark.parametrize(
    "prompt, sentence",
    [
        (prompt_with("1", width=-4), r"refused Node 1 \(EmptyImage\): Value -4 smaller than min of 1: width"),
        ({"1": PROMPT["1"]}, "refused the prompt: Prompt has no outputs"),
        ({"9": {"class_type": "Nope", "inputs": {}}}, "refused the prompt: Node 'Nope' not found"),
    ],
)
def test_refused_prompt_names_node_and_input(comfy_server, prompt, sentence):
    with pytest.raises(ServerError, match=sentence):
        comfy_server().run(prompt, timeout=60)


def test_an_output_that_the_host_drops_refuses_the_whole_prompt(comfy_server):
    """The host takes such a prompt and runs its other outputs alone."""
    server, good = comfy_server(), prompt_with("1", color=0x00FE02)
    bad = {"7": PROMPT["1"] | {"inputs": PROMPT["1"]["inputs"] | {"width": -4}}}
    bad["8"] = PROMPT["2"] | {"inputs": PROMPT["2"]["inputs"] | {"images": ["7", 0]}}
    with pytest.raises(PromptRefused, match=r"refused Node 7 \(EmptyImage\): Value -4 smaller than min of 1: width"):
        server.run(good | bad, timeout=60)
    assert server.run(good, timeout=60).images()


def test_failing_node_is_named_by_title_and_class(comfy_server):
    prompt = {
        "8": {"class_type": "LoadImage", "inputs": {"image": "broken.png"}, "_meta": {"title": "Broken file"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "tools"}},
    }
    (comfy_server().base_directory / "input" / "broken.png").write_bytes(b"this is no picture")
    with pytest.raises(ServerError, match=r"Broken file \(LoadImage\) failed: "):
        comfy_server().run(prompt, timeout=60)


def test_interrupted_and_slow_prompts_say_so(comfy_server):
    server = comfy_server()
    slow = prompt_with("1", width=2048, height=2048, batch_size=4)
    with pytest.raises(ServerError, match=r"did not end in 0\.05 s and was stopped"):
        server.run(slow, timeout=0.05)
    assert server.run(prompt_with("1", color=3), timeout=120).images()


def test_server_that_cannot_start_shows_the_end_of_its_log(tmp_path):
    with pytest.raises(ServerError, match="ended with code 2 at start(.|\n)*unrecognized arguments: --nonsense"):
        ComfyServer(tmp_path, ["--nonsense"], cpu=True).start()


def test_server_that_is_too_slow_is_stopped(tmp_path):
    server = ComfyServer(tmp_path, cpu=True, boot_seconds=0.3)
    with pytest.raises(ServerError, match=r"gave no answer in 0\.3 s"):
        server.start()
    assert server._process is None


@pytest.mark.heavy
def test_server_killed_during_a_prompt_is_reported(tmp_path):
    with ComfyServer(tmp_path, cpu=True) as server:

        def kill_soon():
            time.sleep(1)
            server._process.kill()

        threading.Thread(target=kill_soon).start()
        with pytest.raises(ServerError, match="The server ended during the prompt"):
            server.run(prompt_with("1", width=4096, height=4096, batch_size=40), timeout=60)


# tools/demo.py


@pytest.mark.parametrize(
    "index, sentence",
    [
        (None, r"holds no model_index\.json; give MODEL= a folder"),
        ({"_class_name": "FluxPipeline"}, "is a FluxPipeline, not a SANA pipeline"),
    ],
)
def test_demo_names_a_wrong_model_folder(tmp_path, index, sentence):
    if index:
        (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(demo.DemoError, match=sentence):
        demo.choose_model(str(tmp_path))


@pytest.mark.parametrize(
    "pipeline, graph", [("SanaPipeline", "sana_txt2img"), ("SanaSprintPipeline", "sana_sprint_txt2img")]
)
def test_demo_picks_the_graph_of_the_family(tmp_path, pipeline, graph):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    for part in demo.PARTS:
        (tmp_path / part).mkdir()
    folder, chosen = demo.choose_model(str(tmp_path))
    assert (folder, chosen.stem) == (tmp_path, graph)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--size", "big"], "SIZE=big is not a size"),
        (["--steps", "many"], "STEPS=many is not a whole number"),
        (["--seed", "1.5"], "SEED=1.5 is not a whole number"),
        (["--cfg", "much"], "CFG=much is not a number"),
        (["--out", "a.jpg"], r"OUT=a\.jpg does not end in \.png"),
        (["--model", "/no/such/folder"], "MODEL=/no/such/folder is no folder"),
        (["--model", "dmo"], r"MODEL=dmo is no folder; .* or sprint \(did you mean demo\?\)\."),
        (["--model", "Sprnt"], r"did you mean sprint\?"),
        (["--seed", "-1"], "SEED=-1 is out of range; give a whole number from 0 to 18446744073709551615"),
        (["--seed", str(2**64)], "SEED=18446744073709551616 is out of range"),
        (["--steps", "0"], "STEPS=0 is out of range; give a whole number from 1 to 10000"),
        (["--steps", "10001"], "STEPS=10001 is out of range"),
        (["--cfg", "nan"], "CFG=nan is out of range; give a number from 0 to 100"),
        (["--cfg", "101"], "CFG=101 is out of range"),
        (["--size", "1024x16"], "SIZE=1024x16 is out of range; give sides from 32 to 16384 px"),
        (["--size", "20000"], "SIZE=20000 is out of range"),
        (["--size", "1²"], "SIZE=1² is not a size"),
        (
            ["--out", "/dev/null/demo.png"],
            r"OUT=/dev/null/demo\.png cannot be written \(its folder is a file\); give",
        ),
    ],
)
def test_demo_names_a_wrong_setting_before_anything_starts(monkeypatch, capsys, arguments, sentence):
    monkeypatch.setattr(demo, "generate", lambda _: pytest.fail("started"))
    assert demo.main(arguments) == 1
    error = capsys.readouterr().err
    assert host.re.search(sentence, error) and error.count("\n") == 1


def test_demo_names_a_model_with_parts_missing(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "SanaPipeline"}))
    (tmp_path / "transformer").mkdir()
    with pytest.raises(demo.DemoError, match="holds no text_encoder and no vae; download the whole folder"):
        demo.choose_model(str(tmp_path))


def test_demo_suggests_a_folder_beside_the_wrong_one(tmp_path):
    (tmp_path / "Sana_1600M").mkdir()
    (tmp_path / "Sana_1600M" / "model_index.json").touch()
    with pytest.raises(demo.DemoError, match=r"did you mean .*/Sana_1600M\?\)"):
        demo.choose_model(str(tmp_path / "sana-1600m"))


def test_demo_looks_whether_it_can_write_and_leaves_nothing(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(demo.DemoError, match=r"folder\.png cannot be written \(Is a directory\)"):
        demo.require_writable(tmp_path / "folder.png")
    there = tmp_path / "there.png"
    there.write_bytes(b"as before")
    for path in (there, tmp_path / "image.png"):
        demo.require_writable(path)
    assert there.read_bytes() == b"as before" and not (tmp_path / "image.png").exists()


def test_demo_creates_no_folder_but_that_of_its_own_file(tmp_path, monkeypatch):
    with pytest.raises(
        demo.DemoError, match=r"new/image\.png cannot be written \(there is no folder .*new\); create it"
    ):
        demo.require_writable(tmp_path / "new" / "image.png")
    assert not list(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    demo.require_writable(demo.read_settings([]).out)
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "512x256"], "SIZE=512x256: the demo models are trained at 256x256 px, and larger images"),
        (["--size", "512", "--model", "sprint"], "SIZE=512x512: the demo models are trained"),
        (["--size", "256x192"], ""),
        ([], ""),
    ],
)
def test_demo_says_what_larger_sizes_do_to_its_own_models(monkeypatch, capsys, tmp_path, arguments, said):
    monkeypatch.setattr(demo, "generate", lambda _: None)
    assert demo.main([*arguments, "--out", str(tmp_path / "a.png")]) == 0
    out = capsys.readouterr().out
    assert out.startswith(said) and out.count("\n") == bool(said)


def test_demo_lets_other_models_be_of_any_size(capsys, tmp_path):
    settings = demo.read_settings(["--size", "1024", "--model", str(tmp_path)])
    demo.warn_of_size(settings)
    assert capsys.readouterr().out == ""


def test_demo_says_what_a_size_between_becomes(capsys):
    assert demo.read_settings(["--size", "1000x777"]).size == (992, 768)
    assert capsys.readouterr().out == "SIZE=1000x777 becomes 992x768: sides are multiples of 32 px.\n"
    assert demo.read_settings(["--size", "1024"]).size == (1024, 1024) and capsys.readouterr().out == ""


def test_demo_sets_what_the_user_asked_for():
    prompt = {
        "1": {"class_type": "SanaNativeModelLoader", "inputs": {"model_name": "a"}},
        "2": {"class_type": "SanaNativeGemmaLoader", "inputs": {"text_encoder_name": "a"}},
        "3": {"class_type": "SanaNativeDCAELoader", "inputs": {"vae_name": "a"}},
        "4": {"class_type": "SanaNativeGemmaEncode", "inputs": {"clip": ["2", 0], "prompt": "a"}},
        "5": {"class_type": "SanaNativeEmptyLatent", "inputs": {"size": "512", "width": 1, "height": 1}},
        "6": {"class_type": "SanaNativeSampler", "inputs": {"model": ["1", 0], "seed": 0, "steps": 20, "cfg": 4.5}},
    }
    changed = demo.fill_in(
        prompt,
        "folder",
        demo.read_settings(["--prompt", 'a $5 "fox"', "--steps", "3", "--seed", "9", "--cfg", "2", "--size", "64x32"]),
    )
    inputs = {node["class_type"].removeprefix("SanaNative"): node["inputs"] for node in changed.values()}
    assert inputs["ModelLoader"]["model_name"] == inputs["DCAELoader"]["vae_name"] == "folder/"
    assert inputs["GemmaLoader"]["text_encoder_name"] == "folder/" and inputs["GemmaEncode"]["prompt"] == 'a $5 "fox"'
    assert inputs["EmptyLatent"] == {"size": "custom", "width": 64, "height": 32}
    assert (inputs["Sampler"]["steps"], inputs["Sampler"]["seed"], inputs["Sampler"]["cfg"]) == (3, 9, 2.0)
    assert prompt["6"]["inputs"]["steps"] == 20


def test_demo_says_when_the_graph_has_no_such_setting():
    with pytest.raises(demo.DemoError, match="This model's graph has no guidance; leave CFG= away"):
        demo.fill_in(
            {
                "4": {"class_type": "SanaNativeGemmaEncode", "inputs": {"prompt": ""}},
                "6": {"class_type": "RandomNoise", "inputs": {"noise_seed": 0}},
            },
            "folder",
            demo.read_settings(["--cfg", "2"]),
        )


def test_demo_gives_cfg_to_the_guidance_of_a_distilled_model():
    prompt = {
        "5": {"class_type": "FluxGuidance", "inputs": {"guidance": 4.5}},
        "6": {"class_type": "SanaNativeSampler", "inputs": {"seed": 0, "cfg": 1.0}},
    }
    changed = demo.fill_in(prompt, "folder", demo.read_settings(["--cfg", "3"]))
    assert (changed["5"]["inputs"]["guidance"], changed["6"]["inputs"]["cfg"]) == (3.0, 1.0)
