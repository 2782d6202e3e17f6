# Every target prepares the host first (COMFYUI_PATH, or a private copy under .comfyui/); a prepared host costs no time.
PYTHON ?= python3
# `exec`: a signal to make reaches the command itself, which has a server to stop.
RUN = $(PYTHON) -m tools.host
# The shell sees these exactly as typed, with quotes and dollar signs.
DEMO = PROMPT MODEL STEPS SEED CFG SIZE OUT
$(foreach name,$(DEMO),$(eval override $(name) := $$(value $(name))))
export $(DEMO)

.PHONY: demo train-demo test test-heavy bench lint clean prepare

demo:
	@exec $(RUN) -- -m tools.demo --prompt "$$PROMPT" --model "$$MODEL" --steps "$$STEPS" --seed "$$SEED" --cfg "$$CFG" \
		--size "$$SIZE" --out "$$OUT"

train-demo:
	@exec $(RUN) --extra demo -- -m demo.train

prepare:
	@exec $(RUN)

test:
	@exec $(RUN) --extra test -- -m pytest

test-heavy:
	@exec $(RUN) --extra test -- -m pytest -m heavy

STAGES ?= step decode encode
SIZES ?= 512 1024
PAIRS ?= 3
DTYPE ?= bfloat16

bench:
	@exec $(RUN) --extra test -- -m benchmarks.stages --stages $(STAGES) --sizes $(SIZES) --pairs $(PAIRS) --dtype $(DTYPE)

lint:
	@exec $(RUN) --extra lint -- -m ruff check .

clean:
	rm -rf .comfyui .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
