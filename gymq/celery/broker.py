"""Celery's broker, in the words of kombu."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
from redis.connection import parse_url

from gymq.errors import UsageError
from gymq.settings import Settings
from gymq.store.topology import Address, parse


class Broker(msgspec.Struct, frozen=True):
    """Celery's broker.

    Args:
        url: as kombu wants it; several joined by `;`.
        options: of kombu's transport, beside those of all brokers.
        ssl: of redis-py's connection; None: no TLS.
    """

    url: str
    options: dict[str, Any] = {}
    ssl: dict[str, Any] | None = None


def find(settings: Settings) -> Broker:
    """Return the broker: `GYMQ_BROKER_URL`, else the server of the first shard.

    Raises:
        UsageError: it cannot be a broker.
    """
    addresses = parse(settings.broker_url, "GYMQ_BROKER_URL") if settings.broker_url else parse(settings.redis_url)
    if addresses[0].kind == "cluster":
        raise UsageError(
            "a Redis Cluster cannot be Celery's broker: set GYMQ_BROKER_URL to a single Redis, redis://host:port/db"
        )
    if settings.broker_url and len(addresses) > 1:
        raise UsageError("GYMQ_BROKER_URL: Celery has one broker; name one server")
    address = addresses[0]
    if address.kind == "sentinel":
        return _of_sentinels(address)
    scheme = address.url.partition("://")[0]
    if scheme == "unix":
        return Broker(_of_socket(address.url))
    if scheme == "rediss":
        return _of_tls(address.url)
    return Broker(address.url)


def _of_socket(url: str) -> str:
    parts = urlsplit(url)
    db = parse_qs(parts.query).get("db", ["0"])[0]
    user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    return f"redis+socket://{user}{parts.path}?virtual_host={db}"


def _of_tls(url: str) -> Broker:
    # Without `ssl` kombu takes rediss:// for a connection in clear; and its own ssl_ options know fewer words than redis-py's.
    ssl = {name: value for name, value in parse_url(url).items() if name.startswith("ssl_")}
    parts = urlsplit(url)
    others = [(name, value) for name, value in parse_qsl(parts.query) if not name.startswith("ssl_")]
    return Broker(urlunsplit(parts._replace(query=urlencode(others))), ssl={"ssl_cert_reqs": "required", **ssl})


def _of_sentinels(address: Address) -> Broker:
    parts = urlsplit(address.url)
    login = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    urls = [f"sentinel://{login}{urlsplit(seed).netloc.rpartition('@')[2]}{parts.path}" for seed in address.seeds]
    theirs = parse_url(address.seeds[0])
    known = {name: theirs[name] for name in ("username", "password") if theirs.get(name)}
    return Broker(";".join(urls), {"master_name": address.master, "sentinel_kwargs": known or None})
