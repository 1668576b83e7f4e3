"""README.md is true: its tables are the records', its settings, files and options exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.config import Config, to_tree
from trainer.evaluation.command import evaluate_parser
from trainer.main import COMMANDS
from trainer.training.command import train_parser

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def report_check(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "bench/report.py", "--check"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_tables_are_what_the_records_say(tmp_path: Path) -> None:
    assert report_check(ROOT).returncode == 0, report_check(ROOT).stderr
    # Negative control: a figure touched by hand is noticed.
    for part in ("bench", "README.md"):
        source = ROOT / part
        target = tmp_path / part
        if source.is_dir():
            for path in [*source.glob("*.py"), *source.glob("results/*.json")]:
                copy = target / path.relative_to(source)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
        else:
            target.write_text(re.sub(r"0\.(\d{4}) →", r"1.\1 →", README, count=1), encoding="utf-8")
    assert report_check(tmp_path).returncode == 1


def test_every_setting_it_names_exists() -> None:
    tree = to_tree(Config())
    named = set(re.findall(r"(?:--set |`)([a-z_]+)\.([a-z_]+)", README))
    settings = {(section, key) for section, key in named if section in tree and key not in ("py", "json", "jsonl")}
    assert len(settings) >= 5
    assert not [f"{section}.{key}" for section, key in settings if key not in tree[section]]


def test_every_file_it_names_exists() -> None:
    modules = set(re.findall(r"`([a-z_]+\.py)`", README))
    assert modules and all((ROOT / "trainer" / name).is_file() for name in modules)
    paths = set(re.findall(r"(?:configs|bench|tests)/[A-Za-z_]+\.(?:toml|py|md)", README))
    assert paths and all((ROOT / path).is_file() for path in paths)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "x.toml", "--set", "a.b=1", "--output-dir", "runs/first"],
        ["--resume", "--output-dir", "runs/first"],
    ],
)
def test_the_options_it_shows_are_taken(arguments: list[str]) -> None:
    assert train_parser().parse_args(arguments)
    judged = ["--model", "m", "--pairs", "p", "--dev", "d", "--baseline", "b", "--dims", "768,64", "--json", "o"]
    assert evaluate_parser().parse_args(judged)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_it_shows_for_a_command_exists(command: str) -> None:
    parser = COMMANDS[command][0]()
    known = {option for action in parser._actions for option in action.option_strings}
    lines = re.findall(rf"trainer {command} (.*)", README)
    shown = {option for line in lines for option in re.findall(r"--[a-z-]+", line)}
    assert shown <= known
    assert command == "train" or re.search(rf"trainer {command}\b", README)
