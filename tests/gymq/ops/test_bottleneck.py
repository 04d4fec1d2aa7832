"""The bottleneck of a run in words: one case for each thing that a run can wait for."""

from __future__ import annotations

import msgspec
import pytest

from gymq.ops.bottleneck import Bottleneck, bottleneck
from gymq.ops.mailboxes import Mailbox
from gymq.ops.situation import Situation
from gymq.ops.workforce import Workforce
from gymq.store.run_status import RunStatus
from gymq.store.runs import RunConfig
from gymq.store.scripts import RateLimitStatus
from gymq.wire.activity import Activity, CallTimes, InWork

MODEL, RESOURCE = "model:openai:qwen", "resource:dice"


CONFIG = RunConfig("r", "dice", "tool", "openai:qwen", concurrency=300, backlog=1000)


def run(config: RunConfig = CONFIG, **fields: object) -> RunStatus:
    """A run of 300 rollouts, all of them in flight but for what the fields say."""
    standing = RunStatus(config, "closed", 300, 300, 0, 300, {}, {"jsonl": 0})
    return msgspec.structs.replace(standing, **fields)


def boxes(model: tuple[int, int] = (0, 0), executor: tuple[int, int] | None = None, **fields: object) -> dict[str, Mailbox]:
    """The run's mailboxes with a worker each; of the model and the executor: what waits, and what is taken."""
    found = [Mailbox("agent", 0, 0, 1), Mailbox(MODEL, *model, 1), Mailbox(RESOURCE, 0, 0, 1)]
    found += [Mailbox("executor", *executor, 1)] if executor else []
    return {box.name: msgspec.structs.replace(box, **fields.get(box.name, {})) for box in found}


def wait(activity: Activity | None = None, mailboxes=None, status: RunStatus | None = None, **fields: object) -> Bottleneck:
    """What the run waits for."""
    workforce = Workforce(activity=activity or Activity(), starting=fields.pop("starting", {}))
    return bottleneck(Situation(status or run(), mailboxes or boxes(), workforce, **fields))


STATED = RateLimitStatus("qwen at h:1", None, "requests", 0.5, 200, 9.0, 0)
LEARNED = RateLimitStatus("qwen at h:1", 5.2, "learned", 5.2, 212, 9.0, 87)
BUSY_MODEL = Activity(working={"generate": InWork(256, 256 * 42.0, 42.0)})


@pytest.mark.parametrize(
    ("found", "cause", "words"),
    [
        pytest.param(
            wait(mailboxes=boxes(**{MODEL: {"workers": 0, "waiting": 256, "oldest": 9.0}})),
            "no_worker",
            "a worker of model:openai:qwen: start `gymq worker model --model openai:qwen`",
            id="no worker serves the model",
        ),
        pytest.param(
            wait(mailboxes=boxes(**{MODEL: {"workers": 0}}), starting={MODEL: 125.0}),
            "starting",
            "model:openai:qwen to load (2:05 so far)",
            id="the model loads",
        ),
        pytest.param(
            wait(mailboxes=boxes(**{name: {"workers": 0} for name in ("agent", MODEL, RESOURCE)}), attended=""),
            "starting",
            "the worker of agent, model:openai:qwen, resource:dice to start",
            id="the workers of this command start",
        ),
        pytest.param(
            wait(BUSY_MODEL, boxes(model=(0, 256), **{RESOURCE: {"workers": 0}})),
            "model",
            "model:openai:qwen: 256 calls in work, the oldest for 0:42, none answered in the last minute "
            "(100% of the last minute's time)",
            id="the model answers nothing yet, and nothing needs the missing worker",
        ),
        pytest.param(
            wait(
                Activity({"generate": CallTimes(60, 0, 6, 180, 60)}),
                limits=[RateLimitStatus("other at h:2", None, "tokens", 9.0, 0, 0.0, 0), STATED],
            ),
            "limit",
            "the rate limit of qwen at h:1, 30 requests/min (--rpm): 200 requests wait",
            id="a stated rate limit",
        ),
        pytest.param(
            wait(Activity(working={"generate": InWork(256, 2560, 10)}, refused=87), limits=[LEARNED]),
            "limit",
            "the rate limit of qwen at h:1, 5.2 requests/s, learned from refusals: 212 requests wait, "
            "87 were refused (HTTP 429)",
            id="a learned rate limit before the first answer",
        ),
        pytest.param(
            wait(Activity({"generate": CallTimes(5, 0, 0, 900, 1)})),
            "limit",
            "rate limits, or new weights: calls in work stand still for them (100% of the last minute's time)",
            id="calls that were held up, and no limit is in force any more",
        ),
        pytest.param(
            wait(
                Activity({"generate": CallTimes(6, 0, 0, 1, 90)}, refused=30, errors=11, fault="HTTP 503 from h:1"),
                boxes(model=(0, 300)),
            ),
            "errors",
            "the model's server, which refused or failed 41 of 47 requests of the last minute "
            "(30 with HTTP 429, 11 with other errors); the newest: HTTP 503 from h:1",
            id="the model refuses",
        ),
        pytest.param(
            wait(Activity({"generate": CallTimes(90, 90, 0, 0, 9)}, resent=90, fault="generate: model_unavailable: no")),
            "retries",
            "new tries: 300 rollouts pause after a fault, 90 calls were sent again in the last minute; "
            "the newest: generate: model_unavailable: no",
            id="all rollouts pause before a new try",
        ),
        pytest.param(
            wait(Activity({"generate": CallTimes(9, 1, 0, 0, 9)}, BUSY_MODEL.working, resent=1), private=256),
            "model",
            "model:openai:qwen: 256 calls in work, the oldest for 0:42, 9 answered in the last minute after 1.0 s each "
            "(100% of the last minute's time)",
            id="calls in private mailboxes are no pause",
        ),
        pytest.param(
            wait(Activity(working={"tool": InWork(252, 5000, 20)}), boxes(executor=(240, 12))),
            "executor",
            "executors: 12 isolated calls run, 240 wait; start more: `gymq worker executor`",
            id="the executors are full",
        ),
        pytest.param(
            wait(
                Activity({"generate": CallTimes(10, 0, 5, 0, 5)}, {"generate": InWork(16, 8, 1)}),
                boxes(model=(200, 16), **{MODEL: {"oldest": 30.0}}),
            ),
            "queue",
            "workers of model:openai:qwen: 16 messages taken, 200 wait, the oldest for 0:30 (100% of the last minute's time); "
            "start more: `gymq worker model --model openai:qwen`",
            id="too few workers",
        ),
        pytest.param(
            wait(Activity({"verify": CallTimes(10, 0, 5, 0, 30), "generate": CallTimes(10, 0, 0, 0, 5)})),
            "verify",
            "the verifier of resource:dice: 0 calls in work, 10 answered in the last minute after 3.0 s each "
            "(75% of the last minute's time)",
            id="a slow verifier",
        ),
        pytest.param(
            wait(status=run(live=200, admitted=290, unread={"jsonl": 0, "trainer": 1000})),
            "consumer",
            "consumer trainer: it has not acknowledged 1000 finished rollouts",
            id="a consumer that does not read",
        ),
        pytest.param(
            wait(
                status=run(
                    RunConfig("r", "dice", "tool", "m", max_staleness=1, batch=16), live=0, admitted=32, unread={"t": 32}
                )
            ),
            "consumer",
            "consumer t: it has not acknowledged 32 finished rollouts",
            id="a trainer that bounds staleness",
        ),
        pytest.param(
            wait(status=run(live=0, ended=300, unread={"jsonl": 7})),
            "consumer",
            "consumer jsonl to take the last 7 rollouts",
            id="the sink at the end",
        ),
        pytest.param(
            wait(status=run(state="open", rows=0, admitted=0, live=0)),
            "rows",
            "its producer: no row has come yet",
            id="a slow source",
        ),
        pytest.param(
            wait(status=run(live=0, admitted=0, paused=True)),
            "paused",
            "the end of a pause: `gymq control resume r`",
            id="a paused run",
        ),
        pytest.param(
            wait(Activity({"generate": CallTimes(4, 0, 20, 0, 5)}, {"generate": InWork(4, 5, 2)}), boxes(model=(0, 4))),
            "model",
            "model:openai:qwen: 4 calls in work, the oldest for 0:02, 4 answered in the last minute after 1.2 s each "
            "(33% of the last minute's time)",
            id="what waited while the workers started was taken",
        ),
        pytest.param(
            wait(status=run(live=0, stopped="8 rollouts failed alike (model_access), and none has succeeded")),
            "stopped",
            "the same `gymq run` again: it was stopped, because 8 rollouts failed alike (model_access), and none has succeeded",
            id="its guard has stopped it",
        ),
        pytest.param(
            wait(mailboxes=boxes(model=(200, 16), **{MODEL: {"oldest": 30.0}}), attended="--of out.jsonl"),
            "queue",
            "workers of model:openai:qwen: 16 messages taken, 200 wait, the oldest for 0:30 (100% of the last minute's time); "
            "start more: `gymq worker model --model openai:qwen --of out.jsonl`",
            id="the command that asks has a server of its own",
        ),
        pytest.param(
            wait(Activity({"tool": CallTimes(1, 0, 4, 0, 0)}), boxes(model=(0, 4))),
            "queue",
            "workers of model:openai:qwen, which have taken 4 messages (100% of the last minute's time)",
            id="nothing waits, and no work shows yet",
        ),
        pytest.param(wait(), "queue", "its first calls", id="nothing has begun"),
    ],
)
def test_what_a_run_waits_for(found: Bottleneck, cause: str, words: str):
    assert (found.cause, found.words) == (cause, words)
