"""A user's own loss: the documented example as it stands, the permission, and errors as good as ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dil_cli.config import custom
from dil_cli.errors import DilError
from dil_cli.losses import LOSSES
from dil_cli.losses.any_convex import FUNCTIONS

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "custom_loss.md").read_text()
PYTHON, CONVEX = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
YAML, SUM = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
ALLOWED = ["--config-dir", "myconf", "allow_custom=true"]


@pytest.fixture(autouse=True)
def _forget_afterwards():
    yield
    custom.load([])
    assert "soft_hinge" not in LOSSES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the documented example."""
    loss = tmp_path / "myconf" / "loss"
    loss.mkdir(parents=True)
    (loss / "soft_hinge.py").write_text(PYTHON)
    (loss / "soft_hinge.yaml").write_text(YAML)
    return loss


@pytest.mark.slow
def test_the_documented_example_trains_in_a_process_of_its_own(folder, dil, small_run, tmp_path):
    done = dil("train", *ALLOWED, "loss=soft_hinge", *small_run, "data.limit=12", "probe.pairs=2")
    assert done.returncode == 0, done.stderr
    assert "notice: code from outside the package runs: myconf/loss/soft_hinge.py" in done.stderr
    (run,) = (tmp_path / "outputs").glob("local-local-soft_hinge-*")
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["config"]["loss"] == {"name": "soft_hinge", "margin": 0.5, "reduction": "mean"}
    assert manifest["config"]["custom_sha256"].keys() == {"loss/soft_hinge.py"}
    assert manifest["loss_at_reference"] == pytest.approx(0.25)
    assert not list(folder.glob("__pycache__"))
    assert sorted(path.name for path in folder.iterdir()) == ["soft_hinge.py", "soft_hinge.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_it_is_swept_in_other_processes(launcher, folder, dil, small_run, tmp_path):
    (folder / "pearson.py").write_text(CONVEX)
    (folder / "pearson.yaml").write_text("defaults:\n  - bregman\n\nh: pearson\n")
    done = dil("sweep", *ALLOWED, "loss=soft_hinge,pearson", *small_run, "data.limit=12", f"hydra/launcher={launcher}")
    assert done.returncode == 0, done.stderr
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "outputs").glob("*/manifest.json")]
    assert [manifest["config"]["custom_sha256"].keys() for manifest in manifests] == [
        {"loss/soft_hinge.py", "loss/pearson.py"}
    ] * 2
    assert len(list((tmp_path / "outputs").glob("*/result.json"))) == 2
    assert not list(folder.glob("__pycache__"))


def test_a_file_changed_under_a_waiting_job_is_refused(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    custom.load(ALLOWED)
    sent = dict(custom.LOADED)
    custom.adopt(sent)
    custom.LOADED.clear()  # as it is in another process
    (folder / "soft_hinge.py").write_text(PYTHON + "\n")
    with pytest.raises(DilError, match=r"loss/soft_hinge.py has changed since the sweep began"):
        custom.adopt(sent)


def test_help_and_config_know_it(folder, dil_here):
    assert re.search(r"soft_hinge +squared hinge on the log-ratios", dil_here("train", *ALLOWED, "--help")[1])
    code, out, err = dil_here("train", *ALLOWED, "loss=soft_hinge", "--cfg", "job")
    assert code == 0, err
    assert "margin: 0.5" in out


def test_the_catalogue_explains_and_draws_it(folder, dil_here, tmp_path):
    code, out, err = dil_here("losses", *ALLOWED, "soft_hinge")
    assert code == 0, err
    assert "family: Ours, losses we are trying out" in out
    assert "    L = max(0, margin - (s_w - s_l))^2" in out
    assert re.search(r"\nOurs, losses we are trying out\n  soft_hinge +max", dil_here("losses", *ALLOWED)[1])
    assert dil_here("losses", *ALLOWED, "--plot", "soft_hinge,lsif")[0] == 0
    assert (tmp_path / "losses.png").is_file()
    code, _, err = dil_here("losses", "--config-dir", "myconf", "soft_hinge")
    assert err.splitlines()[0].startswith("error: soft_hinge is code from outside the package")
    assert code == 2


def test_another_text_is_another_run(folder, dil_here, tmp_path, small_run):
    words = ["loss=soft_hinge", *small_run, "data.limit=12", "probe.pairs=2"]
    assert dil_here("train", *ALLOWED, *words)[0] == 0
    (folder / "soft_hinge.py").write_text(PYTHON.replace(".relu().square()", ".relu().square() * 1.0"))
    assert dil_here("train", *ALLOWED, *words)[0] == 0
    assert len(list((tmp_path / "outputs").glob("local-local-soft_hinge-*"))) == 2


def test_without_permission_nothing_runs(folder, dil_here, tmp_path):
    (folder / "soft_hinge.py").write_text(f"open('{tmp_path}/ran', 'w').close()\n{PYTHON}")
    code, _, err = dil_here("train", "--config-dir", "myconf", "loss=soft_hinge")
    assert err.splitlines() == [
        "error: soft_hinge is code from outside the package, and it runs only if you allow it",
        "where: myconf/loss/soft_hinge.py",
        "fix:   read the file, then add allow_custom=true",
    ]
    assert code == 2
    assert dil_here("train", "--config-dir", "myconf", "loss=ukl", "--cfg", "job")[0] == 0  # ours need no permission
    assert dil_here("train", "--config-dir", "myconf", "allow_custom=false", "loss=soft_hinge")[0] == 2
    assert not (tmp_path / "ran").exists()


def test_a_loss_without_its_yaml(folder, dil_here):
    (folder / "soft_hinge.yaml").unlink()
    code, _, err = dil_here("train", "--config-dir", "myconf", "allow_custom=true", "loss=soft_hinge")
    assert code == 2
    notice, error, where, fix = err.splitlines()
    assert notice.startswith("notice: code from outside the package runs")
    assert error == "error: the loss soft_hinge is registered, and no YAML configures it"
    assert where.startswith("where: myconf/loss/soft_hinge.py")
    assert fix == "fix:   beside it soft_hinge.yaml with the lines 'defaults:' and '  - /schema/loss/soft_hinge@_here_'"


def test_a_folder_that_is_not_there(dil_here):
    code, _, err = dil_here("train", "--config-dir", "nope", "allow_custom=true")
    assert code == 2
    assert err.splitlines() == [
        "error: there is no folder nope",
        "where: --config-dir nope",
        "fix:   --config-dir ./myconf",
    ]


def test_a_yaml_cannot_allow_its_own_code(folder, dil_here):
    (folder.parent / "experiment").mkdir()
    (folder.parent / "experiment" / "sly.yaml").write_text("# @package _global_\nallow_custom: true\n")
    code, _, err = dil_here("train", "--config-dir", "myconf", "experiment=sly")
    assert err.splitlines() == [
        "error: allow_custom counts on the command line only, a YAML cannot allow its own code",
        "where: allow_custom: true",
        "fix:   leave it out of the YAML and add allow_custom=true to the command",
    ]
    assert code == 2


def test_a_convex_function_needs_no_yaml(folder, dil_here, small_run):
    (folder / "pearson.py").write_text(CONVEX)
    words = ["loss=bregman", "loss.h=pearson"]
    code, _, err = dil_here("train", *ALLOWED, *words, *small_run, "data.limit=12", "probe.pairs=2")
    assert code == 0, err
    assert "pearson" in FUNCTIONS
    code, _, err = dil_here("train", "--config-dir", "myconf", *words)
    assert code == 2
    assert err.splitlines()[0].startswith("error: no convex function is named 'pearson'; there are bce, brier,")
    assert err.splitlines()[2] == "fix:   a function of your own: docs/custom_loss.md"


def test_a_sum_is_a_yaml_alone(folder, dil_here):
    (folder / "dpo_sft.yaml").write_text(SUM)
    code, out, err = dil_here("train", "--config-dir", "myconf", "loss=dpo_sft", "loss.terms.sft=0.2", "--cfg", "job")
    assert code == 0, err
    assert re.search(r"terms:\n +dpo:\n +weight: 0.9\n +beta: 0.05\n +sft: 0.2\n", out)


FLAG = "    couples_batch: ClassVar[bool] = False\n"
RETURN = "return LossOutput((self.margin - (s_w_B - s_l_B)).relu().square())"
READ = "soft_hinge.py fails when it is read: "
TRIED = "the loss soft_hinge "
CLASS, CALL = 12, 37
MISTAKES = {
    "syntax": ("margin: float = 1.0", "margin: float = = 1", "soft_hinge.py is not Python: invalid syntax", 28, ""),
    "import": (
        "common import log_ratios", "common import ratios",
        READ + "ImportError: cannot import name 'ratios' from 'dil_cli.losses.common'", 8, "",
    ),
    "exit": ("@register\n", "raise SystemExit(3)\n@register\n", READ + "SystemExit: 3", CLASS, ""),
    "registers nothing": (
        "@register\n", "", "soft_hinge.py registers neither a loss nor a convex function", None,
        "put @register above the loss's class, or @convex above the function",
    ),
    "no dataclass": (
        "@dataclass(kw_only=True)\n", "", "class SoftHinge is not a dataclass", CLASS,
        "put @register above @dataclass(kw_only=True)",
    ),
    "decorators the wrong way round": (
        "@register\n@dataclass(kw_only=True)\n", "@dataclass(kw_only=True)\n@register\n",
        "class SoftHinge is not a dataclass", CLASS, "put @register above @dataclass(kw_only=True)",
    ),
    "no name": (
        '    name: ClassVar[str] = "soft_hinge"\n', "", "class SoftHinge has no name", CLASS,
        'name: ClassVar[str] = "my_loss"',
    ),
    "bad name": (
        '"soft_hinge"', '"Soft Hinge"', "the name of class SoftHinge is 'Soft Hinge', it must be like 'my_loss'", CLASS,
        "",
    ),
    "missing member": (
        FLAG, "", "class SoftHinge lacks couples_batch", CLASS, "couples_batch: ClassVar[bool] = False",
    ),
    "wrong member": (
        FLAG, FLAG.replace("False", "'no'"), "couples_batch of class SoftHinge is 'no', not True or False", CLASS, "",
    ),
    "no reduction": (
        "    reduction: Reduction = Reduction.mean\n", "", "class SoftHinge lacks reduction", CLASS,
        "reduction: Reduction = Reduction.mean",
    ),
    "no at_reference": ("def at_reference", "def at_ref", "class SoftHinge lacks at_reference", CLASS, ""),
    "a name of ours": ('"soft_hinge"', '"dpo"', "two losses are named 'dpo'", None, "give the new one another name"),
    "a field no config can hold": (
        "margin: float = 1.0", "margin: complex = 1.0", "a config cannot hold a field of class SoftHinge (margin: ",
        CLASS, "float, int, bool, str, an Enum, or one of them | None",
    ),
    "takes the mean": (
        RETURN, RETURN.replace(".square()", ".square().mean()"), TRIED + "returns () for 3 pairs", CLASS,
        "one value per pair, shape (3,); the step takes the mean",
    ),
    "returns a tensor": (
        RETURN, RETURN.replace("LossOutput", ""), TRIED + "returns Tensor", CLASS, "return LossOutput(loss_B)",
    ),
    "no gradient": (RETURN, RETURN.replace(".relu()", ".detach()"), TRIED + "carries no gradient", CLASS, ""),
    "an error of its own": (
        RETURN, RETURN.replace("self.margin -", "self.margn -"),
        TRIED + "fails on three ordinary pairs: AttributeError: 'SoftHinge' object has no attribute 'margn'", CALL, "",
    ),
    "not finite": (
        RETURN, RETURN.replace(".square()", ".square() / 0"), TRIED + "is not finite on three ordinary pairs", CLASS,
        "",
    ),
    "another value at the reference": (
        "return self.margin**2", "return 1.5", TRIED + "is 0.25 where policy = reference, at_reference says 1.5",
        CLASS, "return 0.25 there, or None if it depends on the data",
    ),
    "coupled in secret": (
        RETURN, RETURN.replace("s_w_B - s_l_B", "s_w_B - s_l_B.mean()"),
        TRIED + "gives a pair another value when it is alone", CLASS, "couples_batch: ClassVar[bool] = True",
    ),
    "uses what it says it does not need": (
        "needs_rejected: ClassVar[bool] = True", "needs_rejected: ClassVar[bool] = False",
        TRIED + "uses the rejected response", CLASS, "needs_rejected: ClassVar[bool] = True",
    ),
    "a reference it did not ask for": (
        "needs_reference: ClassVar[bool] = True", "needs_reference: ClassVar[bool] = False",
        "the loss uses reference log-probs and these pairs have none", None, "needs_reference: ClassVar[bool] = True",
    ),
}  # fmt: skip
"""Text of the example -> what a slip makes of it, the sentence it is answered with, the line, the fix."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_users_file_are_three_lines(mistake, folder, dil_here):
    old, new, what, line, fix = MISTAKES[mistake]
    assert old in PYTHON
    (folder / "soft_hinge.py").write_text(PYTHON.replace(old, new))
    code, _, err = dil_here("train", *ALLOWED, "loss=soft_hinge")
    first, second, third = [text for text in err.splitlines() if not text.startswith("notice: ")]
    assert first.startswith(f"error: {what}")
    assert second.startswith("where: ")
    if line is not None:
        assert second == f"where: myconf/loss/soft_hinge.py, line {line}"
    assert third.startswith("fix:   ")
    if fix:
        assert third == f"fix:   {fix}"
    assert code == 2


def test_not_text_at_all(folder, dil_here):
    (folder / "soft_hinge.py").write_bytes(b"\xff\xfe\x00loss")
    code, _, err = dil_here("train", *ALLOWED, "loss=soft_hinge")
    assert err.splitlines()[1].startswith("error: soft_hinge.py is not Python")
    assert code == 2


def test_a_yaml_without_a_schema(folder, dil_here):
    (folder / "bare.yaml").write_text("# nothing\nbeta: 1\n")
    code, _, err = dil_here("train", "--config-dir", "myconf", "loss=bare")
    assert err.splitlines() == [
        "error: the loss has no schema, so nothing says what it is",
        "where: loss/*.yaml of --config-dir",
        "fix:   defaults: [/schema/loss/NAME@_here_] at the top of its YAML",
    ]
    assert code == 2
