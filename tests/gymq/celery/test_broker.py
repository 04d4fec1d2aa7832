"""Celery's broker: the first shard's server unless told otherwise, in kombu's words."""

from __future__ import annotations

from pathlib import Path

import kombu
import pytest

from gymq.celery.application import TRANSPORT_OPTIONS, create
from gymq.celery.broker import Broker, find
from gymq.errors import UsageError
from gymq.process.embedded_redis import EmbeddedRedis
from gymq.settings import Settings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("redis://:secret@host:1/2", "redis://:secret@host:1/2"),
        ("redis://host:1/2,redis://other", "redis://host:1/2"),
        ("unix:///run/redis.sock?db=3", "redis+socket:///run/redis.sock?virtual_host=3"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
    ],
)
def test_the_broker_is_the_first_shards_server(given, expected):
    assert find(Settings(given)) == Broker(expected)


def test_kombu_finds_a_socket_whatever_its_folder_is_called(tmp_path: Path):
    with EmbeddedRedis(tmp_path / "a b;c,d#?%41 ü") as server:
        broker = find(Settings(server.url))
        with kombu.Connection(broker.url, transport_options=TRANSPORT_OPTIONS | broker.options) as connection:
            assert connection.default_channel.client.ping()


def test_a_broker_of_its_own_comes_first():
    assert find(Settings("redis://a,redis://b", broker_url="redis://c")).url == "redis://c"


def test_sentinels_are_told_with_the_masters_name_and_their_own_password():
    found = find(Settings("sentinel://u:p@a,b:5/main/2?sentinel_password=s"))
    assert found.url == "sentinel://u:p@a:26379/2;sentinel://u:p@b:5/2"
    assert found.options == {"master_name": "main", "sentinel_kwargs": {"password": "s"}}


def test_tls_is_told_beside_the_address_and_checks_certificates_unless_told_otherwise():
    found = find(Settings("rediss://:p@a:1/2?ssl_ca_certs=/ca.pem&ssl_check_hostname=false"))
    assert found.url == "rediss://:p@a:1/2"
    assert found.ssl == {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False}
    assert (find(Settings("rediss://a?ssl_cert_reqs=none")).ssl or {})["ssl_cert_reqs"] == "none"


def test_a_cluster_is_no_broker_and_the_line_says_what_to_set():
    with pytest.raises(UsageError, match="GYMQ_BROKER_URL"):
        find(Settings("redis-cluster://a?shards=2"))
    assert find(Settings("redis-cluster://a?shards=2", broker_url="redis://b")).url == "redis://b"


def test_two_brokers_are_refused():
    with pytest.raises(UsageError, match="GYMQ_BROKER_URL"):
        find(Settings(broker_url="redis://a,redis://b"))


def test_variables_of_another_celery_app_change_nothing(monkeypatch):
    # Given a person whose shell names the broker and the results of an app of theirs
    for name in ("BROKER_URL", "BROKER_READ_URL", "BROKER_WRITE_URL", "RESULT_BACKEND"):
        monkeypatch.setenv(f"CELERY_{name}", "redis://theirs:1/0")
    app = create(Settings("redis://ours:2/3"))
    # Then gymq's app talks to the server of its own settings alone
    made = (app.connection(), app.connection_for_read(), app.connection_for_write(), app.pool.connection)
    assert {(each.hostname, each.port, each.virtual_host) for each in made} == {("ours", 2, "3")}
    assert (app.conf.broker_url, app.conf.result_backend) == ("redis://ours:2/3", None)
