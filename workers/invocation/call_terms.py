"""The terms on which a call is run, as its environment's class states them: limits, and what it is given."""

from __future__ import annotations

from gymq import plugins
from gymq.api.environment import EnvironmentSpec
from gymq.errors import CallError
from gymq.wire.calls import Call


def limits(spec: EnvironmentSpec, call: Call) -> tuple[float, bool, bool]:
    """Return a call's time limit in seconds, whether it is isolated, and whether it must not be repeated.

    Args:
        spec: the call's environment.
        call: the call.

    Raises:
        CallError: the environment has no such tool or hook.
    """
    if call.kind == "tool":
        for tool in spec.tools:
            if tool.name == call.name:
                return tool.timeout, tool.isolated, tool.once
        raise CallError("environment", f"{call.environment} has no tool {call.name!r} on this worker; is it another version?")
    hooks = {"open": spec.open, "respond": spec.respond, "verify": spec.verify, "close": spec.close}
    hook = hooks.get(call.kind)
    if hook is None:
        raise CallError("environment", f"a resource cannot answer a call of kind {call.kind!r}")
    return hook.timeout, hook.isolated, False


def wants(call: Call) -> frozenset[str]:
    """Return the injected parameters of a call's function, with those of the session that it asks for."""
    environment = type(plugins.environment(call.environment))
    own = environment.tools[call.name].wants if call.kind == "tool" else environment.wants(call.kind)
    return own | environment.wants("session") if "session" in own else own
