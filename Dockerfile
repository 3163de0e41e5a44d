# mllm with everything that training, evaluating and serving need; on a CPU, or on NVIDIA GPUs:
#
#   docker build -t mllm .
#   docker build -t mllm --build-arg BASE=nvidia/cuda:12.8.1-devel-ubuntu24.04 --build-arg TORCH="torch" .
#   docker run --rm -it --gpus all -v "$PWD/runs:/work/runs" -p 8000:8000 mllm serve runs/mine --host 0.0.0.0
#
# The image hasn't been built where the project is developed, which has no docker: tell us where it fails.
ARG BASE=ubuntu:24.04
FROM ${BASE}

RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV VIRTUAL_ENV=/opt/mllm PATH=/opt/mllm/bin:$PATH PYTHONUNBUFFERED=1
RUN python3 -m venv /opt/mllm

# torch first, in a layer of its own; its CPU build is a tenth of the size.
ARG TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
RUN pip install --no-cache-dir ${TORCH}

# The dependencies change less often than the code.
WORKDIR /src
ARG EXTRAS="eval,search,serve,synth,video,demo"
COPY pyproject.toml README.md LICENSE ./
COPY mllm/__init__.py mllm/__init__.py
COPY ds_configs ds_configs
COPY data_recipes/prompts data_recipes/prompts
RUN pip install --no-cache-dir ".[${EXTRAS}]"
COPY . .
RUN pip install --no-cache-dir --no-deps .

# Runs, data and a cache of models are mounted here.
WORKDIR /work
ENV HF_HOME=/work/.cache/huggingface MLLM_CACHE_DIR=/work/.cache/mllm
EXPOSE 8000
ENTRYPOINT ["mllm"]
CMD ["--help"]
