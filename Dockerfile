# JupyterLab with the locked environment, on port 8888. For PyTorch without CUDA, name its CPU index:
# docker build --build-arg PIP_FLAGS="--extra-index-url <that index>" --tag nvret .
FROM python:3.12-slim-bookworm
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home nvret
USER nvret
WORKDIR /home/nvret/nvret
COPY --chown=nvret . .
ARG PIP_FLAGS=""
RUN make .venv/.installed PIP_FLAGS="$PIP_FLAGS"
EXPOSE 8888
# The address within the container; whoever starts it chooses who can reach it, and the token stays
CMD [".venv/bin/jupyter", "lab", "--ip=0.0.0.0", "--no-browser", "notebooks"]
