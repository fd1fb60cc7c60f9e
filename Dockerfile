# docker build -t isaseg .                            with CUDA, which PyTorch's wheels bring: the host needs NVIDIA's driver
# docker build -t isaseg --build-arg TORCH=cpu .      without
# docker run --rm --gpus all --shm-size 2g -v "$PWD/outputs:/isaseg/outputs" isaseg train trainer=gpu
FROM python:3.11-slim
ARG TORCH=
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 PATH=/isaseg/.venv/bin:$PATH
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends make && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 isaseg && install --directory --owner isaseg /isaseg /isaseg/outputs
USER 1000
WORKDIR /isaseg
# the packages, which a change of the code leaves as they are
COPY --chown=1000 Makefile constraints.txt ./
RUN make .venv/.packages TORCH="$TORCH"
COPY --chown=1000 . .
RUN make install
ENTRYPOINT ["isaseg"]
CMD ["--help"]
