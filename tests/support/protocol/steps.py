"""What agents and resource workers of the model do with mail: they decide, and send what they decided until it is answered.

A rollout of this little world asks once, asks two beside each other, waits until it is due, and ends.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from gymq.runtime.mailbox import STRIKES, Mail
from gymq.store.batching import pack
from tests.support.protocol.worker import AGENT, RESOURCE, Head, Worker
from tests.support.protocol.world import TTL, World

#: Calls that each step sends, by version; None: it waits; the step after the last one ends the rollout.
CALLS = [1, 2, None]

#: When a rollout is due, ms; the model's sweeps come later.
DUE, SWEEP = 5, 10


def decide(world: World, worker: Worker, mail: Mail) -> Any:
    """What is to be sent for mail; once it was decided, it is sent again as it is."""
    key = (mail.stream, mail.id)
    if key not in worker.decided:
        worker.decided[key] = _step(world, worker, mail) if worker.box == AGENT else _reply(world, mail)
    return worker.decided[key]


def act(world: World, worker: Worker, mails: list[Mail], twice: bool = False, lost: bool = False) -> None:
    """Send steps or replies in one script, perhaps twice; if the answer is lost, the worker does not know."""
    batch = [decide(world, worker, mail) for mail in mails]
    script = "commit" if worker.box == AGENT else "reply"
    outcomes = world.script(script, pack(batch))
    for item, outcome in zip(batch, outcomes, strict=True):
        if outcome == 1:
            world.applied.add((item[2 if worker.box == AGENT else 4], item[3 if worker.box == AGENT else 5]))
            _confirmed(world, worker, item)
    if twice:
        again = world.script(script, pack(batch))
        assert 1 not in again, "what was done twice was done twice"
    for mail, item, outcome in zip(mails, batch, outcomes, strict=True):
        if worker.box == AGENT:
            worker.heads.pop(item[0], None)
        # A zombie's mail may lie elsewhere by now; and a cancellation that was carried out, but whose answer was lost, finds
        # the rollout closing when it comes again: it is decided again, and ends the rollout at once.
        if outcome == 2 and worker in world.workers and (mail.stream, mail.id) not in world.applied:
            assert (mail.stream, mail.id) in [(one.stream, one.id) for one in world.held(worker)]
        if lost:
            continue
        if outcome == 2:
            del worker.decided[mail.stream, mail.id]  # to be decided again
            continue
        worker.release(mail)
        if outcome == 1 and worker.box == AGENT and not item[9]:
            worker.heads[item[0]] = Head(item[1] + 1, json.loads(item[5][0])["id"], item[4][1])


def batch_of(worker: Worker, first: int, most: int) -> list[Mail]:
    """Some of what a worker holds, beginning anywhere; no two of one rollout, as an agent does it."""
    order = worker.held[first % len(worker.held) :] + worker.held[: first % len(worker.held)]
    chosen: dict[bytes, Mail] = {}
    for mail in order:
        chosen.setdefault(mail.fields[1] if worker.box == AGENT else mail.id, mail)
    return list(chosen.values())[:most]


def _confirmed(world: World, worker: Worker, item: list[Any]) -> None:
    history = world.history
    if worker.box == AGENT:
        if item[9]:
            world.ended(item[0], item[9][3])
        return
    call = tuple(item[:3])
    assert call not in history.answered, f"{call} was answered twice"
    history.answered.add(call)


def _step(world: World, worker: Worker, mail: Mail) -> list[Any]:
    rid, version = mail.fields[1].decode(), int(mail.fields[3])
    names = mail.fields[4::2]
    must, due = b"x" in names, b"d" in names
    nothing = [rid, -1, mail.stream, mail.id, [], [], [], [], 0, [], 0, [], 0, ""]
    head = worker.heads.get(rid)
    if head is None or head.version != version:
        head = _load(world, rid)
    if head is None or (head.version != version and not must):
        return nothing
    number = next(world.ids)
    drop, phase, calls, status = 0, "going", 0, ""
    if must:
        # What was opened is closed first; what is closing ends at once.
        if head.version and head.phase != "closing" and number % 2:
            drop, phase, calls = 1, "closing", 1
        else:
            status = "cancelled"
    elif head.phase == "closing":
        status = "cancelled"
    elif due and head.phase != "waiting" and number % 2:
        return nothing  # it is not time yet
    elif head.version < len(CALLS):
        drop = int(due)
        planned = CALLS[head.version]
        phase, calls = ("waiting", 0) if planned is None else ("going", planned)
    else:
        status = "completed"
    replies = [json.loads(value) for name, value in zip(names, mail.fields[5::2], strict=True) if name == b"y"]
    turn = json.dumps(
        {"id": number, "after": head.turn, "v": head.version, "answers": [reply["asked"] for reply in replies]}
    ).encode()
    sends = [
        (RESOURCE, b"%s %d %d %d" % (rid.encode(), head.version + 1, n, number), *_way(world, number)) for n in range(calls)
    ]
    final: list[Any] = []
    if status:
        name, row, _ = rid.split(".")
        samples = world.history.runs[name].samples
        final = [name, int(row), samples, status, msgspec.json.encode({"id": rid, "status": status})[:-1]]
    return [
        rid, head.version, mail.stream, mail.id, ["s", phase], [turn], [turn], sends, DUE, final, int(must),
        _letter(mail), drop, str(number),
    ]  # fmt: skip


def _way(world: World, number: int) -> tuple[Any, ...]:
    """Workers whose private mailboxes are preferred: such as live, as have died, as drain, as never were; or nobody."""
    if number % 4 == 0:
        return ()
    known = [worker.name for worker in (*world.workers, *world.zombies) if worker.private] + ["1-0"]
    first = number % len(known)
    return known[first:] + known[:first], number % 3


def _load(world: World, rid: str) -> Head | None:
    run, row, _ = rid.split(".")
    ((version, phase, _, _, turns, task),) = world.script("load", pack([[rid, 0, run, int(row)]]))
    if version is None:
        return None
    assert task is not None, f"{rid} is in flight and its task is gone"
    return Head(int(version), json.loads(turns[-1])["id"] if turns else None, (phase or b"going").decode())


def _reply(world: World, mail: Mail) -> list[Any]:
    rid, step, n, asked = mail.fields[1].split()
    body = b'{"asked":%d,"id":%d}' % (int(asked), next(world.ids))
    return [rid.decode(), int(step), int(n), body, mail.stream, mail.id, asked.decode(), *_letter(mail)]


def _letter(mail: Mail) -> list[Any]:
    """The letter of mail with three strikes; here its rollout goes on all the same."""
    name = mail.fields[1:4:2] if mail.fields[0] == b"r" else [mail.fields[1]]
    return [b" ".join(name), TTL] if mail.strikes >= STRIKES and b"x" not in mail.fields[4::2] else []
