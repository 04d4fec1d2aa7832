# One image for every role; docker-compose.yml says what each container runs.
FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY gymq gymq
COPY workers workers
COPY environments environments
COPY producers producers
COPY sinks sinks
# data,vllm for model workers that host vLLM on GPUs.
ARG EXTRAS=data
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".[$EXTRAS]" && rm -rf /src/*

# Nothing here needs root. What is written goes to /out, a mounted folder that this user must be able to write.
RUN useradd --uid 1000 --create-home gymq && mkdir -p /out /data && chown gymq /out
USER 1000
WORKDIR /home/gymq

# Worker processes drain on SIGTERM; gymq becomes them, so the signal reaches them as it is.
STOPSIGNAL SIGTERM
CMD ["gymq", "--help"]
