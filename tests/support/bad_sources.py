"""Bad sources, options and tool arguments: what each is called, how it is made, and the line that it gets."""

# ruff: noqa: E501
# fmt: off
from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

ROW = b'{"prompt": "a"}\n'
ZSTD = b"\x28\xb5\x2f\xfd" + b"\0" * 20


def saved(folder: Path, state: object) -> None:
    """A folder that looks as if `datasets` had saved it."""
    folder.mkdir()
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text(state if isinstance(state, str) else json.dumps(state))


def pipe(path: Path) -> None:
    os.mkfifo(path)


def locked(path: Path) -> None:
    path.write_bytes(ROW)
    path.chmod(0)


def names(file: str) -> Callable[[Path], None]:
    """A saved data set whose state names a file."""
    return lambda path: saved(path, {"_data_files": [{"filename": file}]})


def linked(path: Path) -> None:
    """A saved data set with a link to a file outside."""
    saved(path, {"_data_files": [{"filename": "data.arrow"}]})
    (path / "data.arrow").symlink_to("/etc/passwd")


#: Name, file, what makes it (bytes, or a function of its path; None: nothing), and the first line; {s} is the source.
FILES: list[tuple[str, str, bytes | Callable[[Path], None] | None, str]] = [
    ("a missing file", "rows.jsonl", None, "{s}: no such file or folder; check the path"),
    ("a name of 5000 characters", "a" * 5000 + ".jsonl", None, "{s200}…: no such file or folder; check the path"),
    ("a name with NUL", "a\0b.jsonl", None, "{s}: no such file or folder; check the path"),
    ("a folder", "rows.jsonl", Path.mkdir, "{s}: is a folder; name a file"),
    ("a pipe", "rows.jsonl", pipe, "{s}: is no plain file, and rows are read more than once; write them to a file first"),
    ("a pipe called Parquet", "rows.parquet", pipe, "{s}: is no plain file, and rows are read more than once; write them to a file first"),
    ("a link to nothing", "rows.jsonl", lambda path: path.symlink_to("nothing"), "{s}: no such file or folder; check the path"),
    ("a link to itself", "rows.jsonl", lambda path: path.symlink_to(path), "{s}: no such file or folder; check the path"),
    ("a link to a device", "rows.jsonl", lambda path: path.symlink_to("/dev/zero"), "{s}: is no plain file, and rows are read more than once; write them to a file first"),
    ("a file that we may not read", "rows.jsonl", locked, "{s}: Permission denied; name a file that can be read"),
    ("UTF-16", "rows.jsonl", ROW.decode().encode("utf-16"), "{s}: is UTF-16; convert it to UTF-8"),
    ("UTF-32", "rows.jsonl", ROW.decode().encode("utf-32"), "{s}: is UTF-16; convert it to UTF-8"),
    ("a list over lines", "rows.json", b"[\n" + ROW + b"]\n", "{s}: is one JSON list; write one row per line: jq -c '.[]' {s} > rows.jsonl"),
    ("a list in one line", "rows.json", b"[" + ROW.strip() + b"]", "{s}:1: is not a JSON object; write {{...}}, one row per line"),
    ("an object over lines", "rows.json", b'{\n"prompt": "a"}', "{s}:1: is not JSON (Expecting property name enclosed in double quotes at character 2); write one JSON object per line"),
    ("a bad second row", "rows.jsonl", ROW + b"\r\n\n{\n", "{s}:4: is not JSON (Expecting property name enclosed in double quotes at character 2); write one JSON object per line"),
    ("two rows of one id", "rows.jsonl", b'{"prompt": "a", "id": 7}\n{"prompt": "b", "id": "7"}', "{s}:2: id '7' is that of an earlier row too; give each row its own, or none"),
    ("NUL bytes", "rows.jsonl", b"\0" * 100, "{s}:1: is not JSON (Expecting value at character 1); write one JSON object per line"),
    ("zstd called JSON Lines", "rows.jsonl", ZSTD, "{s}: is compressed with zstd; make it JSON Lines, plain or gzipped"),
    ("zstd called gzip", "rows.jsonl.gz", ZSTD, "{s}: is compressed with zstd; make it JSON Lines, plain or gzipped"),
    ("bzip2", "rows.jsonl", b"BZh91AY&SY", "{s}: is compressed with bzip2; make it JSON Lines, plain or gzipped"),
    ("xz", "rows.jsonl", b"\xfd7zXZ\0", "{s}: is compressed with xz; make it JSON Lines, plain or gzipped"),
    ("a zip archive", "rows.jsonl", b"PK\x03\x04rows", "{s}: is a zip archive; make it JSON Lines, plain or gzipped"),
    ("Parquet called JSON Lines", "rows.jsonl", b"PAR1xxxx", "{s}: is Parquet; make it JSON Lines, plain or gzipped"),
    ("a cut gzip", "rows.jsonl.gz", gzip.compress(ROW * 1000)[:-9], "{s}: is not a whole gzip file (Compressed file ended before the end-of-stream marker was reached); copy or compress it again"),
    ("a gzip with a wrong sum", "rows.jsonl.gz", gzip.compress(ROW)[:-8] + b"\0" * 8, "{s}: is not a whole gzip file (CRC check failed 0x0 != 0x{crc}); copy or compress it again"),
    ("gzip of garbage", "rows.jsonl.gz", b"\x1f\x8b\x08" + b"\xff" * 30, "{s}: is not a whole gzip file ({any}); copy or compress it again"),
    ("an empty Parquet file", "rows.parquet", b"", "{s}: {any}; name a Parquet file that can be read"),
    ("JSON called Parquet", "rows.parquet", ROW, "{s}: {any}; name a Parquet file that can be read"),
    ("Parquet of garbage", "rows.parquet", b"PAR1" + os.urandom(100) + struct.pack("<I", 50) + b"PAR1", "{s}: {any}; name a Parquet file that can be read"),
    ("a file of no known kind", "rows.csv", ROW, "{s}: no producer is known for it; name one (datasets, jsonl, parquet, reasoning_gym) as in jsonl:{s}, or use a file that ends in .jsonl, .json, .jsonl.gz, .json.gz, .parquet"),
    ("a state that is no JSON", "saved", lambda path: saved(path, "{"), "{s}: its state.json cannot be read; save it again with save_to_disk"),
    ("a state without files", "saved", lambda path: saved(path, {}), "{s}: its state.json cannot be read; save it again with save_to_disk"),
    ("a data set that names a file outside", "saved", names("../../secret.arrow"), "{s}: its state.json names '../../secret.arrow', which lies outside; copy that into the folder"),
    ("a data set that names a file by its whole path", "saved", names("/etc/passwd"), "{s}: its state.json names '/etc/passwd', which lies outside; copy that into the folder"),
    ("a data set with a link outside", "saved", linked, "{s}: its state.json names 'data.arrow', which lies outside; copy that into the folder"),
    ("a data set without its file", "saved", names("data.arrow"), "{s}: cannot be read ({any}); save it again with save_to_disk"),
]

#: Name, what stands after `gymq`, variables, exit code, line. {known} are the environments.
RUN = ("run", "weather", "--model", "scripted", "--data", "ok.jsonl", "--out", "out.jsonl")
PRODUCE = ("produce", "weather", "--model", "scripted", "--data", "ok.jsonl", "--run", "r")
OPTIONS: list[tuple[str, tuple[str, ...], dict[str, str], int, str]] = [
    ("no data", (*RUN, "--data", ""), {}, 2, "--data is empty; name a file, a saved data set, or PRODUCER:SOURCE"),
    ("a device as data", (*RUN, "--data", "jsonl:/dev/zero"), {}, 3, "/dev/zero: is no plain file, and rows are read more than once; write them to a file first"),
    ("an unknown producer", (*RUN, "--data", "os:system"), {}, 2, "os:system: no such file, and no producer 'os'; installed: datasets, jsonl, parquet, reasoning_gym"),
    ("a size of NaN", (*RUN, "--data", "reasoning_gym:chain_sum?size=NaN"), {}, 2, "reasoning_gym:chain_sum?size=NaN: size is 'NaN'; give a whole number"),
    ("a size that is a fraction", (*RUN, "--data", "reasoning_gym:chain_sum?size=1e9"), {}, 2, "reasoning_gym:chain_sum?size=1e9: size is '1000000000.0'; give a whole number"),
    ("a size below one", (*RUN, "--data", "reasoning_gym:chain_sum?size=-1"), {}, 2, "reasoning_gym:chain_sum?size=-1: AssertionError: size must be positive; correct the parameters"),
    ("no rows", (*RUN, "--data", "empty.jsonl"), {}, 3, "empty.jsonl: has no good rows; nothing to roll out"),
    ("an environment by module", ("run", "os:system", *RUN[2:]), {}, 2, "unknown environment 'os:system'; installed: {known}"),
    ("an environment by path", ("run", "../../x", *RUN[2:]), {}, 2, "unknown environment '../../x'; installed: {known}"),
    ("an environment by attribute", ("run", "weather.Weather", *RUN[2:]), {}, 2, "unknown environment 'weather.Weather'; installed: {known}"),
    ("an agent by module", (*RUN, "--agent", "os:system"), {}, 2, "unknown agent 'os:system'; installed: react, tool"),
    ("an agent by path", (*RUN, "--agent", "../../x"), {}, 2, "unknown agent '../../x'; installed: react, tool"),
    ("a model of no backend", (*RUN, "--model", "os:system"), {}, 2, "unknown backend 'os'; installed: azure, openai, replay, scripted, sdk, vllm"),
    ("an empty model", (*RUN, "--model", ""), {}, 2, "unknown backend ''; installed: azure, openai, replay, scripted, sdk, vllm"),
    ("a replay of nothing", (*RUN, "--model", "replay:nope"), {}, 2, "model replay: nope is no file; name a recording, or a pattern of several"),
    ("10^22 at once", (*RUN, "--concurrency", "1" + "0" * 22), {}, 2, "--concurrency: input should be less than or equal to 1000000000"),
    ("a temperature of NaN", (*RUN, "--temperature", "nan"), {}, 2, "--temperature: input should be a finite number"),
    ("a limit of seconds that is NaN", (*RUN, "--max-seconds", "nan"), {}, 2, "--max-seconds: input should be a finite number"),
    ("an infinite limit of seconds", (*RUN, "--max-seconds", "inf"), {}, 2, "--max-seconds: input should be a finite number"),
    ("10^22 tries", (*RUN, "--infra-retries", "1" + "0" * 22), {}, 2, "--infra-retries: input should be less than or equal to 1000000000"),
    ("requests without end", (*RUN, "--rpm", "inf"), {}, 2, "--rpm: input should be a finite number"),
    ("a judge of no backend", (*RUN, "--judge", "os:system"), {}, 2, "unknown backend 'os'; installed: azure, openai, replay, scripted, sdk, vllm"),
    ("an infinite temperature", (*RUN, "--temperature", "inf"), {}, 2, "--temperature: input should be a finite number"),
    ("a folder as output", (*RUN, "--out", "."), {}, 2, ".: is a folder; name a file in it"),
    ("no output", (*RUN, "--out", ""), {}, 2, ".: is a folder; name a file in it"),
    ("a device as output", (*RUN, "--out", "/dev/full"), {}, 2, "/dev/full: is no plain file, and finished rollouts are read from it; choose another --out"),
    ("a config that is no YAML", (*RUN, "--config", "brackets.yaml"), {}, 2, "brackets.yaml: is not YAML ({any}); write lines such as samples: 4"),
    ("a config that makes an object", (*RUN, "--config", "object.yaml"), {}, 2, "object.yaml:1: is not YAML ({any}); write lines such as samples: 4"),
    ("a config with NaN", (*RUN, "--config", "nan.yaml"), {}, 2, "sampling: holds what JSON cannot say ({any}); use plain values only"),
    ("a config with a hot temperature", (*RUN, "--config", "hot.yaml"), {}, 2, "sampling.temperature: Expected float | null, got str; correct it"),
    ("a prompt that reaches into objects", (*RUN, "--prompt-config", "reach.yaml"), {}, 2, "reach.yaml: the template has {{x.__class__}}; only plain names of fields can stand in braces"),
    ("a run with a path for a name", (*PRODUCE, "--run", "../r"), {}, 2, "run name '../r': use 1 to 100 letters, digits, '_' or '-', beginning with a letter or digit"),
    ("a run with a dot", (*PRODUCE, "--run", "a.b"), {}, 2, "run name 'a.b': use 1 to 100 letters, digits, '_' or '-', beginning with a letter or digit"),
    ("a consumer with a path for a name", (*PRODUCE, "--consumer", "../x"), {}, 2, "consumer '../x': use 1 to 100 letters, digits, '-' or '_'"),
    ("a consumer that looks like letters", ("sink", "jsonl", "--run", "r", "--out", "o", "--consumer", "tr\u0430iner"), {}, 2, "consumer 'tr\u0430iner': use 1 to 100 letters, digits, '-' or '_'"),
    ("a sink by path", ("sink", "../x", "--run", "r", "--out", "o"), {}, 2, "unknown sink '../x'; installed: jsonl, parquet"),
    ("a sink to nowhere", ("sink", "jsonl", "--run", "r", "--out", ""), {}, 2, "--out '': name a file (jsonl) or a folder of its own (parquet)"),
    ("Redis by HTTP", ("status",), {"REDIS_URL": "http://x"}, 2, "--redis: a URL begins with redis://, rediss://, unix://, sentinel:// or redis-cluster://; docs/operations.md lists the forms"),
    ("port 99999", ("status",), {"REDIS_URL": "redis://h:99999"}, 2, "--redis: host and port cannot be read; write [user:password@]host:port behind the scheme; docs/operations.md lists the forms"),
    ("a port of letters", ("status",), {"REDIS_URL": "redis://h:abc"}, 2, "--redis: host and port cannot be read; write [user:password@]host:port behind the scheme; docs/operations.md lists the forms"),
    ("half an IPv6 address", ("status",), {"REDIS_URL": "redis://[::1"}, 2, "--redis: host and port cannot be read; write [user:password@]host:port behind the scheme; docs/operations.md lists the forms"),
    ("the same server twice", ("status",), {"REDIS_URL": "redis://h/1,redis://h/1"}, 2, "--redis: the same server stands there twice; each shard needs a server, or a database, of its own"),
    ("a comma and no server", ("status",), {"REDIS_URL": "redis://h,"}, 2, "--redis: a comma stands between two whole URLs; docs/operations.md lists the forms"),
    ("65 shards", ("status",), {"REDIS_URL": ",".join(f"redis://h/{n}" for n in range(65))}, 2, "--redis: 65 shards are more than 64"),
    ("a shard by HTTP", ("status",), {"REDIS_URL": "redis://h,http://x"}, 2, "--redis: a URL begins with redis://, rediss://, unix://, sentinel:// or redis-cluster://; docs/operations.md lists the forms"),
    ("a Cluster beside a server", ("status",), {"REDIS_URL": "redis-cluster://h,redis://b"}, 2, "--redis: a Cluster stands alone: ?shards=N says how many shards it holds; docs/operations.md lists the forms"),
    ("a Cluster of no shards", ("status",), {"REDIS_URL": "redis-cluster://h?shards=0"}, 2, "--redis: shards=0: use a number from 1 to 64; docs/operations.md lists the forms"),
    ("a Cluster of 10^30 shards", ("status",), {"REDIS_URL": "redis-cluster://h?shards=1" + "0" * 30}, 2, "--redis: shards=1000000000000000000000000000000: use a number from 1 to 64; docs/operations.md lists the forms"),
    ("a database of a Cluster", ("status",), {"REDIS_URL": "redis-cluster://h/3"}, 2, "--redis: a Cluster has no database '3'; docs/operations.md lists the forms"),
    ("Sentinels of no master", ("status",), {"REDIS_URL": "sentinel://h"}, 2, "--redis: sentinel:// needs the master's name: sentinel://host:26379/MASTER; docs/operations.md lists the forms"),
    ("no Sentinels", ("status",), {"REDIS_URL": "sentinel://"}, 2, "--redis: sentinel:// names no host; docs/operations.md lists the forms"),
    ("Sentinels that are not there", ("status",), {"REDIS_URL": "sentinel://127.0.0.1:1/m"}, 4, "Redis cannot be reached: no Sentinel of 'm' tells where the shard is: 127.0.0.1:1: {any}"),
    ("a parameter that nobody knows", ("status",), {"REDIS_URL": "redis://h?nonsense=1"}, 2, "--redis: unexpected keyword argument 'nonsense'; correct what stands behind '?' in the URL"),
    ("a protocol that nobody speaks", ("status",), {"REDIS_URL": "redis://h?protocol=9"}, 2, "--redis: protocol must be either 2 or 3; correct what stands behind '?' in the URL"),
    ("a time-out of letters", ("status",), {"REDIS_URL": "redis://h?socket_timeout=x"}, 2, "--redis: Invalid value for 'socket_timeout' in connection URL.; docs/operations.md lists the forms"),
    ("a password with @ and nobody there", ("status",), {"REDIS_URL": "redis://:p@:ss@127.0.0.1:1/0"}, 4, "Redis cannot be reached: Error 111 connecting to 127.0.0.1:1. Connect call failed ('127.0.0.1', 1); start it, or name another one by --redis or GYMQ_REDIS_URL, or a running `gymq run` by --of OUT"),
    ("a socket that is not there", ("status",), {"REDIS_URL": "unix:///nope.sock"}, 4, "Redis cannot be reached: {any}"),
    ("a liveness of NaN", ("status",), {"LIVENESS": "nan"}, 2, "GYMQ_LIVENESS: Expected float > 0.0; correct the variable, or unset it"),
    ("an infinite liveness", ("status",), {"LIVENESS": "inf"}, 2, "GYMQ_LIVENESS: Expected float <= 86400.0; correct the variable, or unset it"),
    ("no liveness", ("status",), {"LIVENESS": "0"}, 2, "GYMQ_LIVENESS: Expected float > 0.0; correct the variable, or unset it"),
    ("a TTL of 10^20", ("status",), {"TTL": "1" + "0" * 20}, 2, "GYMQ_TTL: {any}; correct the variable, or unset it"),
]

#: Name, arguments of `get_weather(city: str)` as a model wrote them, and what the model is told behind the tool's name.
ARGUMENTS: list[tuple[str, str, str]] = [
    ("no JSON", "city=Rome", "Invalid JSON: expected value at line 1 column 1"),
    ("nothing", "", "city: Field required"),
    ("code", "__import__('os').system('id')", "Invalid JSON: expected value at line 1 column 1"),
    ("a list", "[]", "Input should be an object"),
    ("null", "null", "Input should be an object"),
    ("a text", '"Rome"', "Input should be an object"),
    ("NaN", "NaN", "{any}"),
    ("a cut object", '{"city": "Ro', "Invalid JSON: EOF while parsing a string at line 1 column 12"),
    ("two objects", '{"city": "a"}{"city": "b"}', "Invalid JSON: trailing characters at line 1 column 14"),
    ("single quotes", "{'city': 'Rome'}", "Invalid JSON: key must be a string at line 1 column 2"),
    ("a missing argument", "{}", "city: Field required"),
    ("a number for text", '{"city": 3}', "city: Input should be a valid string"),
    ("null for text", '{"city": null}', "city: Input should be a valid string"),
    ("an object for text", '{"city": {"$ne": 1}}', "city: Input should be a valid string"),
    ("one too many", '{"city": "a", "x": 1}', "x: Extra inputs are not permitted"),
    ("a prototype", '{"city": "a", "__proto__": {}}', "__proto__: Extra inputs are not permitted"),
    ("a class", '{"city": "a", "__class__": "os"}', "__class__: Extra inputs are not permitted"),
    ("what the worker injects", '{"city": "a", "state": {}, "task": {}}', "state: Extra inputs are not permitted; task: Extra inputs are not permitted"),
    ("half a surrogate pair", '{"city": "\\ud800"}', "Invalid JSON: {any}"),
    ("a list 100,000 deep", '{"city": ' + "[" * 100_000, "Invalid JSON: recursion limit exceeded at line 1 column {any}"),
]

#: Name, `GYMQ_BROKER_URL`, and what is said of it.
BROKERS: list[tuple[str, str, str]] = [
    ("two brokers", "redis://a,redis://b", "GYMQ_BROKER_URL: Celery has one broker; name one server"),
    ("HTTP", "http://x", "GYMQ_BROKER_URL: a URL begins with redis://, rediss://, unix://, sentinel:// or redis-cluster://; docs/operations.md lists the forms"),
    ("another broker", "amqp://x", "GYMQ_BROKER_URL: a URL begins with redis://, rediss://, unix://, sentinel:// or redis-cluster://; docs/operations.md lists the forms"),
    ("a port of letters", "redis://h:abc", "GYMQ_BROKER_URL: host and port cannot be read; write [user:password@]host:port behind the scheme; docs/operations.md lists the forms"),
    ("Sentinels of no master", "sentinel://h", "GYMQ_BROKER_URL: sentinel:// needs the master's name: sentinel://host:26379/MASTER; docs/operations.md lists the forms"),
    ("a Cluster", "redis-cluster://h", "a Redis Cluster cannot be Celery's broker: set GYMQ_BROKER_URL to a single Redis, redis://host:port/db"),
]
