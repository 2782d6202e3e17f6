"""What a job finds before anything runs, and that two runs do not meet."""

import os
import signal
from types import SimpleNamespace

import pytest
from sana_native.scale.command import parser, settings_of
from sana_native.scale.job import RunError, Survey, locked, make_job, stop_on_signals
from sana_native.scale.rows import read_rows
from sana_native.scale.store import LocalStore


def survey(tmp_path, text: str) -> Survey:
    (tmp_path / "p.txt").write_text(text, encoding="utf-8")
    return Survey.of(read_rows(tmp_path / "p.txt"))


def test_a_survey_counts_rows_and_finds_the_first_and_the_settings(tmp_path, capsys):
    bad = "\n".join(["--seed 1"] * 12)
    found = survey(tmp_path, f"{bad}\na cat --steps 3\na dog --seed 5 --ar 2:1")
    assert (found.total, found.bad_total, found.first.prompt) == (14, 12, "a cat")
    assert sorted(found.samples) == ["aspect", "seed", "steps"]
    found.tell("p.txt")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Unreadable: line 1: has no prompt" and lines[-1] == "Unreadable: 2 more rows"


def test_a_file_without_a_prompt_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"p\.txt holds no prompt that can be read"):
        survey(tmp_path, "# remark\n--seed 4").tell("p.txt")


@pytest.mark.parametrize(("more", "said"), [([], 1), (["Text.seed={seed}"], 0)])
def test_it_says_once_that_rows_have_no_seed_of_their_own(tmp_path, capsys, more, said):
    (tmp_path / "p.txt").write_text("a cat\na dog")
    inputs = {"1": ("Text", {"prompt": "", "seed": 1}), "2": ("SaveImage", {"images": ["1", 0]})}
    prompt = {key: {"class_type": kind, "inputs": own} for key, (kind, own) in inputs.items()}
    engine = SimpleNamespace(prompt_of=lambda one: one, describe=lambda: {"comfyui": "0"}, workers=1)
    command = ["run", "--workflow", "w.json", "--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "out")]
    for one in ["Text.prompt={prompt}", *more]:
        command += ["--set", one]
    settings = settings_of(parser().parse_args(command), tmp_path)
    make_job(settings, prompt, Survey.of(settings.rows()), LocalStore(tmp_path / "out"), engine)
    assert capsys.readouterr().out.count("every row is drawn with the workflow's own seed") == said


@pytest.mark.skipif(os.name == "nt", reason="there is no such lock")
def test_a_second_run_into_the_same_place_is_refused(tmp_path):
    with locked(LocalStore(tmp_path / "a")):
        with pytest.raises(RunError, match="Another run writes into .*a: wait for its end, or stop it"):
            with locked(LocalStore(tmp_path / "a")):
                pass
        with locked(LocalStore(tmp_path / "b")):
            pass
    with locked(LocalStore(tmp_path / "a")):
        pass


def test_a_signal_ends_a_run_at_once_before_rows_run_and_the_second_one_after():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as signals:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    with stop_on_signals() as signals:
        signals.wait_for_rows = True
        signal.raise_signal(signal.SIGTERM)
        assert signals.stop.wait(5)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
