"""Sending isolated calls while Redis or kombu's channels are in a bad way."""

from __future__ import annotations

import asyncio

import pytest
from gymq_workers.executor.task import _closed_channels
from gymq_workers.resource.isolated import IsolatedCalls
from kombu import Connection
from kombu.exceptions import OperationalError


def test_a_channel_that_kombu_has_closed_is_an_outage_and_not_a_defect(redis_url):
    with Connection(redis_url) as connection:
        channel = connection.channel()
        channel.close()
        with pytest.raises(OperationalError, match="the channel was closed"), _closed_channels():
            channel.queue_declare("gymq.isolated")


def test_a_defect_of_ours_is_none_of_kombus():
    with pytest.raises(AttributeError), _closed_channels():
        None.connection  # noqa: B018


async def test_a_watcher_that_fails_leaves_no_call_waiting(settings):
    # Given a call that is out, and a watcher
    isolated = IsolatedCalls(None, settings.liveness)
    answered = asyncio.get_running_loop().create_future()
    isolated._out["r:1:0"] = (None, 1.0, 0.0, answered)
    watcher = asyncio.create_task(isolated._watch())
    watcher.add_done_callback(isolated._watched)
    # When the watcher fails, here because there is no link, then so does the call
    with pytest.raises(AttributeError):
        await asyncio.wait_for(answered, 5)
    assert watcher.done()
