# Your environment on top of gymq's image: one package with an entry point, as README.md has it, in the build's folder.
#
#   docker build -t gymq .
#   docker build -f deploy/environment.Dockerfile --build-arg NAME=dice -t registry.example/gymq:1 ./dice
ARG GYMQ=gymq
# hadolint ignore=DL3006
FROM ${GYMQ}

ARG NAME
COPY --chown=1000 . /tmp/environment
USER 0
# hadolint ignore=DL3013,DL3059
RUN pip install --no-cache-dir /tmp/environment && rm -rf /tmp/environment
USER 1000
# The build fails if the environment cannot be found, rather than the first rollout.
RUN gymq env list >/tmp/list && cat /tmp/list && grep -qw "${NAME}" /tmp/list && ! grep -q " broken: " /tmp/list && rm /tmp/list
