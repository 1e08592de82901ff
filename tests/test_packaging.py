"""The wheel works in another directory, without the repository: data, model and configs travel in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


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


def dil(installed: Path, folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from dil_cli.main import main; sys.argv[0] = 'dil'; main()"
    env = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_it_is_the_installed_package_that_runs(installed: Path, tmp_path: Path):
    env = os.environ | {"PYTHONPATH": str(installed)}
    code = "import dil_cli.config.paths as p; print(p.conf_dir())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()) == installed / "dil_cli" / "conf"


def test_the_wheel_trains_the_bundled_model_with_a_users_own_group(installed: Path, tmp_path: Path):
    mine = tmp_path / "myconf" / "loss"
    mine.mkdir(parents=True)
    (mine / "gentle.yaml").write_text("# DPO, gently\ndefaults:\n  - /schema/loss/dpo@_here_\nbeta: 0.02\n")
    text = dil(installed, tmp_path, "train", "--config-dir", "myconf", "--help").stdout
    assert ["gentle", "DPO,", "gently"] in [line.split() for line in text.splitlines()]
    small = ["data.limit=8", "optim.batch_size=4", "probe.pairs=2", "probe.times=1", "tracker=none"]
    dil(installed, tmp_path, "train", "--config-dir", "myconf", "loss=gentle", *small)
    (run,) = (tmp_path / "outputs").glob("tiny-gsm8k_pairs-gentle-*")
    assert (run / "result.json").is_file()
    assert "beta: 0.02" in (run / "config.yaml").read_text()


def test_licences_travel_with_what_they_cover(installed: Path):
    data = installed / "dil_cli" / "bundled" / "data"
    assert {"LICENSE-grade-school-math", "LICENSE-hh-rlhf", "README.md"} <= {path.name for path in data.iterdir()}
    model = installed / "dil_cli" / "bundled" / "models" / "tiny"
    assert (model / "README.md").is_file()
    assert sum(path.stat().st_size for path in model.iterdir()) < 10e6
