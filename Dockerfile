# One image for every role; docker-compose.yml says what each container runs.
FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY gymq gymq
COPY workers workers
COPY environments environments
COPY producers producers
COPY sinks sinks
RUN pip install --no-cache-dir '.[data]' && rm -rf /src/*

# Nothing here needs root. What is written goes to /out, a mounted folder that this user must be able to write.
RUN useradd --uid 1000 --create-home gymq && mkdir -p /out /data && chown gymq /out
USER gymq
WORKDIR /home/gymq

# Worker processes drain on SIGTERM; gymq becomes them, so the signal reaches them as it is.
STOPSIGNAL SIGTERM
CMD ["gymq", "--help"]
