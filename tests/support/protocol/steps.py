"""What agents and resource workers of the model do with mail: they decide, and send what they decided until it is answered.

A rollout of this little world asks once, asks two beside each other, waits until it is due, and ends.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from gymq.runtime.mailbox import STRIKES, Mail
from gymq.store import scripts
from gymq.store.scripts import CommitOutcome
from tests.support.protocol.worker import AGENT, RESOURCE, Head, Worker
from tests.support.protocol.world import TTL, World

#: Calls that each step sends, by version; None: it waits; the step after the last one ends the rollout.
CALLS = [1, 2, None]

#: Of steps and of replies: a merged reply compares equal to an applied step.
APPLIED, CONFLICT = CommitOutcome.APPLIED, CommitOutcome.CONFLICT

#: When a rollout is due, ms; the model's sweeps come after all due times, those from its admission among them.
DUE, SWEEP = 5, 1 << 50


def decide(world: World, worker: Worker, mail: Mail) -> Any:
    """What is to be sent for mail; once it was decided, it is sent again as it is."""
    key = (mail.stream, mail.id)
    if key not in worker.decided:
        worker.decided[key] = _step(world, worker, mail) if worker.box == AGENT else _reply(world, mail)
    return worker.decided[key]


def act(world: World, worker: Worker, mails: list[Mail], twice: bool = False, lost: bool = False, late: bool = False) -> None:
    """Send steps or replies in one script, perhaps twice; if the answer is lost, the worker does not know.

    Args:
        world: where to.
        worker: who sends them.
        mails: what they were decided on.
        twice: whether they are sent again at once.
        lost: whether the answer is lost.
        late: whether Redis may have lost, since they were decided, that the worker has the mail.
    """
    batch = [decide(world, worker, mail) for mail in mails]
    call = scripts.commit(batch) if worker.box == AGENT else scripts.reply(batch)
    outcomes = world.script(call)
    for item, outcome in zip(batch, outcomes, strict=True):
        if outcome == APPLIED:
            world.applied.add((item.stream, item.mail))
            _confirmed(world, worker, item)
    if twice:
        assert APPLIED not in world.script(call), "what was done twice was done twice"
    for mail, item, outcome in zip(mails, batch, outcomes, strict=True):
        if worker.box == AGENT:
            worker.heads.pop(item.rollout, None)
        # A zombie's mail may lie elsewhere by now; and a cancellation that was carried out, but whose answer was lost, finds
        # the rollout closing when it comes again: it is decided again, and ends the rollout at once.
        if outcome == CONFLICT and not late and worker in world.workers and (mail.stream, mail.id) not in world.applied:
            assert (mail.stream, mail.id) in [(one.stream, one.id) for one in world.held(worker)]
        if lost:
            continue
        if outcome == CONFLICT:
            del worker.decided[mail.stream, mail.id]  # to be decided again
            continue
        worker.release(mail)
        if outcome == APPLIED and worker.box == AGENT and not item.final:
            worker.heads[item.rollout] = Head(item.version + 1, json.loads(item.messages[0])["id"], item.fields[1])


def batch_of(worker: Worker, first: int, most: int) -> list[Mail]:
    """Some of what a worker holds, beginning anywhere; no two of one rollout, as an agent does it."""
    order = worker.held[first % len(worker.held) :] + worker.held[: first % len(worker.held)]
    chosen: dict[bytes, Mail] = {}
    for mail in order:
        chosen.setdefault(mail.fields[1] if worker.box == AGENT else mail.id, mail)
    return list(chosen.values())[:most]


def _confirmed(world: World, worker: Worker, item: Any) -> None:
    history = world.history
    if worker.box == AGENT:
        if item.final:
            world.ended(item.rollout, item.final.status)
        return
    call = (item.rollout, item.step, item.n)
    assert call not in history.answered, f"{call} was answered twice"
    history.answered.add(call)


def _step(world: World, worker: Worker, mail: Mail) -> scripts.CommitStep:
    rid, version = mail.fields[1].decode(), int(mail.fields[3])
    names = mail.fields[4::2]
    must, due = b"x" in names, b"d" in names
    nothing = scripts.CommitStep(rid, -1, mail.stream, mail.id)
    useless = scripts.CommitStep(rid, version, mail.stream, mail.id, None, must=must)
    head = worker.heads.get(rid)
    if head is None or head.version != version:
        head = _load(world, rid)
    if head is None or (head.version != version and not must):
        return useless
    number = next(world.ids)
    drop, phase, calls, status = False, "going", 0, ""
    if must:
        # What was opened is closed first; what is closing ends at once.
        if head.version and head.phase != "closing" and number % 2:
            drop, phase, calls = True, "closing", 1
        else:
            status = "cancelled"
    elif head.phase == "closing":
        status = "cancelled"
    elif due and head.phase != "waiting" and number % 2:
        return nothing  # it is not time yet
    elif head.version < len(CALLS):
        drop = due
        planned = CALLS[head.version]
        phase, calls = ("waiting", 0) if planned is None else ("going", planned)
    else:
        status = "completed"
    told = dict(zip(names, mail.fields[5::2], strict=True))
    task = b"" if head.version else told.get(b"t") or _load_task(world, rid)
    replies = [json.loads(value) for name, value in zip(names, mail.fields[5::2], strict=True) if name == b"y"]
    turn = json.dumps(
        {
            "id": number,
            "after": head.turn,
            "v": head.version,
            "answers": [reply["asked"] for reply in replies],
            "task": task.decode(),
        }
    ).encode()
    sends = [
        scripts.Send(RESOURCE, b"%s %d %d %d" % (rid.encode(), head.version + 1, n, number), *_way(world, number))
        for n in range(calls)
    ]
    final = None
    if status:
        name, row, _ = rid.split(".")
        samples = world.history.runs[name].samples
        header = msgspec.json.encode({"id": rid, "status": status})[:-1]
        final = scripts.RolloutEnd(name, int(row), samples, status, header)
    letter = _letter(mail)
    return scripts.CommitStep(
        rid, head.version, mail.stream, mail.id, ["s", phase], [turn], [turn], sends, DUE, final, must,
        letter and scripts.BuriedLetter(letter, TTL), drop, str(number),
    )  # fmt: skip


def _way(world: World, number: int) -> tuple[Any, ...]:
    """Workers whose private mailboxes are preferred: such as live, as have died, as drain, as never were; or nobody."""
    if number % 4 == 0:
        return ()
    known = [worker.name for worker in (*world.workers, *world.zombies) if worker.private] + ["1-0"]
    first = number % len(known)
    return known[first:] + known[:first], number % 3


def _load(world: World, rid: str) -> Head | None:
    run, row, _ = rid.split(".")
    (stored,) = world.script(scripts.load_rollouts([scripts.LoadRequest(rid, 0, run, int(row))]))
    if stored.version is None:
        return None
    assert stored.task is not None, f"{rid} is in flight and its task is gone"
    newest = json.loads(stored.messages[-1])["id"] if stored.messages else None
    return Head(int(stored.version), newest, (stored.state or b"going").decode())


def _load_task(world: World, rid: str) -> bytes:
    run, row, _ = rid.split(".")
    (stored,) = world.script(scripts.load_rollouts([scripts.LoadRequest(rid, -1, run, int(row))]))
    return stored.task or b""


def _reply(world: World, mail: Mail) -> scripts.ReplyEntry:
    rid, step, n, asked = mail.fields[1].split()
    (wanted,) = world.script(scripts.pending_calls([scripts.CallKey(rid.decode(), int(step), int(n))]))
    if not wanted and next(world.ids) % 2:
        return scripts.ReplyEntry(rid.decode(), int(step), int(n), None, mail.stream, mail.id, "")
    body = b'{"asked":%d,"id":%d}' % (int(asked), next(world.ids))
    letter = _letter(mail)
    return scripts.ReplyEntry(
        rid.decode(), int(step), int(n), body, mail.stream, mail.id, asked.decode(), letter, None if letter is None else TTL
    )


def _letter(mail: Mail) -> bytes | None:
    """The letter of mail with three strikes; here its rollout goes on all the same."""
    name = mail.fields[1:4:2] if mail.fields[0] == b"r" else [mail.fields[1]]
    return b" ".join(name) if mail.strikes >= STRIKES and b"x" not in mail.fields[4::2] else None
