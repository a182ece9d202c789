# Two images from one file:
#   docker build -t detrigger:serve .               the service, without torch
#   docker build -t detrigger:job --target job .    the same with torch: runs the offline job, and a
#                                                   service that can retrain by itself
# For a GPU, on the CPU image's base: the CUDA 13 and cuDNN 9 libraries come as wheels, only the driver
# comes from the host (NVIDIA container toolkit, `docker run --gpus all`):
#   docker build -t detrigger:serve-cuda --build-arg ORT_EXTRAS=[cuda,cudnn] .
#   docker build -t detrigger:job-cuda --target job --build-arg ORT_EXTRAS=[cuda,cudnn] --build-arg TORCH_INDEX= .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG ORT_EXTRAS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/detrigger/bin:$PATH
WORKDIR /src
RUN python -m venv /opt/detrigger
# Dependencies first: they change less often than the code. Their ranges stand in pyproject.toml.
COPY pyproject.toml .
# hadolint ignore=DL3013
RUN python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; extras = p['optional-dependencies']; print(*p['dependencies'], *extras['otel'], *extras['sign'], sep='\n')" > requirements.txt \
    && pip install -r requirements.txt \
    && if [ -n "$ORT_EXTRAS" ]; then pip install "onnxruntime-gpu$ORT_EXTRAS"; fi
COPY README.md LICENSE ./
COPY detrigger detrigger
COPY models models
COPY offline offline
COPY service service
RUN pip install --no-deps .

FROM build AS build-job
# Empty takes torch from PyPI, with CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# hadolint ignore=DL3013
RUN if [ -n "$TORCH_INDEX" ]; then pip install --index-url "$TORCH_INDEX" torch==2.13.0; fi \
    && pip install '.[job]'

FROM python:${PYTHON}-slim AS run
RUN groupadd --gid 10001 detrigger \
    && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin detrigger \
    && install -d -o 10001 -g 10001 /store
ENV PATH=/opt/detrigger/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp \
    DETRIGGER_STORE=/store DETRIGGER_HOST=0.0.0.0 DETRIGGER_PORT=8000 DETRIGGER_LOG_FORMAT=json
USER 10001:10001
WORKDIR /store
VOLUME /store
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['DETRIGGER_PORT'] + '/readyz', timeout=4)"]
ENTRYPOINT ["detrigger"]
CMD ["serve"]

FROM run AS job
COPY --from=build-job /opt/detrigger /opt/detrigger

# Last, so that a plain `docker build` makes it.
FROM run AS serve
COPY --from=build /opt/detrigger /opt/detrigger
