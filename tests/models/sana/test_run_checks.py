"""Settings that are allowed but hardly meant: said once a run, on the node and in the log, and nothing is changed."""

import asyncio
import uuid

import aiohttp
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_flux import FluxGuidance
from sana_native.models.sana.run_checks import advise, schedulers_of, size_advice
from sana_native.nodes import warnings as notices
from sana_native.tests.models.dc_ae import test_previews as previews
from sana_native.tests.support import workbench as bench

FAMILIES = {"sana": 20, "sprint": 2}


def said(family: str, scheduler: str | None = None, steps: int | None = None, guidance=(), size=(32, 32)) -> list[str]:
    model, steps = bench.model(family), steps or FAMILIES[family]
    sampling = model.get_model_object("model_sampling")
    own = "sana_scm" if family == "sprint" else "sana_flow"
    sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler or own, steps)
    return advise(model.model.diffusion_model.config, sampling, sigmas, guidance, size)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_released_settings_are_not_commented(family):
    assert said(family) == said(family, guidance=[4.5]) == said(family, size=(26, 38)) == []


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_one_to_four_steps_of_sprint_are_not_commented(steps):
    assert said("sprint", steps=steps) == []


def test_more_steps_of_sprint_are():
    assert said("sprint", steps=8) == ["SANA-Sprint is made for 1 to 4 steps, not 8: set steps to 2."]


@pytest.mark.parametrize("scheduler", ["simple", "sgm_uniform", "normal", "beta", "sana_flow", "sana_flow_euler"])
def test_schedules_near_sanas_own_are_not_commented(scheduler):
    assert said("sana", scheduler) == []


@pytest.mark.parametrize("scheduler", ["karras", "exponential", "kl_optimal", "linear_quadratic", "ddim_uniform"])
@pytest.mark.parametrize("family, own", [("sana", "sana_flow"), ("sprint", "sana_scm")])
def test_schedules_made_for_other_models_are(family, own, scheduler):
    model = {"sana": "SANA", "sprint": "SANA-Sprint"}[family]
    assert said(family, scheduler, steps=4) == [
        f"The scheduler {scheduler} takes other noise levels than {model} is drawn with: choose {own}."
    ]


def test_sanas_schedule_on_sprint_and_sprints_on_sana_are():
    assert "choose sana_scm" in said("sprint", "simple")[0] and "choose sana_flow" in said("sana", "sana_scm")[0]


def test_schedules_that_few_steps_make_the_same_are_all_named():
    (sentence,) = said("sprint", "karras")
    assert sentence.startswith("The scheduler exponential or karras or kl_optimal or normal takes other noise levels")


def test_one_step_is_the_same_under_every_name():
    assert said("sprint", "simple", steps=1) == said("sana", "karras", steps=1) == []


def test_noise_levels_of_the_users_own_are_not_judged():
    sampling = bench.model("sana").get_model_object("model_sampling")
    assert schedulers_of(sampling, torch.tensor([1.0, 0.5, 0.2, 0.0]), ("karras", "simple")) == []


def test_guidance_of_sprint_outside_what_it_was_distilled_with_is_commented():
    assert said("sprint", guidance=[4.0, 5.0]) == []
    assert said("sprint", guidance=[8.0, 8.0]) == [
        "SANA-Sprint was distilled with a guidance of 4 to 5, not 8: set 4.5."
    ]
    assert said("sana", guidance=[8.0]) == []  # which has none to set


def test_a_size_off_the_trained_ones_is_commented_with_the_nearest():
    assert size_advice(1024, (24, 31)) == (
        "992 x 768 px is no size that this checkpoint was trained on: the nearest in shape is 1152 x 896, "
        "see SANA Empty Latent."
    )
    assert size_advice(1024, (28, 36)) is size_advice(1024, (36, 28)) is None
    assert size_advice(128, (3, 5)) is None  # the demo, which no table is known of


@pytest.fixture
def watched():
    return {family: bench.model(family).clone() for family in FAMILIES}


def test_every_sampler_node_is_watched_and_draws_the_same(watched, caplog):
    for draw in (bench.draw, bench.ksampler):
        expected = draw(watched["sana"], bench.encoded())
        notices.warn_about_runs(watched["sana"])
        caplog.clear()
        assert torch.equal(draw(watched["sana"], bench.encoded()), expected)
        (record,) = [record for record in caplog.records if record.name.endswith("nodes.warnings")]
        assert record.levelname == "WARNING" and record.message.startswith("SANA: 128 x 128 px is no size")
        watched["sana"] = bench.model("sana").clone()


def test_guidance_is_read_off_the_prompt(watched, caplog):
    notices.warn_about_runs(watched["sprint"])
    positive, negative = bench.encoded()
    (stronger,) = bench.call(FluxGuidance, positive, 9.0)
    bench.draw(watched["sprint"], (stronger, negative))
    assert "SANA: SANA-Sprint was distilled with a guidance of 4 to 5, not 9: set 4.5." in caplog.messages


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
    sentence = "The scheduler karras takes other noise levels than SANA is drawn with: choose sana_flow."
    assert found == [[("6", sentence)], [("6", notices.NOTHING)], []]
    assert f"SANA: {sentence}" in server.log()
