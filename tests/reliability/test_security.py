"""No code but dil's own runs, no key leaves the environment, no file is written where nobody asked for it."""

from __future__ import annotations

import ast
import gzip
import json
import pickle
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from dil_cli.config.compose import compose
from dil_cli.config.harness_schema import HarnessConfig, Recipe
from dil_cli.errors import DilError, RunFailed
from dil_cli.evaluate.backend import ask_checkpoint
from dil_cli.evaluate.data_root import data_sets
from dil_cli.evaluate.target import Target
from dil_cli.main import main, show_traceback
from dil_cli.report.command import run as report
from dil_cli.secrets import hidden, name_of_secret
from dil_cli.tracking.console import make_console
from tests.report.run_folders import write_run, write_sweep

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
    folder = tmp_path / "adapter"
    folder.mkdir()
    adapter = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": str(model_folder)}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Trap(mark)))
    config = compose("eval", [f"checkpoint={folder}", "benchmark=gsm8k"])
    with pytest.raises(DilError, match=r"safetensors, and dil loads no pickle"):
        ask_checkpoint(config, Target("adapter", str(folder), folder, None), make_console())


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

CALL = """_target_: {target}
self: {{_target_: pathlib.Path, _args_: ['{mark}']}}
data: a class ran"""
LOGS = """version: 1
handlers: {{mine: {{{how}: logging.FileHandler, filename: '{mark}'}}}}
root: {{handlers: [mine]}}"""
ATTACKS = {
    "callback": ("callbacks", CALL.replace("{target}", "pathlib.Path.write_text")),
    "hidden callback": ("callbacks", CALL.replace("{target}", "${{hydra.job.config_name}}")),
    "launcher": ("launcher", CALL.replace("{target}", "pathlib.Path.write_text")),
    "sweeper": ("sweeper", CALL.replace("{target}", "pathlib.Path.write_text")),
    "factory of a log handler": ("job_logging", LOGS.replace("{how}", "()")),
    "class of a log handler": ("hydra_logging", LOGS.replace("{how}", "class")),
    "environment": ("env", "PYTHONPATH: '{mark}'"),
    "shell": ("launcher", "defaults: [submitit_slurm]\nsetup: ['touch {mark}']"),
    "yaml tag": ("env", "NAME: !!python/object/apply:os.system ['touch {mark}']"),
}  # fmt: skip
"""What is tried: a group of Hydra's, and the YAML of a choice for it."""


def their_configs(folder: Path, group: str, text: str) -> list[str]:
    """The words that take the YAML from somebody's folder: an experiment brings it in where it can."""
    place = {"callbacks": "hydra.callbacks.mine", "env": "hydra.job.env_set"}.get(group, "")
    files = {folder / (group if place else f"hydra/{group}") / "evil.yaml": text}
    if place:
        files[folder / "experiment" / "evil.yaml"] = f"# @package _global_\ndefaults:\n  - /{group}@{place}: evil\n"
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return ["--config-dir", str(folder), "experiment=evil" if place else f"hydra/{group}=evil"]


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_a_yaml_runs_no_code(attack, command, dil_here, small_run, tmp_path, mark):
    group, text = ATTACKS[attack]
    words = [*small_run, *their_configs(tmp_path / "theirs", group, text.format(mark=mark))]
    code, _, err = dil_here(command, *words, *(["seed=0,1"] if command == "sweep" else []))
    assert code == 2, err
    assert len(err.splitlines()) <= 3
    said = {"environment": "environment variables", "shell": "shell commands", "yaml tag": "cannot be read"}
    assert said.get(attack, "to be run") in err
    assert not (tmp_path / "outputs").exists()


def test_a_slurm_users_own_shell_commands_are_taken_from_the_command_line(dil_here):
    words = ["hydra/launcher=slurm", "hydra.launcher.setup=['module load cuda']", "--cfg", "hydra"]
    code, _, err = dil_here("sweep", *words)
    assert code == 0, err


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


@pytest.mark.parametrize("launcher", ["basic", "joblib", "slurm", "submitit_local"])
def test_the_launchers_that_dil_names_are_known(launcher, dil_here):
    code, _, err = dil_here("sweep", f"hydra/launcher={launcher}", "--cfg", "hydra")
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


@pytest.mark.parametrize(
    "words",
    [pytest.param(["benchmark=task", "benchmark.task=evil", "benchmark.root=root"], marks=pytest.mark.slow),
     ["benchmark=evil", "--config-dir", "theirs"]],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_task_of_ones_own_with_a_function_is_not_read(words, dil_here, model_folder, tmp_path, mark):
    code_file = f"from pathlib import Path\nPath({str(mark)!r}).write_text('ran')\ntext = str\n"
    for place in (tmp_path, tmp_path / "root" / "evil", tmp_path / "theirs" / "benchmark"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "evil.yaml").write_text("task: evil\ndataset_path: json\ndoc_to_text: !function evil.text\n")
        (place / "evil.py").write_text(code_file)
    code, _, err = dil_here("eval", f"checkpoint={model_folder}", *words)
    assert code == 2, err
    assert len(err.splitlines()) <= 3


def test_a_data_sets_own_code_and_pickles_are_not_read(tmp_path, mark):
    import datasets

    folder = tmp_path / "root" / "evil"
    folder.mkdir(parents=True)
    (folder / "evil.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).write_text('a script ran')\n")
    (folder / "test.pkl").write_bytes(pickle.dumps(Trap(mark)))
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: test.pkl\n---\n")
    with data_sets(str(tmp_path / "root"), tmp_path / "cache", {}), pytest.raises(Exception, match="evil"):
        datasets.load_dataset("evil")


# ---- keys and tokens

KEYS = {
    "WANDB_API_KEY": "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567", "HF_TOKEN": "hf_PlantedPlantedPlanted",
    "OPENAI_API_KEY": "sk-planted-planted-planted",
}  # fmt: skip


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


def holds_no_key(content: bytes, where: object) -> None:
    for name, value in KEYS.items():
        assert value.encode() not in content, f"{name} in {where}"


def scan(folder: Path, *said: str) -> int:
    """Every byte of every file, compressed ones too; the number of files."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    for path in files:
        content = path.read_bytes()
        holds_no_key(content, path)
        if path.suffix == ".gz":
            holds_no_key(gzip.decompress(content), path)
    for text in said:
        holds_no_key(text.encode(), "what was said")
    return len(files)


@pytest.mark.usefixtures("planted")
def test_no_key_is_in_what_a_run_an_evaluation_and_a_report_leave(dil_here, small_run, tmp_path):
    words = [*small_run, "tracker=wandb", "tracker.mode=offline"]
    said = [*dil_here("train", *words)[1:]]
    assert list((tmp_path / "outputs").glob("*/wandb/offline-run-*/*.wandb"))
    (run,) = (tmp_path / "outputs").glob("local-*")
    said += dil_here("eval", f"checkpoint={run}")[1:]
    said += dil_here("report", "outputs")[1:]
    said += dil_here("cache", "list")[1:]
    assert scan(tmp_path, *said) > 20


@pytest.mark.usefixtures("planted")
def test_no_key_is_in_what_a_sweep_leaves(dil_here, small_run, tmp_path):
    code, out, err = dil_here("sweep", *small_run, "seed=0,1", "optim.epochs=0.2")
    assert code == 0, err
    assert scan(tmp_path, out, err) > 20


OVERFLOW = ["data.path=long.jsonl", "loss.reduction=sum", "loss.exp_cap=null", "optim.lr=0.02", "optim.epochs=30"]
"""-e^{s_w} of a response that is easy to learn, without its guard."""


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    ("words", "kind"),
    [(OVERFLOW, RunFailed), (["name=${oc.env:HF_TOKEN}"], DilError), ([f"name={KEYS['HF_TOKEN']}"], DilError),
     ([f"loss.{KEYS['HF_TOKEN']}=1"], DilError)],
    ids=["a run that fails", "a key by its variable", "a key as a value", "a key as a key"],
)  # fmt: skip
def test_no_key_is_in_a_traceback(words, kind, small_run, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("DIL_TRACEBACK", "1")
    rows = [{"prompt": f"say it {i}", "chosen": "a" * 60, "rejected": f"{i}"} for i in range(20)]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(sys, "argv", ["dil", "train", *small_run, *words])
    GlobalHydra.instance().clear()
    with pytest.raises(kind) as raised:
        main()
    assert sys.excepthook is show_traceback
    show_traceback(raised.type, raised.value, raised.tb)
    out, err = capfd.readouterr()
    assert "Traceback" in err
    scan(tmp_path, out, err)


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("key", ["name", "tracker.group", "tracker.tags", "output", "data.template", "loss.margin"])
def test_a_config_that_holds_a_key_is_refused(key, dil_here, small_run, tmp_path):
    for value in ("${oc.env:OPENAI_API_KEY}", KEYS["OPENAI_API_KEY"]):
        given = f"[a,{value}]" if key == "tracker.tags" else value
        code, out, err = dil_here("train", *small_run, f"{key}='{given}'" if "$" not in given else f"{key}={given}")
        assert code == 2
        scan(tmp_path, out, err)
        assert len(err.splitlines()) == 3
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("word", ["tracker.api_key", "+wandb_api_key", "judge.token", "hydra.job.env_set.HF_TOKEN"])
def test_a_key_that_was_typed_is_not_shown(word, dil_here, small_run):
    code, out, err = dil_here("train", *small_run, f"{word}=typed-by-mistake")
    assert code == 2
    assert "typed-by-mistake" not in out + err


def test_what_is_a_secret(monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "abcdefgh")
    monkeypatch.setenv("MY_LONGER_TOKEN", "abcdefghijkl")
    monkeypatch.setenv("SHORT_KEY", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "falsefalse")
    assert hidden("x abcdefghijkl abcdefgh 1 falsefalse") == "x *** *** 1 falsefalse"
    assert name_of_secret("see abcdefgh.") == "MY_TOKEN"
    assert name_of_secret("1 falsefalse") is None
    assert hidden("optim.token_budget=77 judge.key_env=X export A_KEY=...") == (
        "optim.token_budget=77 judge.key_env=X export A_KEY=..."
    )


# ---- the report's page

PAYLOAD = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'><svg onload=alert(1)>&lt;b&gt;"


class Elements(HTMLParser):
    """Every element of a page and every attribute."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def planted_everywhere(node: Any, keep: Sequence[str] = ()) -> Any:
    """The payload after every string of a JSON value, but for the values of the keys in `keep`."""
    if isinstance(node, dict):
        return {key: value if key in keep else planted_everywhere(value, keep) for key, value in node.items()}
    if isinstance(node, list):
        return [planted_everywhere(value, keep) for value in node]
    return node + PAYLOAD if isinstance(node, str) else node


def harmless(text: str, elements: Counter[str]) -> None:
    page = Elements(text)
    assert Counter(tag for tag, _ in page.found if tag in {"script", "img", "iframe", "object", "b"}) == elements
    for tag, attributes in page.found:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert not any((value or "").strip().lower().startswith("javascript:") for value in attributes.values())


def test_nothing_of_a_run_becomes_an_element_of_the_page(tmp_path):
    jobs = []
    for seed, loss in enumerate(("lsif", "dpo", "bce", "ukl", "slic")):
        folder = write_run(tmp_path / "runs", loss, seed, data__path=f"{seed}.jsonl", tracker__group="group")
        folder = folder.rename(folder.with_name(f"{folder.name}<script>alert(1)<img src=x>"))
        for name in ("manifest.json", "result.json"):
            content = planted_everywhere(json.loads((folder / name).read_text()), keep=("reduction", "checkpoint"))
            content["hash"] = f"{seed}{PAYLOAD}"
            if name == "manifest.json":
                content["environment"]["packages"][PAYLOAD] = PAYLOAD
                content["config"][f"key{PAYLOAD}"] = PAYLOAD + str(seed)
            else:
                content["alarms"] = [{"name": PAYLOAD, "step": 25, "message": PAYLOAD, "value": 3, "limit": 2}]
            (folder / name).write_text(json.dumps(content))
        (folder / "eval").mkdir()
        record = {"benchmark": PAYLOAD, "metrics": {PAYLOAD: 0.5}}
        (folder / "eval" / "x.json").write_text(json.dumps(record))
        jobs.append(([f"loss={loss}", PAYLOAD], folder))
    (jobs[3][1] / "result.json").unlink()
    (jobs[3][1] / "failure.json").write_text(json.dumps({"step": 7, "what": PAYLOAD}))
    (jobs[4][1] / "manifest.json").write_text(PAYLOAD)
    sweep = write_sweep(
        tmp_path / "sweep", jobs, name="noise<script>alert(1)<img src=x>", question=PAYLOAD, x="data.path",
        swept=["loss", "data.path"],
    )  # fmt: skip
    assert report([str(sweep), "--out", str(tmp_path / "out"), "--format", "html"]) == 0
    text = (tmp_path / "out" / "index.html").read_text()
    harmless(text, Counter())
    assert text.count("&lt;script&gt;alert(1)") > 20  # shown, as text


def test_a_page_with_a_live_payload_is_seen():
    with pytest.raises(AssertionError):
        harmless(f"<p>{PAYLOAD}</p>", Counter())


def test_marks_of_html_in_data_and_config_stay_text(dil_here, small_run, tmp_path):
    rows = [{"prompt": f"{i} {PAYLOAD}", "chosen": PAYLOAD, "rejected": f"{i}{PAYLOAD}"} for i in range(20)]
    (tmp_path / "<script>.jsonl").write_text("\n".join(map(json.dumps, rows)))
    words = ["data.path='<script>.jsonl'", "name='<script>alert(1)<'", "tracker.group='<img src=x onerror=alert(1)>'"]
    code, _, err = dil_here("train", *small_run, *words, "optim.epochs=0.2")
    assert code == 0, err
    code, _, err = dil_here("report", "outputs", "--out", "page", "--format", "html")
    assert code == 0, err
    harmless((tmp_path / "page" / "index.html").read_text(), Counter())


# ---- names of files


def listing(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if "cache" not in path.parts}


@pytest.mark.parametrize("name", ["../out", "/tmp/x", "..", "a\\b", ""])
def test_a_runs_name_is_no_path(name, dil_here, small_run, tmp_path):
    before = listing(tmp_path.parent)
    code, _, err = dil_here("train", *small_run, f"name='{name}'")
    assert code == 2, err
    assert listing(tmp_path.parent) == before


def test_a_group_names_no_file(dil_here, small_run, tmp_path):
    (tmp_path / "here").mkdir()
    words = ["tracker=wandb", "tracker.mode=offline", "output=here/outputs", "optim.epochs=0.2"]
    words += ["tracker.group=../../escaped"]  # a project with a slash is refused
    dil_here("train", *small_run, *words)
    assert list((tmp_path / "here" / "outputs").glob("*/result.json"))
    assert not list(tmp_path.rglob("*escaped*"))
    assert {path.name for path in tmp_path.iterdir()} == {"here", "pairs.jsonl"}


@pytest.mark.parametrize("name", ["../../x", "/abs", "..", "a/b"])
def test_a_benchmarks_name_is_no_path(name):
    with pytest.raises(DilError, match="without a slash"):
        HarnessConfig(name="mine", tasks={name: Recipe(task="gsm8k")})
    with pytest.raises(DilError, match="without a slash"):
        HarnessConfig(name="task", task=name)


def test_a_sweeps_name_leads_no_report_away(tmp_path):
    run = write_run(tmp_path / "runs")
    sweep = write_sweep(tmp_path / "sweep", [(["loss=lsif"], run)], name="../../../escaped")
    with pytest.raises(DilError, match="its name is a path"):
        report([str(sweep)])
    assert not list(tmp_path.parent.rglob("*escaped*"))


def test_a_result_leads_no_evaluation_away(dil_here, model_folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(model_folder, elsewhere)
    before = listing(elsewhere)
    run = write_run(tmp_path / "runs")
    for where in ("../../elsewhere", str(elsewhere)):
        result = json.loads((run / "result.json").read_text()) | {"checkpoint": where}
        (run / "result.json").write_text(json.dumps(result))
        code, _, err = dil_here("eval", f"checkpoint={run}")
        assert code == 2
        assert "lies outside of it" in err
    assert listing(elsewhere) == before


# ---- make audit


def answers(tmp_path: Path, stdout: str = "", stderr: str = "", code: int = 0) -> list[str]:
    """A command that ignores its arguments and says this."""
    file = tmp_path / "answer.py"
    file.write_text(f"import sys\nprint({stdout!r})\nprint({stderr!r}, file=sys.stderr)\nsys.exit({code})")
    return [sys.executable, str(file)]


def test_the_audit_tells_found_from_not_checked(tmp_path):
    from recipes.audit import audit

    flaw = {"id": "CVE-1", "fix_versions": ["2.0"]}
    fine, flawed = {"name": "a", "version": "1", "vulns": []}, {"name": "b", "version": "1", "vulns": [flaw]}
    unknown = {"name": "c", "skip_reason": "not found"}

    def said(packages: list[dict], code: int = 0) -> tuple[int, list[str]]:
        return audit(answers(tmp_path, json.dumps({"dependencies": packages}), code=code))

    assert said([fine]) == (0, ["audit: 1 of 1 pinned packages checked, 0 known vulnerabilities"])
    code, lines = said([fine, flawed, unknown], code=1)
    assert code == 1
    assert lines == [
        "audit: 2 of 3 pinned packages checked, 1 known vulnerabilities", "audit: 1 not checked (c)",
        "b 1: CVE-1, mended in 2.0",
    ]  # fmt: skip
    code, lines = audit(answers(tmp_path, stderr="requests.exceptions.ConnectionError: no route", code=1))
    assert (code, len(lines)) == (0, 1)
    assert "not checked" in lines[0]
    assert audit(answers(tmp_path, stderr="ERROR: no such file", code=1))[0] == 2
