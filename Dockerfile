# Two images: a vehicle without torch, and the cloud.
#
#   docker build --target vehicle -t blackfleet-vehicle .
#   docker build --target cloud   -t blackfleet-cloud   .
#
# Each holds only the packages that its process imports; versions are those of constraints.txt. On x86-64, the
# torch that pip finds by default brings CUDA libraries of several GB; for the CPU build add
# --build-arg PIP_EXTRA_INDEX_URL=… with the index that PyTorch's own install page names.

FROM python:3.11-slim AS requirements
WORKDIR /build
COPY pyproject.toml constraints.txt ./
# pyproject.toml stays the one place that names dependencies; installing the project itself would bring a
# `blackfleet` command whose package is not in these images.
RUN python - <<'COMMAND'
import tomllib
with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
for extra in ("vehicle", "federated", "cloud"):
    with open(f"{extra}.txt", "w") as file:
        print(*project["dependencies"], *project["optional-dependencies"][extra], sep="\n", file=file)
COMMAND

FROM requirements AS vehicle-environment
ARG PIP_EXTRA_INDEX_URL
# federated: a vehicle that trains the whole network (fedavg), with torch
ARG WITH
RUN python -m venv --without-pip /venv && \
    pip --python /venv install --no-cache-dir -c constraints.txt -r vehicle.txt ${WITH:+-r ${WITH}.txt}

FROM requirements AS cloud-environment
ARG PIP_EXTRA_INDEX_URL
RUN python -m venv --without-pip /venv && \
    pip --python /venv install --no-cache-dir -c constraints.txt -r cloud.txt

FROM python:3.11-slim AS process
# ORT_DISABLE_TELEMETRY: ONNX Runtime keeps no device id and looks no name up, whoever loads it first
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 ORT_DISABLE_TELEMETRY=1
RUN useradd --create-home --uid 1000 blackfleet && \
    install -d -o blackfleet /data /state /run-dir
WORKDIR /app
COPY protocol protocol
COPY datasets datasets
COPY evaluation evaluation
USER blackfleet

FROM process AS vehicle
COPY --from=vehicle-environment /venv /venv
COPY edge_client edge_client
VOLUME /state
ENTRYPOINT ["python", "-m", "edge_client"]
CMD ["--help"]

FROM process AS cloud
COPY --from=cloud-environment /venv /venv
COPY cloud_server cloud_server
VOLUME /run-dir
ENTRYPOINT ["python", "-m", "cloud_server"]
CMD ["--help"]
