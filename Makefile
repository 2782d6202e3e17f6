# Every target prepares the host first (COMFYUI_PATH, or a private copy under .comfyui/); a prepared host costs no time.
PYTHON ?= python3
# `exec`: a signal to make reaches the command itself, which has a server to stop.
RUN = $(PYTHON) -m tools.host
# The shell sees these exactly as typed, with quotes and dollar signs.
DEMO = PROMPT MODEL STEPS SEED CFG SIZE OUT
$(foreach name,$(DEMO),$(eval override $(name) := $$(value $(name))))
export $(DEMO)

.PHONY: demo gallery train-demo test test-browser test-heavy bench screenshots lint clean prepare

demo:
	@exec $(RUN) -- -m tools.demo --prompt "$$PROMPT" --model "$$MODEL" --steps "$$STEPS" --seed "$$SEED" --cfg "$$CFG" \
		--size "$$SIZE" --out "$$OUT"

# docs/gallery.jpg, gallery.md and solvers.jpg: held-out prompts, and the solvers and steps beside one another.
gallery:
	@exec $(RUN) --extra demo -- -m demo.gallery

train-demo:
	@exec $(RUN) --extra demo -- -m demo.train

prepare:
	@exec $(RUN)

test:
	@exec $(RUN) --extra test -- -m pytest

# Chromium or Chrome must be installed; every test leaves a screenshot in output/browser.
test-browser:
	@exec $(RUN) --extra test --extra browser -- -m pytest -m browser

test-heavy:
	@exec $(RUN) --extra test -- -m pytest -m heavy

STAGES ?= text step decode encode
SIZES ?= 512 1024
TOKENS ?= 30
PAIRS ?= 3
DTYPE ?= bfloat16

# benchmarks/stages.py says what each is; STAGES=picture measures whole pictures.
bench:
	@exec $(RUN) --extra test -- -m benchmarks.stages --stages $(STAGES) --sizes $(SIZES) --tokens $(TOKENS) \
		--pairs $(PAIRS) --dtype $(DTYPE) $(if $(MODEL),--model $(MODEL)) $(if $(COMPILE),--compile)

# The pictures in docs/screenshots and in the nodes' help; needs a Chromium and a font with Chinese signs.
screenshots:
	@$(RUN) --extra browser -- -m tools.browser_node_pictures
	@exec $(RUN) --extra browser -- -m tools.browser_screenshots

lint:
	@exec $(RUN) --extra lint -- -m ruff check .

clean:
	rm -rf .comfyui .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
