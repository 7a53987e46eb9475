from __future__ import annotations

import re
from pathlib import Path

import torch
import yaml

from dropgen.__main__ import _parser
from dropgen.config import load_experiment
from dropgen.platform.training.bench import trials_of

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_loop_of_the_readme_trains_a_network() -> None:
    (code,) = blocks("python")
    names: dict[str, object] = {}
    torch.manual_seed(0)
    before, _, loop = code.partition("\nfor ")
    exec(before, names)
    network = names["network"]
    assert isinstance(network, torch.nn.Module)
    weight = next(network.parameters())
    initial = weight.detach().clone()
    exec(f"for {loop}", names)
    loss = names["loss"]
    assert isinstance(loss, torch.Tensor)
    assert torch.isfinite(loss)
    assert not torch.equal(weight, initial)


def test_the_experiment_of_the_readme_is_valid(tmp_path: Path) -> None:
    study, experiment = blocks("yaml")
    assert {"name", "source", "classes", "spacing", "crop", "intensity"} < set(yaml.safe_load(study))
    (tmp_path / "experiment.yaml").write_text(experiment)
    loaded = load_experiment(tmp_path / "experiment.yaml", tmp_path)
    assert len(trials_of(loaded)) == 10
    assert all(size % 2**loaded.network.downs == 0 for size in yaml.safe_load(study)["crop"])


def test_the_commands_of_the_readme_parse() -> None:
    lines = re.findall(r"^\.venv/bin/dropgen (.*?)(?:\s+#.*)?$", README, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        _parser().parse_args(line.split())


def test_every_file_that_the_readme_names_exists() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert [target for target in targets if not (REPOSITORY / target).exists()] == []
