# CUDA -> Python 3.10 and the locked packages -> source: what changes rarely comes first, so that a source change rebuilds in
# seconds. Two targets: `recipe` runs every stage, `demo` the web page alone. `make build` builds both.

# What everything stands on: the tag is for people, the digest is what is pulled. Renew both together.
ARG CUDA_IMAGE=nvidia/cuda:13.0.3-base-ubuntu24.04@sha256:7c7413a56200486f71f181cad9310f6fd31b6bb21816ade15fc9c1e1e927a5c1
ARG UV_IMAGE=ghcr.io/astral-sh/uv:0.13.0@sha256:cdc6093146eb3ff6a40107b38f008b789e050e77ad87865e381d9917da55a168

FROM ${UV_IMAGE} AS uv

# --- The system -------------------------------------------------------------------------------------------------------
FROM ${CUDA_IMAGE} AS base
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# g++: Triton compiles its launchers when a kernel first runs, torch.compile and DeepSpeed's CPU optimizer their kernels.
# The digest above fixes everything else; what is installed here takes its security fixes.
# hadolint ignore=DL3008
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt/lists,sharing=locked \
    rm -f /etc/apt/apt.conf.d/docker-clean && \
    apt-get update -qq && \
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ca-certificates g++
# Python where any user may read it, no second copy of a package, and the environment first on the PATH.
ENV UV_PYTHON_INSTALL_DIR=/opt/python UV_LINK_MODE=copy VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH
# The base asks the NVIDIA runtime to refuse older drivers, in words that nobody can use; recipe/device.py says it better.
ENV NVIDIA_DISABLE_REQUIRE=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Any uid may run this image (compose takes the host user's), so nothing below belongs to one: its home and every cache are
# /tmp, and its name is told here because /etc/passwd has none.
ENV HOME=/tmp USER=recipe PYTHONUNBUFFERED=1
# A volume that compose mounts here takes over who may write: whoever runs the stages.
RUN mkdir -m 1777 /tmp/.triton
WORKDIR /recipe

# --- What the page needs ----------------------------------------------------------------------------------------------
# A mirror of the package index may be given as a build secret; none stays in a layer.
FROM base AS page-packages
RUN --mount=type=bind,from=uv,source=/uv,target=/usr/local/bin/uv \
    --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,source=requirements-demo.lock,target=requirements-demo.lock \
    --mount=type=secret,id=package_index,env=UV_DEFAULT_INDEX \
    HOME=/root && \
    uv venv --quiet --python 3.10 "$VIRTUAL_ENV" && \
    uv pip sync --compile-bytecode --require-hashes requirements-demo.lock

# --- What the stages need besides: the same versions, so the layer above serves both images --------------------------
FROM page-packages AS packages
RUN --mount=type=bind,from=uv,source=/uv,target=/usr/local/bin/uv \
    --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,source=requirements.lock,target=requirements.lock \
    --mount=type=secret,id=package_index,env=UV_DEFAULT_INDEX \
    HOME=/root && \
    uv pip sync --compile-bytecode --require-hashes requirements.lock

# --- The page ---------------------------------------------------------------------------------------------------------
FROM page-packages AS demo
COPY LICENSE ./
COPY docker/healthcheck.py docker/
COPY recipe recipe
# Readable whatever the umask of the checkout was; compiled, because at run time nobody may write here.
RUN chmod -R go+rX . && python -m compileall -q recipe && mkdir work
ARG VERSION=0 REVISION=unknown
ENV RECIPE_COMMIT=$REVISION
LABEL org.opencontainers.image.title="InternLM2 identity recipe: demo" \
      org.opencontainers.image.description="The web page that talks to a model fine-tuned by the recipe" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION
USER 1000:1000
EXPOSE 6006
HEALTHCHECK --interval=5s --timeout=5s --start-period=120s --retries=3 CMD ["python", "docker/healthcheck.py"]
ENTRYPOINT ["python", "-m", "recipe"]
CMD ["demo"]

# --- Every stage ------------------------------------------------------------------------------------------------------
FROM packages AS recipe
COPY LICENSE ./
COPY data data
COPY recipe recipe
RUN chmod -R go+rX . && python -m compileall -q recipe && mkdir work
ARG VERSION=0 REVISION=unknown
ENV RECIPE_COMMIT=$REVISION
LABEL org.opencontainers.image.title="InternLM2 identity recipe" \
      org.opencontainers.image.description="Teaches InternLM2-Chat-1.8B who it is: data, QLoRA with XTuner, merge, evaluation, chat" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION
USER 1000:1000
ENTRYPOINT ["python", "-m", "recipe"]
CMD ["--help"]
