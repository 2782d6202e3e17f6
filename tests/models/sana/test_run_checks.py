"""Valid but probably unintended settings get a warning, on the node and in the log; impossible ones are refused."""

import asyncio
import uuid
from types import SimpleNamespace

import aiohttp
import comfy.samplers
import pytest
import torch
from comfy_extras import nodes_custom_sampler as custom
from comfy_extras.nodes_align_your_steps import AlignYourStepsScheduler
from comfy_extras.nodes_flux import FluxGuidance
from comfy_extras.nodes_gits import GITSScheduler
from sana_native.models.sana import run_checks
from sana_native.models.sana.run_checks import Run, check_run, check_size, sampler_name, schedulers_of
from sana_native.nodes import warnings as notices
from sana_native.nodes.sampling import SanaNativeSampler
from sana_native.samplers.scm import sample_scm
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
    assert said("sprint", guidance=(8.0, 8.0)) == ["Set guidance to 4.5: SANA-Sprint was distilled with 4 to 5, not 8."]
    assert said("sana", guidance=(8.0,)) == []  # which has none to set


def test_a_size_off_the_trained_ones_is_commented_with_the_nearest():
    assert check_size(1024, (24, 31)) == "Set 1152 x 896 px: the checkpoint was not trained on 992 x 768 px."
    assert check_size(1024, (28, 36)) is check_size(1024, (36, 28)) is None
    assert check_size(128, (3, 5)) is None  # the demo, which no table is known of


@pytest.mark.parametrize("sampler", ["sana_flow_dpm", "euler", "dpmpp_2m", "uni_pc"])
def test_samplers_that_sprint_was_not_distilled_for_are_commented(sampler):
    assert said("sprint", sampler=sampler) == [
        f"Choose the sampler sana_scm: SANA-Sprint was not distilled for {sampler}."
    ]
    assert said("sprint", sampler=sampler, steps=1) == []  # the first prediction, whatever the sampler
    assert said("sana", sampler=sampler) == []


@pytest.mark.parametrize("scheduler", ["sana_flow", "sana_flow_euler"])
@pytest.mark.parametrize("steps", [2, 3, 4])
def test_sanas_own_schedules_on_sprint_are_commented(scheduler, steps):
    (sentence,) = said("sprint", scheduler, steps)
    assert sentence.startswith("Choose the scheduler sana_scm: ")


def test_consistency_samplers_belong_to_sprint():
    assert said("sprint", sampler="lcm") == []
    for sampler in ("lcm", "sana_scm"):
        assert said("sana", sampler=sampler) == [
            f"Choose the sampler sana_flow_dpm: {sampler} is for distilled models such as SANA-Sprint."
        ]


def test_samplers_are_named_as_in_the_hosts_lists():
    for name in ("euler", "dpmpp_2m_sde", "lcm", "sana_scm", "sana_flow_dpm"):
        assert sampler_name(comfy.samplers.sampler_object(name).sampler_function) == name
    assert sampler_name(sample_scm) == "sana_scm"
    assert sampler_name(comfy.samplers.sampler_object("uni_pc").sampler_function) == "unipc"


@pytest.mark.parametrize("steps, denoise", [(1, "0.5"), (2, "0.66"), (3, "0.75"), (4, "0.8")])
def test_an_image_that_sprint_ignores_is_commented_with_a_denoise_that_keeps_it(steps, denoise):
    assert said("sprint", steps=steps, has_image=True) == [
        f"Set denoise to {denoise} or less: this run starts from pure noise and ignores the image."
    ]
    lengthened = int(steps / float(denoise))
    sigmas = comfy.samplers.calculate_sigmas(bench.model("sprint").get_model_object("model_sampling"), "sana_scm", 9)
    assert lengthened == steps + 1 and said("sprint", has_image=True, sigmas=sigmas[-(steps + 1) :]) == []


def test_an_image_that_sana_ignores_is_commented_too():
    (sentence,) = said("sana", has_image=True)
    assert sentence.startswith("Set denoise to 0.95 or less: ") and int(20 / 0.95) == 21


def test_repeated_noise_levels_are_commented_where_the_sampler_divides_by_their_distance():
    sigmas = torch.tensor([1.0, 0.7, 0.7, 0.3, 0.0])
    assert said("sana", sampler="dpmpp_2m", sigmas=sigmas) == [
        "Remove the repeated noise level 0.7, or choose the sampler sana_flow_dpm, which skips it."
    ]
    assert said("sana", sampler="sana_flow_dpm", sigmas=sigmas) == said("sana", sampler="euler", sigmas=sigmas) == []


def test_every_warning_begins_with_its_cure_and_is_short():
    found = said("sprint", "simple", 8, "euler", guidance=(8.0,), size=(24, 31), has_image=True, has_area=True)
    found += said("sprint", sampler="dpmpp_2m", sigmas=torch.tensor([1.0, 0.7, 0.7, 0.0])) + said("sana", sampler="lcm")
    verbs = [sentence.split()[0] for sentence in found]
    assert len(found) >= 9 and set(verbs) == {"Choose", "Set", "Take", "Remove"}
    assert all(len(sentence) <= 105 and len(sentence.split(":")[0].split(",")[0]) <= 45 for sentence in found)


@pytest.fixture
def watched():
    """Clones, which leave the models of other tests without a watch."""
    return {family: bench.model(family).clone() for family in FAMILIES}


@pytest.fixture
def loaded(watched):
    """As the loader node gives them."""
    for model in watched.values():
        notices.warn_about_runs(model)
    return watched


def sample(model, sigmas, latent=None, sampler="euler", add_noise=True):
    """Through the stock SamplerCustom."""
    cfg = 1.0 if model.model.is_sprint else 4.5
    sampler = comfy.samplers.sampler_object(sampler)
    inputs = (model, add_noise, 7, cfg, *bench.encoded(), sampler, sigmas, latent or bench.empty())
    return bench.call(custom.SamplerCustom, *inputs)[0]["samples"]


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


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("node, inputs", [(AlignYourStepsScheduler, ("SD1", 10, 1.0)), (GITSScheduler, (1.2, 10, 1.0))])
def test_noise_levels_made_for_stable_diffusion_are_refused(loaded, family, node, inputs):
    (sigmas,) = bench.call(node, *inputs)
    with pytest.raises(ValueError, match=r"begin at 14\.61, but SANA's flow has levels from 1 to 0: use SANA Flow Sch"):
        sample(loaded[family], sigmas)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_inversion_to_sigma_1_is_refused_and_one_below_comes_back_to_the_image(loaded, family):
    model, latent = loaded[family], bench.clean_latent()
    sampling = model.get_model_object("model_sampling")
    whole, below = (comfy.samplers.calculate_sigmas(sampling, name, 40) for name in ("simple", "sana_flow"))
    with pytest.raises(ValueError, match="end at 1, but at 1 nothing is left of the image .* end an inversion below 1"):
        sample(model, bench.call(custom.FlipSigmas, whole)[0], latent, add_noise=False)
    inverted = sample(model, bench.call(custom.FlipSigmas, below)[0], latent, add_noise=False)
    back = sample(model, below, {"samples": inverted}, add_noise=False)
    other = sample(model, below, latent)  # from fresh noise
    assert bench.rms_error(back, latent["samples"]) < 0.5 < bench.rms_error(other, latent["samples"])


def test_noise_levels_that_pass_through_zero_are_refused(loaded):
    for levels in ([0.0, 0.3, 0.9], [1.0, 0.0, 0.5], [1.0, 0.5, 0.0, 0.0]):
        with pytest.raises(
            ValueError, match="is 0, but only the last may be: a step from 0 is undefined, so remove it"
        ):
            sample(loaded["sana"], torch.tensor(levels))
    for sampler in ("sana_flow_dpm", "lcm"):
        assert torch.isfinite(sample(loaded["sana"], torch.tensor([1.0, 0.5, 0.0, 0.0]), sampler=sampler)).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_repeated_noise_levels_leave_the_image_of_our_solver_as_it_is(loaded, family):
    plain = sample(loaded[family], torch.tensor([1.0, 0.7, 0.3, 0.0]), sampler="sana_flow_dpm")
    repeated = sample(loaded[family], torch.tensor([1.0, 0.7, 0.7, 0.3, 0.0, 0.0]), sampler="sana_flow_dpm")
    assert torch.equal(plain, repeated)


def test_what_the_stock_sampler_does_with_an_image_of_sprint_is_commented(loaded, caplog):
    model, conds, images = loaded["sprint"], bench.encoded(), [bench.clean_latent(seed=seed) for seed in (1, 2)]
    sentence = "SANA: Set denoise to 0.66 or less: this run starts from pure noise and ignores the image."
    lost = [bench.ksampler(model, conds, image, denoise=0.7) for image in images]
    assert torch.equal(*lost) and caplog.messages.count(sentence) == 2
    caplog.clear()
    used = [bench.ksampler(model, conds, image, denoise=0.66) for image in images]
    ours = [bench.draw(model, conds, image, denoise=0.9) for image in images]
    assert bench.relative(*used) > 0.1 and bench.relative(*ours) > 0.01 and sentence not in caplog.messages


def test_a_masked_image_is_used_at_every_denoise(loaded, caplog):
    latent = bench.clean_latent() | {"noise_mask": torch.zeros(1, 128, 128)}
    bench.draw(loaded["sprint"], bench.encoded(), latent)
    assert not [message for message in caplog.messages if "ignores the image" in message]


def test_an_area_in_pixels_is_commented_and_refused_outside_the_latent(loaded, caplog):
    positive, negative = bench.encoded()
    (inside,) = bench.call("ConditioningSetArea", positive, 64, 64, 8, 0, 1.0)
    bench.draw(loaded["sana"], (inside, negative))
    assert [text for text in caplog.messages if text.startswith("SANA: Take Conditioning (Set Area with Percentage)")]
    caplog.clear()
    (share,) = bench.call("ConditioningSetAreaPercentage", positive, 0.5, 0.5, 0.25, 0.0, 1.0)
    bench.draw(loaded["sana"], (share, negative))
    assert not [text for text in caplog.messages if "Set Area" in text]
    (outside,) = bench.call("ConditioningSetArea", positive, 64, 64, 64, 0, 1.0)
    for model in (loaded["sana"], bench.model("sana")):
        with pytest.raises(
            ValueError, match="begins at row 0, column 8, outside the latent of 4 x 4 cells .* Percentage"
        ):
            bench.draw(model, (outside, negative))


@pytest.mark.parametrize(("x", "y", "place"), [(1.0, 1.0, "row 4, column 4"), (1.0, 0.0, "row 0, column 4")])
def test_an_area_at_the_very_end_is_told_how_to_set_the_percentages(loaded, x, y, place):
    positive, negative = bench.encoded()
    (outside,) = bench.call("ConditioningSetAreaPercentage", positive, 0.5, 0.5, x, y, 1.0)
    told = f"begins at {place}, at the end of the latent of 4 x 4 cells of 32 px: set x and y below 1 in"
    with pytest.raises(ValueError, match=told):
        bench.draw(loaded["sana"], (outside, negative))


@pytest.mark.parametrize("shape", [(0, 32, 4, 4), (1, 32, 0, 4)])
def test_a_latent_that_holds_nothing_is_refused(shape):
    with pytest.raises(
        ValueError, match=rf"holds nothing, its shape is \({', '.join(map(str, shape))}\): check the node"
    ):
        bench.draw(bench.model("sana"), bench.encoded(), {"samples": torch.zeros(shape)})


@pytest.mark.parametrize(("width", "height"), [(16, 16), (64, 16), (16, 512)])
def test_sana_sampler_refuses_a_stock_empty_latent_below_one_position(width, height):
    (latent,) = bench.call("EmptyLatentImage", width, height, 1)
    with pytest.raises(
        ValueError, match=f"is of {width} x {height} px, and SANA needs at least 32 px a side: take SANA"
    ):
        SanaNativeSampler.execute(bench.model("sana"), *bench.encoded(), latent, steps=1)


def test_sana_sampler_takes_a_stock_empty_latent_of_one_position():
    (latent,) = bench.call("EmptyLatentImage", 32, 24, 1)
    (output,) = SanaNativeSampler.execute(bench.model("sana"), *bench.encoded(), latent, steps=1).result
    assert output["samples"].shape == (1, 32, 1, 1)


# Through the real server


async def texts(server, prompt: dict, client: str) -> list[tuple[str, str]]:
    """(node, text) of what a run wrote on nodes of a client's browser."""
    found = []
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
    one, other = uuid.uuid4().hex, uuid.uuid4().hex
    runs = [(one, "karras"), (other, "exponential"), (one, "simple"), (one, "beta"), (other, "ddim_uniform")]
    found = {
        run: asyncio.run(
            texts(server, previews.graph("sana-native-demo/", settings | {"scheduler": run[1]}, 64), run[0])
        )
        for run in runs
    }
    sentence = "Choose the scheduler sana_flow: karras has other noise levels than SANA needs."
    assert [found[one, name] for name in ("karras", "simple", "beta")] == [
        [("6", sentence)],
        [("6", notices.NOTHING)],
        [],
    ]
    # Another user's node of the same number has its own text all the while.
    for name in ("exponential", "ddim_uniform"):
        assert found[other, name] == [("6", sentence.replace("karras", name))]
    assert f"SANA: {sentence}" in server.log()


@pytest.mark.parametrize(
    ("levels", "sentence"),
    [([float("nan"), 0.0], "noise levels hold nan"), ([-1.0, 0.0], "noise levels hold -1"),
     ([1.0, -0.5], "noise levels hold -0.5"), ([1.0], "has no step")],
    ids=str,
)  # fmt: skip
def test_noise_levels_that_are_none_are_refused(levels, sentence):
    run = SimpleNamespace(
        model_sampling=bench.model("sana").get_model_object("model_sampling"),
        sigmas=torch.tensor(levels),
        steps=len(levels) - 1,
        sampler="euler",
    )
    with pytest.raises(ValueError, match=sentence):
        run_checks.require_run(run)
