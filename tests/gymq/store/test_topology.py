"""Where the shards are: every form of the address, one line for each mistake, and shards of a Cluster on all its nodes."""

from __future__ import annotations

import pytest
from redis.crc import key_slot

from gymq.errors import ServerUnreachable, UsageError
from gymq.store.keys import Keys
from gymq.store.topology import Address, locate, parse, tag_in_cluster


@pytest.mark.parametrize("url", ["redis://:pw@h:1/2", "rediss://h:1/0?ssl_ca_certs=/ca.pem", "unix:///run/r.sock?db=1"])
def test_one_server_is_one_shard_and_stands_as_it_was_written(url):
    assert parse(url) == (Address("server", url, 0),)
    assert locate(parse(url)[0]) == url


def test_several_servers_are_shards_in_their_order():
    found = parse("redis://:p,w@a:1/0, redis://b:2/3,unix:///run/x,y.sock")
    assert [one.url for one in found] == ["redis://:p,w@a:1/0", "redis://b:2/3", "unix:///run/x,y.sock"]
    assert [one.tag for one in found] == [0, 1, 2]


def test_sentinels_are_asked_in_turn_with_their_own_password():
    (found,) = parse("sentinel://u:p@a,[::1]:5,c:6/main/2?sentinel_password=s&socket_timeout=3")
    assert found.kind == "sentinel" and found.master == "main"
    assert found.url == "redis://u:p@a:26379/2?socket_timeout=3"
    assert found.seeds == ("redis://:s@a:26379", "redis://:s@[::1]:5", "redis://:s@c:6")


def test_two_masters_of_the_same_sentinels_are_two_shards():
    found = parse("sentinel://a,b/one,sentinel://a,b/two")
    assert [(one.master, one.tag) for one in found] == [("one", 0), ("two", 1)]


def test_a_cluster_holds_as_many_shards_as_are_asked_for():
    found = parse("rediss-cluster://u:p@a:1,b?shards=3&ssl_ca_certs=/ca.pem")
    assert [one.kind for one in found] == ["cluster"] * 3
    assert found[0].seeds == tuple(f"rediss://u:p@{host}/0?ssl_ca_certs=%2Fca.pem" for host in ("a:1", "b:6379"))
    assert len(parse("redis-cluster://a")) == 1


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5])
def test_as_many_shards_as_nodes_lie_on_a_node_each(nodes):
    slots = [key_slot(Keys(tag_in_cluster(shard)).prefix.encode()) for shard in range(nodes)]
    assert sorted(slot * nodes // 16384 for slot in slots) == list(range(nodes))


def test_no_two_shards_of_a_cluster_have_the_same_keys_and_the_first_has_those_of_a_single_server():
    assert len({tag_in_cluster(shard) for shard in range(64)}) == 64
    assert tag_in_cluster(0) == 0


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://a:1/0,redis://a:1/0", "stands there twice"),
        ("redis://a:1/0,http://b", "a URL begins with redis://"),
        ("redis://a:port/0", "port"),
        ("redis-cluster://a,redis://b", "stands alone"),
        ("redis-cluster://a/3", "no database"),
        ("redis-cluster://a?shards=0", "shards=0"),
        ("redis-cluster://a?shards=many", "shards=many"),
        ("redis-cluster://", "no host"),
        ("sentinel://a:1", "needs the master's name"),
        ("sentinel:///main", "no host"),
        (",".join(f"redis://h{n}" for n in range(65)), "65 shards"),
    ],
)
def test_a_mistake_is_told_in_one_line(url, says):
    with pytest.raises(UsageError) as refusal:
        parse(url)
    assert says in str(refusal.value) and "--redis" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2#x@h",
        "redis://:hunter2/x@h:1/0",
        "redis://:hunter2?x@h",
        "redis://:2#hunter2@h",
        "redis://gymq:hunter2",
        "redis://gymq:hunter2@h:hunter2",
        "redis://:hunter2\u2100x@h",
        "redis://[hunter2@h",
        "hunter2@h",
        "sentinel://:hunter2#x@h/m",
        "sentinel://:hunter2@h:hunter2/m",
        "sentinel://h/m?sentinel_password=hunter2@x",
        "redis-cluster://:hunter2/x@h",
        "redis-cluster://gymq:hunter2",
        "redis-cluster://:hunter2\u2100x@h",
        "sentinel://[hunter2@h/m",
    ],
)
def test_no_word_of_a_url_that_is_not_understood_is_repeated(url):
    with pytest.raises(UsageError) as refusal:
        parse(url)
    assert "hunter2" not in str(refusal.value)
    assert "docs/operations.md lists the forms" in str(refusal.value)


@pytest.mark.parametrize("url", ["redis-cluster://127.0.0.1:1,127.0.0.1:2", "sentinel://127.0.0.1:1,127.0.0.1:2/main"])
def test_when_nobody_tells_where_a_shard_is_the_reasons_name_who_was_asked(url):
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1: .*127\.0\.0\.1:2: ") as refusal:
        locate(parse(url)[0])
    assert "\n" not in str(refusal.value)


def test_a_server_that_is_no_sentinel_and_no_cluster_is_told(redis_url):
    at = redis_url.removeprefix("redis://").partition("/")[0]
    login, _, host = at.rpartition("@")
    for url in (f"sentinel://{host}/main?sentinel_password={login.removeprefix(':')}", f"redis-cluster://{at}"):
        with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:\d+: ."):
            locate(parse(url)[0])
