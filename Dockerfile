# One image for every role; docker-compose.yml says what each container runs.
# The tag is for people, the digest decides: Python 3.12.13 on Debian 13, the index of all platforms.
FROM python:3.12-slim@sha256:57cd7c3a7a273101a6485ba99423ee568157882804b1124b4dd04266317710de AS build

# Some packages come as their sources only, and one of them is written in C.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# data,vllm for model workers that host vLLM on GPUs.
ARG EXTRAS=data
# Each package by its hash, what builds packages too: what was locked is installed, whatever the index serves today.
COPY deploy/locks locks
RUN python -m venv /opt/gymq \
    && /opt/gymq/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r locks/build.txt \
    && /opt/gymq/bin/pip install --no-cache-dir --require-hashes --no-build-isolation -r "locks/$EXTRAS.txt"
COPY pyproject.toml README.md LICENSE ./
COPY gymq gymq
COPY workers workers
COPY environments environments
COPY producers producers
COPY sinks sinks
RUN /opt/gymq/bin/pip install --no-cache-dir --no-deps --no-build-isolation --no-index .

FROM python:3.12-slim@sha256:57cd7c3a7a273101a6485ba99423ee568157882804b1124b4dd04266317710de
COPY --from=build /opt/gymq /opt/gymq
ENV PATH=/opt/gymq/bin:$PATH

# Nothing here needs root. What is written goes to /out, a mounted folder that this user must be able to write.
RUN useradd --uid 1000 --create-home gymq && mkdir -p /out /data && chown gymq /out
USER 1000
WORKDIR /home/gymq

# Worker processes drain on SIGTERM; gymq becomes them, so the signal reaches them as it is.
STOPSIGNAL SIGTERM
CMD ["gymq", "--help"]
