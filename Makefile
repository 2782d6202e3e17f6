# Every target prepares the host first (COMFYUI_PATH and COMFYUI_PYTHON, or private copies under .comfyui/); a prepared
# host costs no time.
PYTHON ?= python3
# `exec`: a signal to make reaches the command itself, which has a server to stop.
RUN = $(PYTHON) -m tools.host
# The shell sees these exactly as typed, with quotes and dollar signs.
DEMO = PROMPT MODEL STEPS SEED CFG SIZE OUT
JUDGE = WORKFLOW X Y PROMPTS SEEDS BEST CLIP MODELS PICTURES METRICS REFERENCE INCEPTION DETECTOR \
	COUNTING_THRESHOLD
$(foreach name,$(DEMO) $(JUDGE),$(eval override $(name) := $$(value $(name))))
export $(DEMO) $(JUDGE)

.DEFAULT_GOAL := help
.PHONY: help demo compare evaluate gallery train-demo test test-browser test-heavy bench bench-gpu gpu-kit screenshots lint clean prepare

# The targets are those with a remark behind their name, in the order of this file.
help: ## this list
	@echo 'make TARGET; the first one that needs ComfyUI fetches it and its packages into .comfyui/ (7 GB, several minutes),'
	@echo 'unless COMFYUI_PATH= names your ComfyUI and COMFYUI_PYTHON= its Python.'
	@echo
	@sed -n 's/^\([a-z-]*\): ## \(.*\)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name text; do \
		printf '%-14s %s\n' "$$name" "$$text"; done

demo: ## generate an image with the demo model: PROMPT= MODEL= SEED= STEPS= CFG= SIZE= OUT=
	@exec $(RUN) -- -m tools.demo --prompt "$$PROMPT" --model "$$MODEL" --steps "$$STEPS" --seed "$$SEED" --cfg "$$CFG" \
		--size "$$SIZE" --out "$$OUT"

# tools/compare.py says how axes are written.
compare: ## a grid picture of settings, with times and scores: X= Y= WORKFLOW= PROMPTS= SEEDS= BEST= CLIP= MODELS= OUT=
	@exec $(RUN) --extra demo -- -m tools.compare --workflow "$$WORKFLOW" --x "$$X" --y "$$Y" --prompts "$$PROMPTS" \
		--seeds "$$SEEDS" --best "$$BEST" --clip "$$CLIP" --models "$$MODELS" --out "$$OUT"

# docs/evaluation.md says what each number means and needs.
evaluate: ## scores of a folder of images: PICTURES= METRICS=clip,cmmd,fid,geneval PROMPTS= REFERENCE= CLIP= INCEPTION= DETECTOR= OUT=
	@exec $(RUN) -- -m tools.evaluate --pictures "$$PICTURES" --metrics "$$METRICS" --prompts "$$PROMPTS" \
		--reference "$$REFERENCE" --clip "$$CLIP" --inception "$$INCEPTION" --detector "$$DETECTOR" \
		--counting-threshold "$$COUNTING_THRESHOLD" --out "$$OUT"

# docs/gallery.jpg, gallery.md and solvers.jpg: held-out prompts, and the solvers and steps beside one another.
gallery: ## generate docs/gallery.jpg and docs/solvers.jpg again
	@exec $(RUN) --extra demo -- -m demo.gallery

train-demo: ## train the demo models from scratch (hours)
	@exec $(RUN) --extra demo -- -m demo.train

prepare: ## fetch ComfyUI and its environment only
	@exec $(RUN)

# Each of two processes takes whole files of tests, in their order: they share no server, and need 3 GB of memory.
JOBS ?= 2

test: ## the tests, seven to ten minutes on two cores: JOBS=
	@exec $(RUN) --extra test -- -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

# Chromium or Chrome must be installed; every test leaves a screenshot in output/browser. FRONTEND=1.58.1 takes that
# version of ComfyUI's page in place of the host's own; TESTS=tests/browser/test_templates.py runs that file alone.
test-browser: ## ComfyUI's page in a Chromium, which must be installed: FRONTEND= TESTS=
	@exec $(RUN) --extra test --extra browser -- -m pytest -m browser $(TESTS)

test-heavy: ## the slow tests: a full-size step, a killed server, ComfyUI Manager
	@exec $(RUN) --extra test -- -m pytest -m heavy

STAGES ?= text step decode encode
SIZES ?= 512 1024
TOKENS ?= 30
PAIRS ?= 3
DTYPE ?= bfloat16

# benchmarks/stages.py says what each is; STAGES=picture measures whole pictures.
bench: ## speed and memory beside diffusers: STAGES= SIZES= DTYPE= MODEL=
	@exec $(RUN) --extra test -- -m benchmarks.stages --stages $(STAGES) --sizes $(SIZES) --tokens $(TOKENS) \
		--pairs $(PAIRS) --dtype $(DTYPE) $(if $(MODEL),--model $(MODEL)) $(if $(COMPILE),--compile)

BUDGET ?= 440

# benchmarks/gpu.py says what each is; TINY=1 tries all of it on a CPU.
bench-gpu: ## every stage on a CUDA card in eight minutes: BUDGET= ONLY= TINY=1
	@exec $(RUN) --extra test -- -m benchmarks.gpu --budget $(BUDGET) $(if $(ONLY),--only $(ONLY)) $(if $(TINY),--tiny)

gpu-kit: ## pack what a bare GPU machine lacks into .kit/, and print the command to run there
	@exec $(RUN) --extra test -- -m tools.gpu_kit

# The pictures in docs/screenshots and in the nodes' help; needs a Chromium and a font with Chinese signs.
screenshots: ## the pictures in docs/screenshots and in the help pages (Chromium)
	@$(RUN) --extra browser -- -m tools.browser_node_pictures
	@exec $(RUN) --extra browser -- -m tools.browser_screenshots

lint: ## ruff over the whole tree
	@exec $(RUN) --extra lint -- -m ruff check .

clean: ## remove .comfyui and all caches
	rm -rf .comfyui .kit .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
