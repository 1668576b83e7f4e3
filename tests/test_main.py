"""The command line and what it shows."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from trainer import errors
from trainer.errors import InputError
from trainer.main import COMMANDS, cli
from trainer.system import console as shown
from trainer.system.arguments import parse_dims
from trainer.training.command import default_config

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "arguments",
    [["evluate"], ["--set"], ["--no-such-option"], ["evaluate"], ["--config", "nowhere.toml"], ["train", "x"]],
)
def test_a_bad_command_line_is_one_line_and_exit_2(arguments, capfd):
    assert cli(arguments) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize("command", list(COMMANDS))
def test_out_of_memory_says_what_that_command_can_do(command, monkeypatch, capfd):
    def exhausted(_):
        raise MemoryError

    parser = COMMANDS[command][0]
    monkeypatch.setitem(COMMANDS, command, (parser, exhausted))
    needed = {
        "evaluate": ["--model=x", "--pairs=y"],
        "lint": ["--pairs=y"],
        "build-pairs": ["--tickets=x", "--output=y"],
        "report": ["x"],
    }
    assert cli([command, *needed.get(command, [])]) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: out of memory: ") and said.count("\n") == 1
    assert ("train.tokens_per_chunk" in said) is (command == "train")  # no other command has this setting
    named = set(re.findall(r"--[a-z-]+", said))
    options = {option for action in parser()._actions for option in action.option_strings}
    assert named <= options, "it names options that the command has"


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        cli(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(option in said for option in ("--config", "--set", "--output-dir", "--resume"))


def test_dims():
    assert parse_dims("768,64") == (768, 64) and parse_dims(None) == ()
    for text in ("0", "a", "64,64", "64,"):
        with pytest.raises(InputError):
            parse_dims(text)


def test_the_default_config_is_there():
    assert default_config().is_file()


@pytest.mark.parametrize("command", [["-m", "trainer"], [str(ROOT / "trainer" / "main.py")]])
def test_it_starts_as_a_module_and_as_a_file_from_any_folder(command, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command, "--config", "nowhere.toml"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "nowhere.toml" in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(terminal, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(shown, "console", Console(file=out, force_terminal=terminal, width=100))
    monkeypatch.setattr(shown, "PLAIN_INTERVAL_S", 0.0)
    with shown.progress("Working", 4, done=1) as advance:
        for _ in range(3):
            advance(note="loss 0.5")
    said = out.getvalue()
    assert "Working" in said and ("\x1b" in said) is terminal
    if not terminal:
        assert said.splitlines()[-1] == "Working: 4/4, 0 s left  loss 0.5" and len(said.splitlines()) == 3


def test_items_are_tracked_to_the_last(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(shown, "console", Console(file=out, width=100))
    monkeypatch.setattr(shown, "PLAIN_INTERVAL_S", 0.0)
    assert list(shown.tracked(["a", "b"], "Reading")) == ["a", "b"] and list(shown.tracked([], "Nothing")) == []
    assert out.getvalue().splitlines()[-1] == "Reading: 2/2, 0 s left"


def test_other_ranks_are_silent(monkeypatch, capfd):
    quiet = Console(stderr=True, quiet=True)
    monkeypatch.setattr(shown, "console", quiet)
    with shown.progress("Working", 1) as advance:
        advance()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("kind", [kind for kind in vars(errors).values() if isinstance(kind, type)])
def test_every_message_is_a_line_that_any_terminal_shows(kind):
    message = "two\nlines, \x1b[31m a colour, \x00, half a pair \ud800, Übergröße 机"
    assert str(kind(message)) == r"two\nlines, \x1b[31m a colour, \x00, half a pair \ud800, Übergröße 机"
