"""Valid but probably unintended settings get a warning per run, on the node and in the log; impossible ones an error."""

import asyncio
import uuid

import aiohttp
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_flux import FluxGuidance
from sana_native.models.sana.run_checks import Run, check_run, check_size, schedulers_of
from sana_native.nodes import warnings as notices
from sana_native.tests.models.dc_ae import test_previews as previews
from sana_native.tests.support import workbench as bench

FAMILIES = {"sana": 20, "sprint": 2}


OWN = {"sana": ("sana_flow_dpm", "sana_flow"), "sprint": ("sana_scm", "sana_scm")}


def said(
    family: str, scheduler: str | None = None, steps: int | None = None, sampler: str | None = None, **settings
) -> list[str]:
    """Warnings about a run with the family's own settings but for those given."""
    model, steps = bench.model(family), steps or FAMILIES[family]
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler or OWN[family][1], steps)
    settings = {"size": (32, 32), "sigmas": sigmas} | settings
    return check_run(Run(model.model.diffusion_model.config, sampling, sampler or OWN[family][0], **settings))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_released_settings_are_not_commented(family):
    assert said(family) == said(family, guidance=(4.5,)) == said(family, size=(26, 38)) == []


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_one_to_four_steps_of_sprint_are_not_commented(steps):
    assert said("sprint", steps=steps) == []


def test_more_steps_of_sprint_are():
    assert said("sprint", steps=8) == ["Set steps to 2: SANA-Sprint is made for 1 to 4, not 8."]


@pytest.mark.parametrize("scheduler", ["simple", "sgm_uniform", "normal", "beta", "sana_flow", "sana_flow_euler"])
def test_schedules_near_sanas_own_are_not_commented(scheduler):
    assert said("sana", scheduler) == []


@pytest.mark.parametrize("scheduler", ["karras", "exponential", "kl_optimal", "linear_quadratic", "ddim_uniform"])
@pytest.mark.parametrize("family, own", [("sana", "sana_flow"), ("sprint", "sana_scm")])
def test_schedules_made_for_other_models_are(family, own, scheduler):
    model = {"sana": "SANA", "sprint": "SANA-Sprint"}[family]
    assert said(family, scheduler, steps=4) == [
        f"Choose the scheduler {own}: {scheduler} has other noise levels than {model} needs."
    ]


def test_sanas_schedule_on_sprint_and_sprints_on_sana_are():
    assert said("sprint", "simple")[0].startswith("Choose the scheduler sana_scm: ")
    assert said("sana", "sana_scm")[0].startswith("Choose the scheduler sana_flow: ")


def test_of_schedules_that_few_steps_make_the_same_none_is_named():
    (sentence,) = said("sprint", "karras")
    assert sentence == "Choose the scheduler sana_scm: this one has other noise levels than SANA-Sprint needs."
    sampling, few = bench.model("sprint").get_model_object("model_sampling"), ("karras", "normal")
    assert schedulers_of(sampling, comfy.samplers.calculate_sigmas(sampling, "karras", 2), few) == ["karras", "normal"]


def test_one_step_is_the_same_under_every_name():
    assert said("sprint", "simple", steps=1) == said("sana", "karras", steps=1) == []


def test_noise_levels_of_the_users_own_are_not_judged():
    sampling = bench.model("sana").get_model_object("model_sampling")
    assert schedulers_of(sampling, torch.tensor([1.0, 0.5, 0.2, 0.0]), ("karras", "simple")) == []


def test_guidance_of_sprint_outside_what_it_was_distilled_with_is_commented():
    assert said("sprint", guidance=(4.0, 5.0)) == []
    assert said("sprint", guidance=(8.0, 8.0)) == [
        "Set guidance to 4.5: SANA-Sprint was distilled with 4 to 5, not 8."
    ]
    assert said("sana", guidance=(8.0,)) == []  # which has none to set


def test_a_size_off_the_trained_ones_is_commented_with_the_nearest():
    assert check_size(1024, (24, 31)) == "Set 1152 x 896 px: the checkpoint was not trained on 992 x 768 px."
    assert check_size(1024, (28, 36)) is check_size(1024, (36, 28)) is None
    assert check_size(128, (3, 5)) is None  # the demo, which no table is known of


@pytest.fixture
def watched():
    """Clones, which leave the models of other tests without a watch."""
    return {family: bench.model(family).clone() for family in FAMILIES}


def test_every_sampler_node_is_watched_and_draws_the_same(watched, caplog):
    for draw in (bench.draw, bench.ksampler):
        expected = draw(watched["sana"], bench.encoded())
        notices.warn_about_runs(watched["sana"])
        caplog.clear()
        assert torch.equal(draw(watched["sana"], bench.encoded()), expected)
        (record,) = [record for record in caplog.records if record.name.endswith("nodes.warnings")]
        assert record.levelname == "WARNING" and record.message.startswith("SANA: Set 1024 x 1024 px: ")
        watched["sana"] = bench.model("sana").clone()


def test_guidance_is_read_off_the_prompt(watched, caplog):
    notices.warn_about_runs(watched["sprint"])
    positive, negative = bench.encoded()
    (stronger,) = bench.call(FluxGuidance, positive, 9.0)
    bench.draw(watched["sprint"], (stronger, negative))
    assert "SANA: Set guidance to 4.5: SANA-Sprint was distilled with 4 to 5, not 9." in caplog.messages


def test_the_loader_node_sets_the_watch():
    (model,) = bench.call(bench.OURS["ModelLoader"], "sana-native-demo/", "auto", 0.0, "auto")
    assert model.clone().get_wrappers("outer_sample", notices.KEY) == [notices.watch_run]


# Through the real server


async def texts(server, prompt: dict) -> list[tuple[str, str]]:
    """(node, text) of what a run wrote on nodes."""
    client, found = uuid.uuid4().hex, []
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.url}/ws?clientId={client}") as socket:
        async with session.post(f"{server.url}/prompt", json={"prompt": prompt, "client_id": client}) as answer:
            assert "prompt_id" in await answer.json()
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY and message.data[:4] == b"\0\0\0\3":
                length = int.from_bytes(message.data[4:8], "big")
                found.append((message.data[8 : 8 + length].decode(), message.data[8 + length :].decode()))
            elif message.type == aiohttp.WSMsgType.TEXT:
                data = message.json()
                assert data["type"] != "execution_error"
                if data["type"] == "executing" and data["data"]["node"] is None:
                    return found
    raise AssertionError("the server closed the connection")


def test_the_sentence_stands_on_the_stock_sampler_until_it_is_heeded(comfy_server):
    server = comfy_server()
    settings = {"kind": "KSampler", "steps": 4, "cfg": 2.0, "sampler_name": "euler"}
    found = [
        asyncio.run(texts(server, previews.graph("sana-native-demo/", settings | {"scheduler": scheduler}, 64)))
        for scheduler in ("karras", "simple", "beta")
    ]
    sentence = "Choose the scheduler sana_flow: karras has other noise levels than SANA needs."
    assert found == [[("6", sentence)], [("6", notices.NOTHING)], []]
    assert f"SANA: {sentence}" in server.log()
