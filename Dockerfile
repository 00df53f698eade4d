# Three images: a vehicle without torch, the same for a Jetson's GPU, and the cloud.
#
#   docker build --target vehicle -t blackfleet-vehicle .
#   docker build --target cloud   -t blackfleet-cloud   .
#   docker build --target vehicle-jetson --build-arg JETSON_BASE=… --build-arg ONNXRUNTIME=… -t blackfleet-vehicle .
#
# Each holds only the packages that its process imports; versions are those of constraints.txt. On x86-64, the
# torch that pip finds by default brings CUDA libraries of several GB; for the CPU build add
# --build-arg PIP_EXTRA_INDEX_URL=… with the index that PyTorch's own install page names.
#
# BASE is any image with Python 3.11 or newer. JETSON_BASE is NVIDIA's image for the JetPack of the car: JetPack 6 has
# Ubuntu 22.04 with Python 3.10, JetPack 7 Ubuntu 24.04 with Python 3.12; without it the image computes on the CPU.
# ONNXRUNTIME is what pip is told to install there (`onnxruntime-gpu==1.23.0`), from the index that
# PIP_EXTRA_INDEX_URL names, or the path of a wheel below wheels/.

ARG BASE=python:3.11-slim
ARG JETSON_BASE=ubuntu:22.04

FROM ${BASE} AS requirements
WORKDIR /build
COPY pyproject.toml constraints.txt ./
# pyproject.toml stays the one place that names dependencies; installing the project itself would bring a
# `blackfleet` command whose package is not in these images.
RUN python - <<'COMMAND'
import tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
for extra in ("core", "vehicle", "federated", "cloud"):
    with open(f"{extra}.txt", "w") as file:
        print(*project["dependencies"], *project["optional-dependencies"].get(extra, ()), sep="\n", file=file)
COMMAND

FROM requirements AS vehicle-environment
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
# federated: a vehicle that trains the whole network (fedavg), with torch
ARG WITH
RUN python -m venv --without-pip /venv && \
    pip --python /venv install --no-cache-dir -c constraints.txt -r vehicle.txt ${WITH:+-r ${WITH}.txt}

FROM requirements AS cloud-environment
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN python -m venv --without-pip /venv && \
    pip --python /venv install --no-cache-dir -c constraints.txt -r cloud.txt

FROM scratch AS vehicle-packages
COPY protocol /protocol
COPY datasets /datasets
COPY evaluation /evaluation
COPY edge_client /edge_client

FROM ${BASE} AS process
# ORT_DISABLE_TELEMETRY: ONNX Runtime keeps no device id and looks no name up, whoever loads it first
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1
RUN useradd --create-home --uid 1000 blackfleet && \
    install -d -o blackfleet /data /state /run-dir
WORKDIR /app
USER blackfleet

FROM process AS vehicle
COPY --from=vehicle-environment /venv /venv
COPY --from=vehicle-packages / /app/
VOLUME /state
ENTRYPOINT ["python", "-m", "edge_client"]
CMD ["--help"]

FROM process AS cloud
COPY --from=cloud-environment /venv /venv
COPY protocol protocol
COPY datasets datasets
COPY evaluation evaluation
COPY cloud_server cloud_server
VOLUME /run-dir
ENTRYPOINT ["python", "-m", "cloud_server"]
CMD ["--help"]

# The system's OpenCV has GStreamer, which pip's lacks, and is built against numpy 1.
FROM ${JETSON_BASE} AS vehicle-jetson
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update && \
    apt-get install -y --no-install-recommends python3-venv python3-opencv gstreamer1.0-plugins-good && \
    rm -rf /var/lib/apt/lists/*
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG ONNXRUNTIME=onnxruntime
COPY --from=requirements /build /build
COPY wheel[s] /build/wheels
RUN cd /build && sed '/^numpy=/d' constraints.txt > jetson.txt && \
    python3 -m venv --system-site-packages /venv && \
    /venv/bin/pip install --no-cache-dir -c jetson.txt -r core.txt 'numpy<2' "${ONNXRUNTIME}" && \
    rm -r /build
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1
# JetPack 7's Ubuntu has a user of this number already.
RUN useradd --create-home --non-unique --uid 1000 --groups video blackfleet && \
    install -d -o blackfleet /data /state
WORKDIR /app
COPY --from=vehicle-packages / /app/
USER blackfleet
VOLUME /state
ENTRYPOINT ["python3", "-m", "edge_client"]
CMD ["--help"]
