"""The addresses of the shards: the forms of `GYMQ_REDIS_URL`, and which server holds a shard right now.

redis://[[user]:password@]host:port[/db], rediss://..., unix://...     one server, one shard
several of these (and of sentinel://), separated by commas             a shard each, in this order
sentinel://[[user]:password@]host:port[,host:port...]/MASTER[/db]      the master that these Sentinels name
redis-cluster://[[user]:password@]host:port[,host:port...]?shards=N    N shards in one Cluster (rediss-cluster: with TLS)
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.crc import key_slot
from redis.retry import Retry

from gymq.errors import ServerUnreachable, UsageError

#: The remedy where no server answers.
NAME_IT = "start it, or name another one by --redis or GYMQ_REDIS_URL, or a running `gymq run` by --of OUT"

#: What is said of a URL whose host or port makes no sense: not what stands there, which may be a password.
UNREADABLE = "host and port cannot be read; write [user:password@]host:port behind the scheme"

#: Seconds that one Sentinel or node of a Cluster may take to say where a shard is.
ASK_TIMEOUT = 2.0

#: Slots of a Cluster.
_SLOTS = 16384

#: The step between the slots of two shards, in parts of all slots: by the golden ratio any number of them is spread evenly.
_GOLDEN = 0.6180339887

#: Shards at most: each costs every worker four connections.
MAX_SHARDS = 64


class Address(msgspec.Struct, frozen=True):
    """The address of one shard.

    Args:
        kind: `server`: at `url`; `sentinel`, `cluster`: at `url` with another host and port, which `seeds` tell.
        url: `redis://...`, `rediss://...` or `unix://...`.
        tag: hash tag of the shard's keys, between braces.
        seeds: the URLs of the Sentinels, or of nodes of the Cluster.
        master: the server's name at the Sentinels.
    """

    kind: Literal["server", "sentinel", "cluster"]
    url: str
    tag: int
    seeds: tuple[str, ...] = ()
    master: str = ""

    @property
    def place(self) -> str:
        """Where the shard is, for people: without user, password and options."""
        first = urlsplit((self.seeds or (self.url,))[0])
        where = f"{first.hostname}:{first.port}" if first.port else first.hostname or ""
        if self.kind == "server":
            return f"{first.scheme}://{where}{first.path}"
        return f"{self.kind}://{where}/{self.master}" if self.master else f"{self.kind}://{where} tag {self.tag}"


@cache
def parse(text: str, option: str = "--redis") -> tuple[Address, ...]:
    """Read the address of all shards.

    Args:
        text: as in `GYMQ_REDIS_URL`.
        option: where it was given, for errors.

    Raises:
        UsageError: it cannot be understood.
    """
    urls = [url.strip() for url in re.split(r",(?=\s*[a-z-]+://)", text)]
    addresses: list[Address] = []
    try:
        for url in urls:
            scheme = url.partition("://")[0]
            _check_parts(url, scheme)
            if scheme in ("redis-cluster", "rediss-cluster"):
                if len(urls) > 1:
                    raise ValueError("a Cluster stands alone: ?shards=N says how many shards it holds")
                return _cluster(url)
            if scheme == "sentinel":
                addresses.append(_sentinel(url, len(addresses)))
            else:
                _check(url)
                addresses.append(Address("server", url, len(addresses)))
    except ValueError as error:
        raise UsageError(f"{option}: {error}; docs/operations.md lists the forms") from None
    if len(addresses) > MAX_SHARDS:
        raise UsageError(f"{option}: {len(addresses)} shards are more than {MAX_SHARDS}")
    if len({(address.url, address.master, address.seeds) for address in addresses}) < len(addresses):
        raise UsageError(f"{option}: the same server stands there twice; each shard needs a server, or a database, of its own")
    return tuple(addresses)


def _check_parts(url: str, scheme: str) -> None:
    """Refuse a URL whose parts are others than were meant, without a word of it: what is not understood may be a password.

    Args:
        url: the URL.
        scheme: its scheme.

    Raises:
        ValueError: it cannot be split, or a password with `#`, `/` or `?` as they are ends the host and stands in the rest.
    """
    try:
        urlsplit(url)
    except ValueError:
        raise ValueError(UNREADABLE) from None
    if scheme == "unix":
        return
    rest = re.split("[/?#]", url.partition("://")[2], maxsplit=1)[1:]
    if "#" in url or any("@" in part for part in rest):
        raise ValueError("write the characters # / ? @ of a user or password as %23 %2F %3F %40")


def _check(url: str) -> None:
    """Refuse the URL of one server that redis-py cannot read; its own words may repeat a password.

    Raises:
        ValueError: it cannot.
    """
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("a URL begins with redis://, rediss://, unix://, sentinel:// or redis-cluster://")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(UNREADABLE) from None
    if "," in host:
        raise ValueError("a comma stands between two whole URLs")
    parse_url(url)


def locate(address: Address) -> str:
    """Return the URL of the server that holds a shard now; block on the network unless there is only one.

    Raises:
        ServerUnreachable: no Sentinel or node can tell.
    """
    if address.kind == "server":
        return address.url
    ask = _ask_node if address.kind == "cluster" else _ask_sentinel
    reasons: list[str] = []
    for seed in address.seeds:
        try:
            host, port = ask(address, seed)
            return _at(address.url, host, port)
        except (redis.RedisError, OSError, LookupError) as error:
            where = urlsplit(seed)
            reasons.append(f"{where.hostname}:{where.port}: {error}")
    who = "no node of the Cluster" if address.kind == "cluster" else f"no Sentinel of {address.master!r}"
    raise ServerUnreachable(f"Redis cannot be reached: {who} tells where the shard is: {'; '.join(reasons)}", NAME_IT)


def tag_in_cluster(shard: int) -> int:
    """Return the hash tag of a shard in a Cluster.

    Nodes hold ranges of slots, and the slots of 0, 1, 2, … all lie in one half of them. So the numbers are chosen by their
    slots: as many shards as nodes mostly lie on a node each, however many there are. Shard 0 has 0.
    """
    wanted = (key_slot(b"0") / _SLOTS + shard * _GOLDEN) % 1
    return next(n for n in range(100_000) if abs(key_slot(b"%d" % n) / _SLOTS - wanted) < 0.005) if shard else 0


def _cluster(url: str) -> tuple[Address, ...]:
    scheme, login, hosts, path, query = _split(url, 6379)
    if path.strip("/") not in ("", "0"):
        raise ValueError(f"a Cluster has no database {path.strip('/')!r}")
    number = query.pop("shards", "1")
    if not number.isdigit() or not 1 <= int(number) <= MAX_SHARDS:
        raise ValueError(f"shards={number}: use a number from 1 to {MAX_SHARDS}")
    seeds = tuple(_plain(scheme.removesuffix("-cluster"), login, host, "/0", query) for host in hosts)
    return tuple(Address("cluster", seeds[0], tag_in_cluster(shard), seeds) for shard in range(int(number)))


def _sentinel(url: str, shard: int) -> Address:
    _, login, hosts, path, query = _split(url, 26379)
    master, _, db = path.strip("/").partition("/")
    if not master:
        raise ValueError("sentinel:// needs the master's name: sentinel://host:26379/MASTER")
    user, password = query.pop("sentinel_username", ""), query.pop("sentinel_password", "")
    their_login = f"{quote(user, safe='')}:{quote(password, safe='')}@" if password else ""
    seeds = tuple(_plain("redis", their_login, host, "", {}) for host in hosts)
    return Address("sentinel", _plain("redis", login, hosts[0], f"/{db or 0}", query), shard, seeds, master)


def _split(url: str, port: int) -> tuple[str, str, list[str], str, dict[str, str]]:
    """Return scheme, login with its @, hosts each with a port, path and query."""
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    named = [host.strip() for host in hosts.split(",") if host.strip()]
    if not named:
        raise ValueError(f"{parts.scheme}:// names no host")
    ported = [host if re.search(r":[^\]:]+$", host) else f"{host}:{port}" for host in named]
    return parts.scheme, login + at, ported, parts.path, dict(parse_qsl(parts.query))


def _plain(scheme: str, login: str, host: str, path: str, query: dict[str, str]) -> str:
    url = urlunsplit((scheme, login + host, path, urlencode(query), ""))
    _check(url)
    return url


def _at(url: str, host: str, port: int) -> str:
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{login}{at}{f'[{host}]' if ':' in host else host}:{port}"))


def _ask_sentinel(address: Address, seed: str) -> tuple[str, int]:
    answer = _ask(seed, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", address.master)
    if answer is None:
        raise LookupError(f"knows no master {address.master!r}")
    return answer[0].decode(), int(answer[1])


def _ask_node(address: Address, seed: str) -> tuple[str, int]:
    slot = key_slot(b"%d" % address.tag)
    for first, last, (host, port, *_), *_ in _ask(seed, "CLUSTER", "SLOTS"):
        if first <= slot <= last:
            # A node that does not know its own name means the one by which it was asked.
            return host.decode() if host else urlsplit(seed).hostname or "", int(port)
    raise LookupError(f"no node serves slot {slot}")


def _ask(url: str, *command: str) -> Any:
    client: Any = redis.Redis.from_url(
        url, protocol=2, socket_timeout=ASK_TIMEOUT, socket_connect_timeout=ASK_TIMEOUT, retry=Retry(NoBackoff(), 0)
    )
    try:
        return client.execute_command(*command)
    finally:
        client.close()
