"""The wheel works in another directory, without the repository: data, model and configs travel in it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["data.limit=8", "optim.batch_size=4", "probe.pairs=2", "probe.times=1", "tracker=none"]
"""The bundled model on 8 of its pairs."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the unpacked wheel, and nothing of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(folder / "site"), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    return folder / "site"


def dil(installed: Path, folder: Path, *argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """`dil ARGV` of the installed wheel in `folder`; it must end with exit code `code`."""
    entry = "import sys; from dil_cli.main import main; sys.argv[0] = 'dil'; main()"
    env = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", entry, *argv],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def test_it_is_the_installed_package_that_runs(installed: Path, tmp_path: Path):
    env = os.environ | {"PYTHONPATH": str(installed)}
    code = "import dil_cli.config.paths as p; print(p.conf_dir())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == installed / "dil_cli" / "conf"


@pytest.mark.slow
def test_the_doctor_of_a_wheel_knows_the_tested_versions(installed: Path, tmp_path: Path):
    assert (installed / "dil_cli" / "constraints.txt").read_text() == (ROOT / "constraints.txt").read_text()
    findings = json.loads(dil(installed, tmp_path, "doctor", "--json").stdout)["findings"]
    (packages,) = (finding for finding in findings if finding["name"] == "packages")
    assert "not known here" not in packages["text"]
    assert packages["facts"]["packages"].keys() > {"torch", "transformers", "packaging"}


@pytest.mark.slow
def test_the_wheel_trains_the_bundled_model_with_a_users_own_group(installed: Path, tmp_path: Path):
    mine = tmp_path / "myconf" / "loss"
    mine.mkdir(parents=True)
    (mine / "gentle.yaml").write_text("# DPO, gently\ndefaults:\n  - /schema/loss/dpo@_here_\nbeta: 0.02\n")
    text = dil(installed, tmp_path, "train", "--config-dir", "myconf", "--help").stdout
    assert ["gentle", "DPO,", "gently"] in [line.split() for line in text.splitlines()]
    dil(installed, tmp_path, "train", "--config-dir", "myconf", "loss=gentle", *SMALL)
    (run,) = (tmp_path / "outputs").glob("tiny-gsm8k_pairs-gentle-*")
    assert (run / "result.json").is_file()
    assert "beta: 0.02" in (run / "config.yaml").read_text()


def documented_files(folder: Path) -> list[str]:
    """Write the files of docs/custom_loss.md under `folder`: a path in backticks, then a block of what is in it."""
    document = (ROOT / "docs" / "custom_loss.md").read_text()
    found = re.findall(r"`(myconf/[\w/]+\.(?:py|yaml))`[^\n]*:\n\n```\w+\n(.*?)```", document, re.DOTALL)
    for name, text in found:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [name for name, _ in found]


@pytest.mark.slow
def test_the_wheel_trains_the_documented_loss_of_a_users_own(installed: Path, tmp_path: Path):
    """docs/custom_loss.md as it stands, beside a wheel in which nothing was edited: refused, then allowed."""
    python, yaml = "myconf/loss/soft_hinge.py", "myconf/loss/soft_hinge.yaml"
    assert documented_files(tmp_path) == [python, yaml, "myconf/loss/dpo_sft.yaml"]
    before = {path: path.stat().st_mtime_ns for path in installed.rglob("*.py")}
    own = ["train", "--config-dir", "myconf", "loss=soft_hinge", *SMALL]

    refused = dil(installed, tmp_path, *own, code=2)
    assert refused.stderr.splitlines() == [
        "error: soft_hinge is code from outside the package, and it runs only if you allow it",
        f"where: {python}",
        "fix:   read the file, then add allow_custom=true",
    ]
    assert not (tmp_path / "outputs").exists()

    done = dil(installed, tmp_path, *own, "allow_custom=true")
    assert f"notice: code from outside the package runs: {python}" in done.stderr
    (run,) = (tmp_path / "outputs").glob("tiny-gsm8k_pairs-soft_hinge-*")
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["config"]["loss"] == {"name": "soft_hinge", "margin": 0.5, "reduction": "mean"}
    assert manifest["config"]["custom_sha256"].keys() == {"loss/soft_hinge.py"}
    assert manifest["loss_at_reference"] == pytest.approx(0.25, rel=1e-5)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[0] == pytest.approx(0.25, rel=1e-5)  # the first step is taken at the reference
    assert len(losses) == 2
    assert losses[1] != losses[0]
    assert (run / "result.json").is_file()
    assert {path: path.stat().st_mtime_ns for path in installed.rglob("*.py")} == before


def test_licences_travel_with_what_they_cover(installed: Path):
    data = installed / "dil_cli" / "bundled" / "data"
    assert {"LICENSE-grade-school-math", "LICENSE-hh-rlhf", "README.md"} <= {path.name for path in data.iterdir()}
    model = installed / "dil_cli" / "bundled" / "models" / "tiny"
    assert (model / "README.md").is_file()
    assert sum(path.stat().st_size for path in model.iterdir()) < 10e6
