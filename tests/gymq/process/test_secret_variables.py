"""Which variables are secrets, and which processes they reach."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gymq.process.child_process import ChildProcess
from gymq.process.secret_variables import forget_secrets, is_secret, without_secrets


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPENAI_API_KEY", "sk-1"),
        ("hf_token", "x"),
        ("PGPASSWORD", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("GITHUB_PAT", "x"),
        ("GYMQ_REDIS_URL", "redis://:secret@h:1/0"),
        ("DATABASE", "postgres://me:secret@h/db"),
    ],
)
def test_a_name_or_a_url_tells_a_secret(name: str, value: str):
    assert is_secret(name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CUDA_VISIBLE_DEVICES", "0,1"),
        ("NCCL_SOCKET_IFNAME", "eth0"),
        ("HTTPS_PROXY", "http://me:secret@proxy:3128"),
        ("no_proxy", "localhost"),
        ("LANG", "C.UTF-8"),
        ("LC_ALL", "C"),
        ("PATH", "/usr/bin"),
        ("LD_LIBRARY_PATH", "/usr/lib"),
        ("HF_HOME", "/cache"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("PWD", "/home"),
        ("GYMQ_REDIS_URL", "unix:///run/server.sock"),
        ("MY_TABLE", "https://me@h:443/x"),
    ],
)
def test_devices_proxies_languages_and_paths_are_none(name: str, value: str):
    assert not is_secret(name, value)


def test_a_child_gets_no_secret_but_those_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("ONE_TOKEN", "TWO_TOKEN", "THREE_TOKEN", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, name.lower())
    code = "import os; print(sorted(name for name in os.environ if name.endswith(('TOKEN', 'DEVICES'))))"
    child = ChildProcess(
        [sys.executable, "-c", code], {"THREE_TOKEN": "given"}, "child", tmp_path / "log", secrets=("TWO_TOKEN",)
    )
    assert child.wait(20)
    assert child.tail(1) == ["['CUDA_VISIBLE_DEVICES', 'THREE_TOKEN', 'TWO_TOKEN']"]


def test_a_process_forgets_the_secrets_that_it_does_not_need(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"ONE_TOKEN": "1", "TWO_TOKEN": "2", "GYMQ_REDIS_URL": "redis://:secret@h:1/0"}.items():
        monkeypatch.setenv(name, value)
    before = without_secrets(os.environ)
    forget_secrets(["TWO_TOKEN"])
    assert dict(os.environ) == {**before, "TWO_TOKEN": "2", "GYMQ_REDIS_URL": "redis://:secret@h:1/0"}
