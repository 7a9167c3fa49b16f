# docker build --target cpu -t hilda .                   both command lines, on a CPU
# docker build --target cuda -t hilda:cuda .             the same with torch's CUDA libraries; run with --gpus all
# docker build --target minkowski -t hilda:minkowski .   the CPU image with MinkowskiEngine (docs/minkowski.md)
ARG PYTHON=3.11
FROM python:${PYTHON}-slim-bookworm AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
RUN useradd --create-home --uid 1000 hilda
WORKDIR /src

FROM base AS wheel
RUN pip install "build==1.3.0"
COPY . .
RUN python -m build --wheel --outdir /wheels

FROM base AS torch-cpu
COPY constraints.txt .
RUN pip install --index-url https://download.pytorch.org/whl/cpu -c constraints.txt torch

FROM torch-cpu AS cpu
COPY --from=wheel /wheels /wheels
RUN pip install -c constraints.txt "$(ls /wheels/*.whl)[extract,train,s3]" && rm -rf /wheels
USER 1000:1000
WORKDIR /home/hilda
CMD ["hilda-cache", "--help"]

FROM base AS cuda
COPY constraints.txt .
COPY --from=wheel /wheels /wheels
RUN pip install -c constraints.txt "$(ls /wheels/*.whl)[extract,train,s3]" && rm -rf /wheels
USER 1000:1000
WORKDIR /home/hilda
CMD ["hilda-cache", "--help"]

FROM torch-cpu AS minkowski-wheel
# Debian keeps one version of a package at a time: pinned ones vanish.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ libopenblas-openmp-dev \
 && rm -rf /var/lib/apt/lists/*
RUN pip install "numpy>=1.26,<3"
COPY tools tools
RUN python tools/build_minkowski.py --wheel-dir /wheels

FROM cpu AS minkowski
USER 0:0
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends libopenblas0-openmp libgomp1 \
 && rm -rf /var/lib/apt/lists/*
COPY --from=minkowski-wheel /wheels /wheels
RUN pip install --no-deps /wheels/*.whl && rm -rf /wheels
USER 1000:1000
