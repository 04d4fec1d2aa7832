"""The workers and the sink of a run, as children for a `Supervisor`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from gymq import plugins
from gymq.api.environment import EnvironmentSpec
from gymq.celery import worker_command
from gymq.client.output import output_kind
from gymq.errors import UsageError
from gymq.local.gpus import shares
from gymq.process.supervisor import ChildSpec
from gymq.runtime.worker_host import RoleOptions
from gymq.settings import Settings
from gymq.store.runs import RunConfig

#: Child whose good end is the run's end.
SINK = "sink"

#: Seconds that a worker may take to stop: calls in flight get 25 s to end, then it says goodbye.
WORKER_GRACE = 40.0

#: Exit codes of a sink after which starting it again is of no use: usage, bad data in the file, file in use.
SINK_FATAL = frozenset({2, 3, 5})

#: Exit codes of a worker after which starting it again is of no use: its options make no sense.
WORKER_FATAL = frozenset({2})


def children(
    settings: Settings,
    config: RunConfig,
    models: dict[str, dict[str, Any]],
    environments: list[EnvironmentSpec],
    out: Path,
    logs: Path,
) -> list[ChildSpec]:
    """Return the sink and a worker of each role: a model for each of `gpus`, a judge, an executor if a call is isolated.

    Left out is what `served_here` returns. With metrics, one more serves those of the installation at the port of the
    settings; the others follow it at the next ports, in their order.

    Args:
        settings: where Redis is.
        config: the run.
        models: the SPECs of the run's model and of its judge, if that is another, with their backends' options.
        environments: the environments of the run's rows.
        out: the file of finished rollouts.
        logs: the folder of the children's logs.
    """
    sources = [source for spec in environments if (source := plugins.environment_source(spec.name))]
    served = {"environments": ",".join(sources)} if sources else {}
    options: dict[str, dict[str, Any]] = {"agent": {"agent": config.agent}}
    if sources:
        options["resource"] = served
    if any(spec.needs_executor for spec in environments):
        options["executor"] = served
    specs = [*_metrics(settings, logs), sink(settings.metrics_from(1), config.name, out, logs)]
    here = _played_here(models, environments)
    for spec, backend_options in models.items():
        if spec in here:
            continue
        name = "model" if spec == config.model else "judge"
        model_options = {"model": spec, "concurrency": config.concurrency, **served, **backend_options}
        gpus = model_options.pop("gpus", None)
        if gpus is None:
            options[name] = model_options
        else:
            options |= {f"{name}-{gpu.replace(',', '-')}": model_options | {"gpu": gpu} for gpu in shares(gpus, model_options)}
    declared = frozenset(secret for spec in environments for secret in plugins.environment(spec.name).secrets)
    for name, role_options in options.items():
        role = "model" if name.partition("-")[0] in ("model", "judge") else name
        argv, env = worker_command.command(settings.metrics_from(len(specs)), role, role_options, f"{name}-{config.name}")
        specs.append(
            ChildSpec(
                name=name,
                argv=tuple(argv),
                env=env,
                secrets=declared if role in ("resource", "executor") else model_secrets(role_options.get("model")),
                log=logs / f"{name}.log",
                tier=1,
                grace=WORKER_GRACE,
                fatal=WORKER_FATAL,
            )
        )
    return specs


def model_secrets(spec: str | None) -> frozenset[str]:
    """Return the variables with secrets that a model worker needs.

    Args:
        spec: the model's SPEC; None: the worker is of another role, and needs none.
    """
    return frozenset(plugins.load(plugins.BACKENDS, spec.partition(":")[0]).secrets if spec else ())


def _metrics(settings: Settings, logs: Path) -> list[ChildSpec]:
    """Return the process that serves the metrics of the installation, if the settings name a port."""
    if settings.metrics_port is None:
        return []
    where = ("--host", settings.metrics_host, "--port", str(settings.metrics_port))
    return [
        ChildSpec(
            name="metrics",
            argv=(sys.executable, "-P", "-m", "gymq.cli", "metrics", *where),
            env=settings.environment(),
            log=logs / "metrics.log",
            fatal=WORKER_FATAL,
        )
    ]


def served_here(
    config: RunConfig, models: dict[str, dict[str, Any]], environments: list[EnvironmentSpec]
) -> list[tuple[str, RoleOptions]]:
    """Return the roles, with their options, that this process must serve: they need classes that only it has.

    Args:
        config: the run.
        models, environments: as of `children`.
    """
    here = [spec.name for spec in environments if plugins.environment_source(spec.name) is None]
    roles: list[tuple[str, RoleOptions]] = [("resource", {"environments": ",".join(here)})] if here else []
    played = {"environments": ",".join(spec.name for spec in environments)}
    for spec in _played_here(models, environments):
        roles.append(("model", {"model": spec, "concurrency": config.concurrency, **played, **models[spec]}))
    return roles


def _played_here(models: dict[str, dict[str, Any]], environments: list[EnvironmentSpec]) -> list[str]:
    """Return the models that environments play which only this process has."""
    if all(plugins.environment_source(spec.name) for spec in environments):
        return []
    return [spec for spec in models if plugins.load(plugins.BACKENDS, spec.partition(":")[0]).plays_environments]


def check_isolated(environments: list[EnvironmentSpec]) -> None:
    """Check that isolated calls are of environments that another process can import.

    Args:
        environments: the environments of the run's rows.

    Raises:
        UsageError: one is of a class that only this process has.
    """
    for spec in environments:
        if plugins.environment_source(spec.name) is None and spec.needs_executor:
            kind = type(plugins.environment(spec.name))
            file = getattr(sys.modules.get(kind.__module__), "__file__", None) or "FILE.py"
            raise UsageError(
                f"{kind.__name__} has isolated calls, which run in another process, and that needs the class in a file: "
                f"give '{file}:{kind.__name__}' instead of the class"
            )


def sink(settings: Settings, run: str, out: Path, logs: Path) -> ChildSpec:
    """Return the sink of an output, which ends when the run is over.

    Args:
        settings: where Redis is; passed in the environment, because other users can read arguments and it may hold a password.
        run: the run's name.
        out: the file of finished rollouts.
        logs: the folder of its log.
    """
    return ChildSpec(
        name=SINK,
        argv=(sys.executable, "-P", "-m", "gymq.cli", "sink", output_kind(out), "--run", run, "--out", str(out)),
        env=settings.environment(),
        log=logs / f"{SINK}.log",
        finishes=True,
        fatal=SINK_FATAL,
    )
