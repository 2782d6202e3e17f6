"""What a job finds before anything runs, and that two runs do not meet."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
from sana_native.scale import command
from sana_native.scale.command import parser, settings_of
from sana_native.scale.job import RunError, Survey, locked, make_job, stop_on_signals
from sana_native.scale.manifest import Part, Record, Shard, join_job
from sana_native.scale.progress import Outcome
from sana_native.scale.rows import read_rows
from sana_native.scale.store import LocalStore, open_store


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
    told = ["run", "--workflow", "w.json", "--prompts", str(tmp_path / "p.txt"), "--out", str(tmp_path / "out")]
    for one in ["Text.prompt={prompt}", *more]:
        told += ["--set", one]
    settings = settings_of(parser().parse_args(told), tmp_path)
    make_job(settings, prompt, Survey.of(settings.rows()), LocalStore(tmp_path / "out"), engine)
    assert capsys.readouterr().out.count("every row is drawn with the workflow's own seed") == said


class FakeEngine:
    """Whose first row does what a test says, and which notes whether rows ran and that it was closed."""

    workers = 1

    def __init__(self, canary):
        self.canary, self.calls = canary, []

    def prompt_of(self, workflow):
        return workflow

    def describe(self):
        return {"comfyui": "0"}

    def run(self, *_):
        self.calls.append("run")

    def close(self):
        self.calls.append("close")


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Runs the command with a fake engine, and returns its code and what the engine was asked."""
    (tmp_path / "p.txt").write_text("a cat")
    nodes = {"1": ("Text", {"prompt": "", "seed": 1}), "2": ("SaveImage", {"images": ["1", 0]})}
    graph = {key: {"class_type": kind, "inputs": own} for key, (kind, own) in nodes.items()}
    monkeypatch.setattr(command, "find_host", lambda _: SimpleNamespace(base=str(tmp_path)))

    def run(canary, what: str = "run", *more: str, steps: int = 1) -> tuple[int, list[str]]:
        graph["1"]["inputs"]["steps"] = steps
        (tmp_path / "w.json").write_text(json.dumps(graph))
        engine = FakeEngine(canary)
        monkeypatch.setattr(command, "engine_of", lambda *_: engine)
        told = ["--workflow", tmp_path / "w.json", "--prompts", tmp_path / "p.txt", "--out", tmp_path / "out"]
        sets = ["--set", "Text.prompt={prompt}", "--set", "Text.seed={seed}"]
        return command.main([what, *map(str, told), *sets, *more]), engine.calls

    return run


def done(job, row, _known) -> Outcome:
    """As a worker leaves it: a record in the store."""
    part = Part(open_store(job.store), Shard(row.index, [row]), [])
    part.add(Record(row.index, row.name, row.place, "done"))
    part.save()
    return Outcome("done", "", 0.1, 1, 10)


def failed(*_) -> Outcome:
    return Outcome("failed", "no such sampler", 0.1, 0, 0)


@pytest.mark.parametrize("what", ["run", "check"])
def test_a_workflow_mended_after_its_first_row_failed_needs_no_further_option(job, capsys, what):
    assert job(failed, what) == (1, ["close"]) == job(failed, what, steps=2)
    assert job(done, what, steps=3)[0] == 0 and capsys.readouterr().err.count("no such sampler") == 2
    assert job(done, "run", steps=4) == (1, ["close"])  # a row of it is done
    assert "workflow or --set changed since. Choose another folder" in capsys.readouterr().err
    assert job(done, "run", steps=3) == (0, [])  # without an engine
    assert "The only row is done already." in capsys.readouterr().out


def test_a_command_that_has_nothing_left_to_run_says_so_without_a_server(job, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a cat\na dog\na fox")
    assert job(done)[1] == ["run", "close"]
    part = Part(open_store(str(tmp_path / "out")), Shard(1, []), [])
    for index, status in ((1, "failed"), (2, "refused")):
        part.add(Record(index, "", f"line {index + 1}", status))
    part.save()
    capsys.readouterr()
    assert job(done) == (0, [])
    assert "Nothing is left to run, 1 done, 1 failed, 1 refused: --retry-failed tries" in capsys.readouterr().out
    assert job(done, "run", "--retry-failed")[1] == ["run", "close"]
    assert "2 of 3 rows: 1 done, 1 refused; this run: none yet" in capsys.readouterr().out
    assert job(done, "run", "--verify")[1] == ["run", "close"]  # looks for pictures
    for index in (1, 2):
        part.add(Record(index, "", f"line {index + 1}", "done"))
    part.save()
    capsys.readouterr()
    assert job(done) == (0, []) and capsys.readouterr().out == "All 3 rows are done already.\n"


@pytest.mark.parametrize(
    ("status", "cure"),
    [
        ("refused", "no option runs refused rows again."),
        ("unreadable", "correct the lines that cannot be read, and go on with --force-new-graph."),
    ],
)
def test_what_is_left_of_a_finished_job_is_told_with_its_cure(job, tmp_path, capsys, status, cure):
    (tmp_path / "p.txt").write_text("a cat\n--seed 1" if status == "unreadable" else "a cat\na dog")
    job(done)
    part = Part(open_store(str(tmp_path / "out")), Shard(1, []), [])
    part.add(Record(1, "", "line 2", status))
    part.save()
    capsys.readouterr()
    assert job(done) == (0, [])
    assert f"Nothing is left to run, 1 done, 1 {status}: {cure}" in capsys.readouterr().out


def test_a_row_that_could_not_be_read_and_now_can_is_left_to_run(job, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a cat\na dog")
    assert job(done)[1] == ["run", "close"]
    part = Part(open_store(str(tmp_path / "out")), Shard(1, []), [])
    part.add(Record(1, "", "line 2", "unreadable"))
    part.save()
    capsys.readouterr()
    assert job(done)[1] == ["run", "close"]
    assert "1 of 2 rows: 1 done; this run: none yet" in capsys.readouterr().out


def test_a_job_that_another_machine_replaced_meanwhile_runs_no_rows(job, tmp_path, capsys):
    def meanwhile(*arguments):
        join_job(LocalStore(tmp_path / "out"), {"workflow": "another"}, 1)
        return done(*arguments)

    assert job(meanwhile) == (1, ["close"])
    assert "as another run wrote into it too: choose another folder." in capsys.readouterr().err


def test_a_signal_during_the_first_row_ends_the_command_at_once(job, capsys):
    assert job(lambda *_: signal.raise_signal(signal.SIGINT)) == (130, ["close"])
    assert capsys.readouterr().err == "Stopped at once: the same command goes on.\n"


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
