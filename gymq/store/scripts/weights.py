"""Scripts of a model's weights; all on shard 0."""

from __future__ import annotations

from gymq.store.scripts.script import ScriptCall


def publish_weights(model: str, version: int, publication: str, weights: bytes) -> ScriptCall[int | None]:
    """Say which weights a model's replicas are to sample with; the reply is the version that forbids it, None if none does.

    Args:
        model: the model's SPEC.
        version: the policy version.
        publication: id of the publication, which may be sent again.
        weights: JSON of `Weights`.
    """
    return ScriptCall(
        "publish_weights", (model, version, publication, weights), lambda reply: None if reply[0] else int(reply[1])
    )


def take_load_turn(model: str, replica: str, ttl: int) -> ScriptCall[bool]:
    """Take, keep or give back the turn in which a replica loads weights; False: another replica has it.

    Args:
        model: the model's SPEC.
        replica: the replica's name.
        ttl: ms for which it has the turn unless it asks again; 0 gives it back.
    """
    return ScriptCall("take_load_turn", (model, replica, ttl), bool)
