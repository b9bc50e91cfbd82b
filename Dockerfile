# inheritune for NVIDIA's GPUs. torch's wheel brings the CUDA libraries; the host needs the driver and the container toolkit.
#   docker build -t inheritune .
#   docker run --rm --gpus all -v "$PWD:/work" -v "$HOME/.cache/huggingface:/cache" inheritune run recipe.yaml
FROM python:3.12-slim

# torch.compile makes kernels with a C compiler.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
RUN pip install --no-cache-dir -c constraints.txt '.[eval]'

# Models and data sets from the hub.
ENV HF_HOME=/cache
WORKDIR /work
ENTRYPOINT ["inheritune"]
CMD ["--help"]
