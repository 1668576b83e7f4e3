"""The command line and what it shows."""

from __future__ import annotations

import errno
import inspect
import io
import os
import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from trainer import errors
from trainer.config import Config, setting_keys
from trainer.config_data import SourceConfig
from trainer.config_file import to_tree
from trainer.config_rules import settings_of
from trainer.errors import InputError
from trainer.main import COMMANDS, OPTIONS, cli, in_words_of, main
from trainer.system import console as shown
from trainer.system.arguments import parse_dims
from trainer.training.command import default_config
from trainer.training.settings_command import field_docstrings

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    "arguments",
    [["evluate"], ["--set"], ["--no-such-option"], ["evaluate"], ["--config", "nowhere.toml"], ["train", "x"]],
)
def test_a_bad_command_line_is_one_line_and_exit_2(arguments, capfd):
    assert cli(arguments) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "is_said"),
    [
        (["train", "train.seed=1"], True),
        (["train", "--set", "loss.dims=[256,", "128]"], True),
        (["lint", "--pairs", "a.json", "extra"], False),
    ],
)
def test_words_that_belong_to_no_option_are_told_of_quotes(arguments, is_said, capfd):
    assert cli(arguments) == 2
    said = capfd.readouterr().err
    assert f"unrecognized arguments: {arguments[-1]}; " in said and said.count("\n") == 1
    assert ("behind a --set of its own, and a value with spaces between single quotes" in said) is is_said


TICKET_COLUMNS = ("--number-column=n", "--text-columns=t")
PAIRS = ("--label-scale=5", "--positive-threshold=3", "--columns=label=same")
FILES = ("--encoding=cp1252", "--separator=;")


@pytest.mark.parametrize(
    ("command", "nothing"),
    [
        ("promote m --over n --test p.json", TICKET_COLUMNS),
        ("promote m --over n --test p.json --corpus t.csv", ("--number-column=n", "--allow-overlap=0.1")),
        ("promote m --over n --test t.csv --cluster-column c", (*PAIRS, "--allow-overlap=0.1")),
        ("label --output l.json --pairs p.json", (*TICKET_COLUMNS, "--category-column=c")),
        ("label --output l.json --pairs RUN", (*TICKET_COLUMNS, *PAIRS, *FILES, "--model=m", "--threshold=0.5")),
        ("label --output l.json --tickets t.csv", PAIRS),
        ("label --output l.json --choose agreement", (*TICKET_COLUMNS, *PAIRS, *FILES, "--model=m", "--seed=1")),
        ("search --index i --text x", (*TICKET_COLUMNS, *FILES)),
        ("export --model m", (*PAIRS, *FILES)),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(command, nothing, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN").mkdir()
    (tmp_path / "RUN" / "config.toml").write_text("")
    for option in nothing:
        assert cli([*command.split(), option]) == 2
        said = capfd.readouterr().err
        assert said.startswith(f"error: {option.partition('=')[0]} means nothing ") and said.count("\n") == 1
        assert said.endswith(f": leave it out, or see trainer {command.split()[0]} --help\n")


@pytest.mark.parametrize("command", list(COMMANDS))
def test_out_of_memory_says_what_that_command_can_do(command, monkeypatch, capfd):
    def exhausted(_):
        raise MemoryError

    parser = COMMANDS[command][0]
    monkeypatch.setitem(COMMANDS, command, (parser, exhausted))
    needed = {
        "evaluate": ["--model=x", "--pairs=y"],
        "promote": ["x", "--over=y", "--test=z"],
        "lint": ["--pairs=y"],
        "label": ["--output=x"],
        "build-pairs": ["--tickets=x", "--output=y"],
        "report": ["x"],
        "index": ["--model=x", "--tickets=y", "--output=z"],
        "search": ["--index=x", "--text=y"],
        "duplicates": ["--index=x", "--threshold=0.9"],
        "export": ["--model=x"],
        "push": ["x", "y"],
    }
    assert cli([command, *needed.get(command, [])]) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: out of memory: ") and said.count("\n") == 1
    assert ("train.tokens_per_chunk" in said) is (command == "train")  # no other command has this setting
    named = set(re.findall(r"--[a-z-]+", said))
    options = set(re.findall(r"--[a-z-]+", parser().format_help()))
    assert named <= options, "it names options that the command has"


def test_an_interrupt_is_a_line_and_130(monkeypatch, capfd):
    monkeypatch.setattr("trainer.main.cli", raise_interrupt)
    monkeypatch.setattr("trainer.main.NUMBERS", ())
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130 and capfd.readouterr().err.splitlines() == ["error: interrupted"]


def raise_interrupt():
    raise KeyboardInterrupt


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as ended:
        cli(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(option in said for option in ("--config", "--set", "--output-dir", "--resume"))
    epilog = COMMANDS["train"][0]().epilog
    assert COMMANDS.keys() - {"train"} <= set(re.findall(r"[a-z-]+", epilog)), "it names every other command"


def test_a_reader_that_has_enough_is_no_error():
    """As `| head` is: here nobody reads from the first byte on."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "trainer", "settings"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_pipe_that_breaks_is_an_error(monkeypatch, capfd):
    """Negative control: standard output is read."""

    def broken(_):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setitem(COMMANDS, "settings", (COMMANDS["settings"][0], broken))
    assert cli(["settings"]) == 5
    assert "Broken pipe" in capfd.readouterr().err


def settings_shown(arguments, capsys):
    assert cli(["settings", *arguments]) == 0
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_settings_are_lines_of_key_default_type_and_meaning(capsys):
    rows = settings_shown([], capsys)
    assert [row[0] for row in rows] == setting_keys()
    tree = {}
    for key, default, kind, meaning in rows:
        section, name = key.split(".")
        tree.setdefault(section, {})[name] = tomllib.loads(f"value = {default}")["value"]
        assert kind and meaning[-1] in ".)" and len(meaning) > 10
    assert tree == to_tree(Config())
    assert settings_shown(["optim"], capsys) == [row for row in rows if row[0].startswith("optim.")]
    assert settings_shown(["lora.targets"], capsys) == [row for row in rows if row[0] == "lora.targets"]
    assert "\x1b" not in str(rows)


def test_every_field_has_a_docstring_under_it():
    fields = {
        (cls.__name__, name) for cls in (*settings_of(Config).values(), SourceConfig) for name in settings_of(cls)
    }
    modules = {sys.modules[cls.__module__] for cls in (Config, SourceConfig)}
    documented = field_docstrings("\n".join(map(inspect.getsource, modules)))
    assert documented.keys() == fields and all(documented.values())
    # Negative control: a string that stands elsewhere is no meaning.
    assert field_docstrings('class A:\n    """Doc."""\n    x: int = 0\n    y: int = 1\n    """Of y."""') == {
        ("A", "y"): "Of y."
    }


def test_settings_are_a_table_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    assert cli(["settings", "loss"]) == 0
    said = capsys.readouterr().out
    assert "meaning" in said and "loss.pair_weight" in said and "\t" not in said
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", said).splitlines())) <= 100


@pytest.mark.parametrize(
    ("section", "hint"),
    [
        ("optimizer", "did you mean optim?"),
        ("epochs", "did you mean curriculum.epochs?"),
        ("train.epochs", "did you mean curriculum.epochs?"),
        ("zzz", "known are model, lora, "),
    ],
)
def test_an_unknown_section_is_one_line_with_the_nearest(section, hint, capfd):
    assert cli(["settings", section]) == 2
    said = capfd.readouterr()
    assert said.err.startswith(f"error: unknown section or setting {section!r}; {hint}")
    assert said.err.count("\n") == 1 and not said.out


@pytest.mark.slow
def test_settings_and_help_do_not_wait_for_torch():
    script = "import sys; from trainer.main import cli; cli(['settings']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], env=ENVIRONMENT, stdout=subprocess.DEVNULL).returncode == 0


def test_the_package_tells_type_checkers_that_it_has_types():
    assert (files("trainer") / "py.typed").is_file()


def test_dims():
    assert parse_dims("768,64") == (768, 64) and parse_dims(None) == ()
    for text in ("0", "a", "64,64", "64,"):
        with pytest.raises(InputError):
            parse_dims(text)


def test_the_default_config_is_there():
    assert default_config().is_file()


@pytest.mark.slow
@pytest.mark.parametrize("command", [["-m", "trainer"], [str(ROOT / "trainer" / "main.py")]])
def test_it_starts_as_a_module_and_as_a_file_from_any_folder(command, tmp_path):
    done = subprocess.run(
        [sys.executable, *command, "--config", "nowhere.toml"],
        cwd=tmp_path,
        env=ENVIRONMENT,
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
        assert said.splitlines()[-1] == "Working: 4/4, 0:00:00 left  loss 0.5" and len(said.splitlines()) == 3


@pytest.mark.slow
def test_a_pipe_gets_no_escape_codes():
    """Whatever the environment says of colours: of a bar, a table and a style."""
    script = (
        "from trainer.system.console import console, progress\nfrom rich.table import Table\n"
        "with progress('Working', 2) as advance: advance()\n"
        "console.print(Table('a', title='t'), style='bold red'); console.print('x', style='red')\n"
        "from trainer.main import cli; cli(['settings', 'optim'])"
    )
    forced = {"FORCE_COLOR": "1", "CLICOLOR_FORCE": "1", "TTY_COMPATIBLE": "1", "TERM": "xterm-256color"}
    done = subprocess.run([sys.executable, "-c", script], env={**ENVIRONMENT, **forced}, capture_output=True)
    assert done.returncode == 0 and b"x" in done.stderr and b"optim.lr\t" in done.stdout
    assert b"\x1b" not in done.stderr + done.stdout


def test_more_than_was_expected_is_no_time_below_zero(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(shown, "console", Console(file=out, width=100))
    monkeypatch.setattr(shown, "PLAIN_INTERVAL_S", 0.0)
    with shown.progress("Working", 1) as advance:
        advance()
        advance()
    assert "-" not in out.getvalue()


@pytest.mark.parametrize(
    ("command", "message", "said"),
    [
        ("train", "model.name = a/b: pooling max; set model.pooling", None),
        (
            "evaluate",
            "model.name = a/b: pooling max; set model.pooling",
            "model a/b: pooling max; set model.pooling (a setting of trainer train)",
        ),
        ("lint", "set data.label_scale (now 1) to the highest", "set --label-scale (now 1) to the highest"),
        ("lint", 'as in data.columns = ["label=same"]', 'as in --columns "label=same"'),
        ("evaluate", 'data.columns = ["text1=a \\"b\\"", "label=x"]', '--columns "text1=a \\"b\\"" "label=x"'),
        ("lint", "correct data.columns", "correct --columns"),
        ("build-pairs", "set data.encoding to cp1251", "set --encoding to cp1251"),
        ("build-pairs", "trainer train --set data.train=a.csv", None),  # a command to copy
        ("train", 'data.columns = ["label=same"]', None),
        ("evaluate", "or correct data.positive_threshold", "or correct --positive-threshold"),
        ("build-pairs", "model.max_length = 9: lower", "model.max_length (a setting of trainer train) = 9: lower"),
        ("evaluate", "x/data.train: no file; data.train.json, my-data.dev", None),  # paths are no settings
        ("settings", "did you mean optim.lr?", None),
    ],
)
def test_hints_are_in_the_words_of_the_command(command, message, said):
    assert in_words_of(command, message) == (message if said is None else said)


def test_an_option_that_needs_another_says_so(capfd):
    assert cli(["--allow-inexact-resume"]) == 2
    assert "add --resume" in capfd.readouterr().err


def test_every_option_that_stands_for_a_setting_is_there():
    for command, options in OPTIONS.items():
        assert set(options) <= set(setting_keys())
        help_text = COMMANDS[command][0]().format_help()
        assert all(option in help_text for option in options.values())


@pytest.mark.parametrize(
    "command",
    [
        "lint --pairs FILE --json FILE",
        "lint --pairs other.json --eval FILE --model m --doubtful FILE",
        "evaluate --model m --pairs other.json --forgetting FILE --json FILE",
        "evaluate --model m --tickets FILE --duplicate-column d --json FILE",
        "promote m --over n --test FILE --record FILE",
        "promote m --over n --test other.json --corpus FILE --record FILE",
    ],
)
def test_what_a_command_reads_it_does_not_write(command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "pairs.json"
    file.write_text('{"texts1": ["a"], "texts2": ["b"], "labels": [1]}')
    (tmp_path / "same.json").symlink_to(file)
    before = file.read_bytes()
    assert cli([word.replace("FILE", "pairs.json") for word in command.split()]) == 5
    said = capfd.readouterr().err
    assert said.startswith("error: pairs.json: ") and "name another file as --" in said and said.count("\n") == 1
    *reading, _ = (word.replace("FILE", "pairs.json") for word in command.split())
    assert cli([*reading, "same.json"]) == 5  # by another name
    assert cli([*reading, "output.json"]) in (1, 2)  # a new file is no such case: the model or the pairs are
    assert file.read_bytes() == before


def test_two_outputs_are_not_one_file(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.json").symlink_to(tmp_path / "out.json")
    for name in ("out.json", "link.json"):
        assert cli(["lint", "--pairs", "p.json", "--model", "m", "--doubtful", "./out.json", "--json", name]) == 2
        assert capfd.readouterr().err.startswith(f"error: --json {name}: is what --doubtful names too: name another")


@pytest.mark.parametrize(
    ("seconds", "shown_as"), [(0.4, "0:00:00"), (802, "0:13:22"), (59.6, "0:01:00"), (360_000, "100:00:00")]
)
def test_times_are_hours_minutes_and_seconds(seconds, shown_as):
    assert shown.clock_time(seconds) == shown_as


class Notebook:
    """Stands in for IPython: keeps the displays of each cell, each as the texts that it has shown."""

    def __init__(self):
        self.execution_count, self.displays = 1, []

    def display(self, content, **options):
        assert options == {"raw": True, "display_id": True}
        texts = [content["text/plain"]]
        self.displays.append((self.execution_count, texts))
        return SimpleNamespace(update=lambda content, raw: texts.append(content["text/plain"]))


def test_a_notebook_has_one_progress_display_a_cell(monkeypatch, capfd):
    notebook = Notebook()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: notebook))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=notebook.display))
    monkeypatch.setattr(shown, "console", Console(force_jupyter=True))
    monkeypatch.setattr(shown, "NOTEBOOK_INTERVAL_S", 0.0)
    shown.cell_display.cache_clear()
    for cell in (1, 2):
        notebook.execution_count = cell
        with shown.progress("Training", 2) as advance:
            advance(note="loss 0.5")
            with shown.progress("Evaluating", 1) as advance_inner:
                advance_inner()
            advance()
        list(shown.tracked("ab", "Reading"))
    shown.cell_display.cache_clear()
    lines = ["", "Training: 1/2, 0:00:00 left  loss 0.5", "Evaluating: 1/1, 0:00:00 left"]
    lines += ["Training: 2/2, 0:00:00 left", "Reading: 1/2, 0:00:00 left", "Reading: 2/2, 0:00:00 left"]
    assert notebook.displays == [(1, lines), (2, lines)]
    assert capfd.readouterr() == ("", "")


def test_items_are_tracked_to_the_last(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(shown, "console", Console(file=out, width=100))
    monkeypatch.setattr(shown, "PLAIN_INTERVAL_S", 0.0)
    assert list(shown.tracked(["a", "b"], "Reading")) == ["a", "b"] and list(shown.tracked([], "Nothing")) == []
    assert out.getvalue().splitlines()[-1] == "Reading: 2/2, 0:00:00 left"


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
