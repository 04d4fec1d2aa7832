"""The options of the backend `vllm`, which are checked without vLLM's being imported: here with a folder in its place."""

import sys

import pytest
from gymq_workers.model.vllm import options
from gymq_workers.model.vllm.options import VllmOptions

from gymq.errors import UsageError

FILES = {
    "__init__.py": "raise ImportError('nobody is to import this')",
    "engine/arg_utils.py": "class EngineArgs:\n    model: str\n    max_model_len: int = 0\n    dtype: str = ''\n    kv: dict\n"
    "    tensor_parallel_size: int = 1\nclass AsyncEngineArgs(EngineArgs):\n    enable_log_requests: bool = False\n",
    "tool_parsers/__init__.py": "_TOOL_PARSERS_TO_REGISTER = {'hermes': ('a', 'B'), 'llama3_json': ('c', 'D')}\n",
    "reasoning/__init__.py": "_REASONING_PARSERS_TO_REGISTER = {'qwen3': ('a', 'B')}\n",
}


def forget():
    for one in (options.package, options.engine_arguments, options.parser_names):
        one.cache_clear()


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    for name, text in FILES.items():
        path = tmp_path / "vllm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    # Where the real one is installed, too.
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    forget()
    yield
    forget()


@pytest.mark.usefixtures("vllm")
def test_engine_arguments_are_read_as_json_or_as_text():
    given = '{"max-model-len":"4096","dtype":"bfloat16","kv":"{\\"a\\":1}","enable_log_requests":"True"}'
    read = VllmOptions.read("some/model", {"engine": given})
    assert read.engine == {"max_model_len": 4096, "dtype": "bfloat16", "kv": {"a": 1}, "enable_log_requests": True}
    assert VllmOptions.read("some/model", {"engine": {"max_model_len": 7}}).engine == {"max_model_len": 7}
    assert "vllm" not in sys.modules


@pytest.mark.usefixtures("vllm")
def test_devices_are_set_before_vllm_is_imported():
    def environment(gpu):
        return VllmOptions.read("m", {"gpu": gpu}).environment()

    assert environment("3")["CUDA_VISIBLE_DEVICES"] == "3"
    assert environment("none")["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in environment(None)
    assert VllmOptions.read("m", {"gpu": "0,1"}).engine == {"tensor_parallel_size": 2}
    assert VllmOptions.read("m", {"gpu": "0,1", "engine": {"tensor_parallel_size": 1}}).engine == {"tensor_parallel_size": 1}


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize(
    ("model", "options", "parsers"),
    [
        ("Qwen/Qwen3-8B", {}, ("hermes", "qwen3")),
        ("Qwen/Qwen3-4B-Instruct-2507", {}, ("hermes", "none")),
        ("Qwen/Qwen2.5-7B-Instruct", {}, ("hermes", "none")),
        ("meta-llama/Llama-3.1-8B-Instruct", {}, ("llama3_json", "none")),
        ("me/step_100", {}, ("", "none")),
        ("Qwen/Qwen3-8B", {"tool_parser": "none", "reasoning_parser": "none"}, ("none", "none")),
        ("me/step_100", {"tool_parser": "llama3_json", "reasoning_parser": "qwen3"}, ("llama3_json", "qwen3")),
    ],
)
def test_parsers_go_by_the_models_name_unless_they_are_stated(model, options, parsers):
    assert VllmOptions.read(model, options).parsers() == parsers


@pytest.mark.usefixtures("vllm")
@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("", {}, "the model is missing"),
        ("/no/such/folder", {}, "there is no folder /no/such/folder"),
        ("m", {"gpu": "first"}, "--gpu is 'first'"),
        ("m", {"gpu": "0,,1"}, "--gpu is '0,,1'"),
        ("m", {"engine": '{"max_len":"1"}'}, "no argument 'max_len'"),
        ("m", {"engine": '{"max_model":"1"}'}, "did you mean max_model_len, model"),
        ("m", {"engine": '{"model":"x"}'}, "use --model vllm:NAME"),
        ("m", {"engine": "7"}, "write --engine KEY=VALUE"),
        ("m", {"tool_parser": "qwen3"}, "there is no tool parser 'qwen3'; vLLM's are none, hermes, llama3_json"),
        ("m", {"reasoning_parser": "x"}, "there is no reasoning parser 'x'; vLLM's are none, qwen3"),
        ("m", {"base_url": "http://x"}, "takes no base_url"),
    ],
)
def test_a_bad_option_is_told_in_one_line(model, options, says):
    with pytest.raises(UsageError) as caught:
        VllmOptions.read(model, options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_vllm_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(options, "find_spec", lambda name: None)
    forget()
    with pytest.raises(UsageError, match=r"pip install 'gymq\[vllm\]'"):
        VllmOptions.read("some/model", {})
    forget()
