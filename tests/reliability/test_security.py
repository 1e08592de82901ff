"""No code but dil's own runs, no key leaves the environment, no file is written where nobody asked for it."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from dil_cli.config.harness_schema import HarnessConfig, Recipe
from dil_cli.errors import DilError
from dil_cli.report.command import run as report

ROOT = Path(__file__).resolve().parents[2]
LENGTHS = ["model.max_length=128", "model.max_prompt_length=64"]
CLASSES = {"AutoConfig": "Config", "AutoModelForCausalLM": "Model", "AutoModelForSequenceClassification": "Reward"}
FOREIGN = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
Path({mark!r}).write_text("foreign code ran")
class Config(LlamaConfig):
    model_type = "foreign"
class Model(LlamaForCausalLM):
    config_class = Config
class Reward(LlamaForSequenceClassification):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
"""


class Trap:
    """What leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.write_text, (self.mark, "a pickle ran"))


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """A file that no test may find at its end."""
    path = tmp_path / "MARK"
    yield path
    assert not path.exists(), path.read_text()


# ---- pickles


def test_the_package_unpickles_nothing():
    found = []
    for path in [*(ROOT / "dil_cli").rglob("*.py"), *(ROOT / "hydra_plugins").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if unpickles(node):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from joblib import load", "torch.load(f)", "torch.load(f, weights_only=False)",
     "np.load(f, allow_pickle=True)", "yaml.load(f)", "pd.read_pickle(f)", "import dill as d", "import shelve"],
)  # fmt: skip
def test_what_unpickles_is_seen(code):
    assert any(unpickles(node) for node in ast.walk(ast.parse(code)))


def unpickles(node: ast.AST) -> bool:
    """Whether a node imports a pickle module, or calls a loader that may read one."""
    modules = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    if isinstance(node, ast.Import):
        return any(name.name.partition(".")[0] in modules for name in node.names)
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").partition(".")[0] in modules
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    owner = ast.unparse(node.func.value)
    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if node.func.attr == "load" and owner == "torch":
        return given.get("weights_only") != "True"
    if node.func.attr == "load" and owner == "yaml":
        return "Safe" not in ast.unparse(node)
    return node.func.attr == "read_pickle" or given.get("allow_pickle", "False") != "False"


@pytest.fixture
def reward_folder(model_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "reward"
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=0, **shape)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def judged(model_folder: Path, pairs_file: Path, judge: str, path: Path) -> list[str]:
    return [
        f"checkpoint={model_folder}", "data=local", f"data.path={pairs_file}", *LENGTHS, "benchmark=winrate",
        "benchmark.prompts=2", "benchmark.max_new_tokens=2", f"judge={judge}", f"judge.path={path}",
    ]  # fmt: skip


def test_a_reward_model_in_a_pickle_is_refused(dil_here, model_folder, pairs_file, reward_folder, mark):
    (reward_folder / "model.safetensors").unlink()
    (reward_folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(mark)))
    code, _, err = dil_here("eval", *judged(model_folder, pairs_file, "reward_model", reward_folder))
    assert code == 2, err
    assert len(err.splitlines()) == 3
    assert "safetensors" in err


def test_an_adapter_in_a_pickle_is_refused(model_folder, tmp_path, mark):
    from dil_cli.evaluate.backend import _with_adapter
    from dil_cli.evaluate.target import Target

    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"]}))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(DilError, match="safetensors"):
        _with_adapter(None, None, Target("adapter", str(folder), folder, None))


# ---- code in a model's folder


@pytest.fixture(params=["llama", "foreign"])
def foreign_model(request, model_folder: Path, tmp_path: Path, mark: Path) -> Path:
    """A model whose config asks for a Python file beside it, under a type that transformers knows or does not."""
    return foreign(model_folder, tmp_path / "foreign", mark, request.param)


def foreign(source: Path, folder: Path, mark: Path, kind: str) -> Path:
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": kind, "auto_map": {auto: f"foreign.{name}" for auto, name in CLASSES.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": [None, "foreign.Tokenizer"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (folder / "foreign.py").write_text(FOREIGN.format(mark=str(mark)))
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "foreign.py", folder / "custom_generate" / "generate.py")
    return folder


def ended(code: int, err: str, known: bool) -> None:
    """A known type is read by transformers' own class, or refused; an unknown one is refused in three lines."""
    if not known:
        assert code == 2, err
        assert len(err.splitlines()) == 3
    assert code in {0, 2}, err


def test_a_models_own_code_does_not_train(dil_here, foreign_model, small_run, mark):
    code, _, err = dil_here("train", *small_run, f"model.path={foreign_model}", "data.limit=4")
    ended(code, err, '"llama"' in (foreign_model / "config.json").read_text())


@pytest.mark.parametrize("judge", ["reward_model", "logprob"])
def test_a_judges_own_code_does_not_run(judge, dil_here, model_folder, pairs_file, tmp_path, reward_folder, mark):
    source = reward_folder if judge == "reward_model" else model_folder
    for kind in ("llama", "foreign"):
        folder = foreign(source, tmp_path / f"judge-{kind}", mark, kind)
        code, _, err = dil_here("eval", *judged(model_folder, pairs_file, judge, folder))
        ended(code, err, kind == "llama")


def test_the_code_of_what_is_evaluated_does_not_run(dil_here, foreign_model, pairs_file, mark):
    words = ["data=local", f"data.path={pairs_file}", *LENGTHS]
    code, _, err = dil_here("eval", f"checkpoint={foreign_model}", *words)
    ended(code, err, '"llama"' in (foreign_model / "config.json").read_text())


def test_a_strangers_run_cannot_allow_its_own_code(dil_here, small_run, model_folder, tmp_path, mark):
    """`model.trust_remote_code` of a manifest is its maker's word; it counts on the command line only."""
    dil_here("train", *small_run)
    (run,) = (tmp_path / "outputs").glob("local-*")
    manifest = json.loads((run / "manifest.json").read_text())
    start = foreign(model_folder, tmp_path / "start", mark, "llama")
    manifest["config"]["model"] |= {"trust_remote_code": True, "path": str(start)}
    (run / "manifest.json").write_text(json.dumps(manifest))
    (checkpoint,) = (run / "checkpoints").iterdir()
    trapped = foreign(checkpoint, tmp_path / "trapped", mark, "llama")
    shutil.rmtree(checkpoint)
    shutil.copytree(trapped, checkpoint)
    for more in ([], ["benchmark=winrate", "judge=logprob", f"judge.path={model_folder}", "benchmark.prompts=2"]):
        code, _, err = dil_here("eval", f"checkpoint={run}", "accept=[reference]", *more)
        assert code in {0, 2}, err


@pytest.mark.slow
def test_it_runs_where_it_is_allowed(dil, model_folder, small_run, tmp_path):
    """Or the tests above would show nothing."""
    mark = tmp_path / "allowed"
    folder = foreign(model_folder, tmp_path / "foreign", mark, "foreign")
    dil("train", *small_run, f"model.path={folder}", "model.trust_remote_code=true", HF_HOME=str(tmp_path / "hf"))
    assert mark.read_text() == "foreign code ran"


# ---- code that a config names

CALL = "_target_: pathlib.Path.write_text\n{pad}self: {{_target_: pathlib.Path, _args_: ['{mark}']}}\n{pad}data: ran"
YAMLS = {
    "callback": "hydra:\n  callbacks:\n    mine:\n      " + CALL.replace("{pad}", "      "),
    "launcher": "hydra:\n  launcher:\n    " + CALL.replace("{pad}", "    "),
    "sweeper": "hydra:\n  sweeper:\n    " + CALL.replace("{pad}", "    "),
    "hidden in an interpolation": "place: pathlib.Path.write_text\nhydra:\n  callbacks:\n    mine:\n      "
    + CALL.replace("{pad}", "      ").replace("pathlib.Path.write_text", "${{place}}"),
    "job_logging": "hydra:\n  job_logging:\n    handlers:\n      mine:\n        (): logging.FileHandler\n"
    "        filename: '{mark}'\n    root: {{handlers: [mine]}}",
    "hydra_logging": "hydra:\n  hydra_logging:\n    handlers:\n      mine:\n        class: logging.FileHandler\n"
    "        filename: '{mark}'\n    root: {{handlers: [mine]}}",
    "environment": "hydra:\n  job:\n    env_set: {{PYTHONPATH: '{mark}'}}",
    "shell": "hydra:\n  launcher:\n    setup: ['touch {mark}']",
    "yaml tag": "name: !!python/object/apply:os.system ['touch {mark}']",
    "model target": "model:\n  _target_: pathlib.Path",
}


@pytest.mark.parametrize("attack", YAMLS)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_yaml_runs_no_code(attack, command, dil_here, small_run, tmp_path, mark):
    (tmp_path / "theirs" / "experiment").mkdir(parents=True)
    text = "# @package _global_\n" + YAMLS[attack].format(mark=mark)
    (tmp_path / "theirs" / "experiment" / "evil.yaml").write_text(text)
    words = [*small_run, "--config-dir", str(tmp_path / "theirs"), "experiment=evil"]
    code, _, err = dil_here(command, *words, *(["seed=0,1"] if command == "sweep" else []))
    assert code == 2, err
    assert len(err.splitlines()) <= 3
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    "words",
    [["+hydra.callbacks.mine._target_=pathlib.Path"], ["hydra.launcher._target_=pathlib.Path"],
     ["hydra.job.env_set.WANDB_API_KEY=local-0123456789abcdef"], ["hydra.searchpath=[pkg://antigravity]"],
     ["--experimental-rerun", "evil.pickle"], ["--config-path", "pkg://antigravity"],
     ["hydra/job_logging=default"], ["+model._target_=pathlib.Path"], ["+loss._target_=pathlib.Path"]],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_command_line_runs_no_code(words, dil_here, small_run, tmp_path, mark):
    (tmp_path / "evil.pickle").write_bytes(pickle.dumps(Trap(mark)))
    code, out, err = dil_here("train", *small_run, *words)
    assert code == 2, err
    assert len(err.splitlines()) <= 3
    assert "0123456789abcdef" not in out + err
    assert "antigravity" not in sys.modules
    assert not (tmp_path / "outputs").exists()


def test_the_launchers_that_dil_names_are_known(dil_here):
    for launcher in ("basic", "joblib", "slurm", "submitit_local"):
        code, _, err = dil_here("sweep", f"hydra/launcher={launcher}", "seed=0,1", "--dry-run")
        assert code == 0, err


@pytest.mark.parametrize(
    "template",
    ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.system('touch ' + mark) }}",
     "{{ messages.append({}) }}", "{{ (messages|attr('__class__')).__base__.__subclasses__() }}",
     "{{ raise_exception.__globals__ }}"],
)  # fmt: skip
def test_a_template_reaches_no_code(template, dil_here, small_run, model_folder, tmp_path, mark):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / "chat_template.jinja").unlink()
    code, out, err = dil_here(
        "train", *small_run, f"model.path={folder}", f'data.template="{template}"', "data.limit=4"
    )
    assert code == 2, err
    assert "<class" not in out + err
    assert len(err.splitlines()) <= 3


def test_a_task_of_ones_own_with_a_function_is_not_read(dil_here, model_folder, tmp_path, mark):
    task = f"task: evil\ndataset_path: json\ndoc_to_text: !function evil.text\n# {mark}"
    code_file = f"from pathlib import Path\nPath({str(mark)!r}).write_text('ran')\ntext = str\n"
    for place in (tmp_path, tmp_path / "root" / "evil", tmp_path / "theirs" / "benchmark"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "evil.yaml").write_text(task)
        (place / "evil.py").write_text(code_file)
    for words in (
        ["benchmark=task", "benchmark.task=evil", f"benchmark.root={tmp_path / 'root'}"],
        ["benchmark=evil", "--config-dir", str(tmp_path / "theirs")],
    ):
        code, _, err = dil_here("eval", f"checkpoint={model_folder}", *words)
        assert code == 2, err
        assert len(err.splitlines()) <= 3
