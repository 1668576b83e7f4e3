"""The pages are true: tables are the records', links, files and settings exist, commands are taken, examples run."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from accelerate.commands.launch import launch_command_parser
from oracles import printed_in_a_fork

from trainer.config import Config
from trainer.config_file import load_config, resolve_config, to_tree
from trainer.data.incidents import generate_pairs
from trainer.main import COMMANDS, cli

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("trainer", "configs", "bench", "tests")
PAGES = [*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in sorted((ROOT / folder).rglob("*.md")))]
TEXTS = {str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in PAGES}
LINES_IN_FRONT = 150
# Of a run's folder and of the user's, not of the project.
NOT_OURS = {"config.toml", "adapter/", "base/", "checkpoints/", "checkpoints/step-000123/", ".venv", "my.toml"}


# ---- what a page holds


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def inline_code(text: str) -> list[str]:
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_blocks(text))]


def commands_of(text: str) -> list[list[str]]:
    """Every command of a page as words: the lines of its bash blocks, and inline code that starts as one of ours."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    ours = r"(?:[A-Z_]+=\S+ )*(?:\./launch\.sh|trainer|python -m (?:trainer|bench)|accelerate launch|pytest)\b(?![/.])"
    lines += [code.replace("\\|", "|") for code in inline_code(text) if re.match(ours, code)]
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words]


COMMANDS_SHOWN = [(page, words) for page, text in TEXTS.items() for words in commands_of(text)]


def headings(text: str) -> set[str]:
    """The anchors that code hosts give a page's headings."""
    lines = re.findall(r"^#+ (.*)$", without_blocks(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


# ---- tables


def report_check(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.report", "--check"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.slow
def test_the_tables_are_what_the_records_say(tmp_path: Path) -> None:
    result = report_check(ROOT)
    assert result.returncode == 0, result.stderr
    # Negative control: a figure touched by hand is noticed on whatever page it stands.
    for path in [*(ROOT / "bench").glob("*.py"), *(ROOT / "bench").glob("results/*.json"), *PAGES]:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert report_check(tmp_path).returncode == 0
    with_tables = [page for page, text in TEXTS.items() if "<!-- begin " in text and page.endswith("README.md")]
    assert "README.md" in with_tables and "bench/README.md" in with_tables
    for page in with_tables:
        measured = re.search(r"<!-- begin .+ -->\s+\|", TEXTS[page])  # a block whose records are there
        assert measured is not None
        begin = measured.end()
        table = re.sub(r"\d", lambda digit: str(9 - int(digit[0])), TEXTS[page][begin:], count=1)
        (tmp_path / page).write_text(TEXTS[page][:begin] + table, encoding="utf-8")
        result = report_check(tmp_path)
        assert result.returncode == 1 and f" {page};" in result.stderr
        (tmp_path / page).write_text(TEXTS[page], encoding="utf-8")


def test_the_front_page_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= LINES_IN_FRONT


# ---- links and names


@pytest.mark.parametrize("page", TEXTS)
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_blocks(TEXTS[page])):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        assert there.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in headings(there.read_text(encoding="utf-8")), f"{page} links to {target}"


@pytest.mark.parametrize("page", TEXTS)
def test_every_file_and_module_it_names_exists(page: str) -> None:
    places = [(ROOT / page).parent, ROOT, ROOT / "trainer"]
    for code in inline_code(TEXTS[page]):
        if re.fullmatch(r"[\w./-]+(?:\.(?:py|toml|md|sh|svg)|/)", code) and code not in NOT_OURS:
            assert any((place / code).exists() for place in places), f"{page} names {code}"
        if re.fullmatch(r"(?:trainer|bench)(?:\.\w+)+", code) and code not in MOVED:
            assert exists(code), f"{page} names {code}"


MOVED = {"trainer.pairs", "trainer.encoder"}  # in the table that says where they went


def exists(dotted: str) -> bool:
    """Whether a module, or a name in one, is there."""
    owner, _, name = dotted.rpartition(".")
    try:
        return find_spec(dotted) is not None
    except ModuleNotFoundError:  # a name in a module
        return hasattr(import_module(owner), name)


def test_every_module_of_the_folder_map_exists() -> None:
    """The tree on the front page names every room and no other."""
    (tree,) = (block for block in blocks(TEXTS["README.md"], "text") if "launch.sh " in block)
    rooms = set(re.findall(r"^  (\w+)/", tree, flags=re.MULTILINE))
    assert rooms == {path.parent.name for path in (ROOT / "trainer").glob("*/__init__.py")}
    assert all((ROOT / name).exists() for name in re.findall(r"^(\S+)", tree, flags=re.MULTILINE))


@pytest.mark.parametrize("page", TEXTS)
def test_every_setting_it_names_exists(page: str) -> None:
    tree = to_tree(Config())
    for code in inline_code(TEXTS[page]):
        match = re.match(r"(?:--set )?([a-z_]+)\.([a-z_]+)(?= = |=|$)", code)
        if match and match[1] in tree and match[2] not in ("py", "json", "jsonl", "onnx") and code not in REMOVED:
            assert match[2] in tree[match[1]], f"{page} names {code}"


REMOVED = {"loss.exchange", "loss.implementation", "loss.symmetric", "loss.learn_scale", "log.tensorboard"}
"""In the table that says what came instead."""


def test_settings_that_were_removed_are_named_with_what_came_instead() -> None:
    tree = to_tree(Config())
    for key in REMOVED:
        section, name = key.split(".")
        assert name not in tree[section] and re.search(rf"^\| .*`{key}`.* \|", TEXTS["trainer/README.md"], re.M)


# ---- commands


def accepted(parse: Callable[[list[str]], object], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        parse(arguments)
    except SystemExit:
        pytest.fail(capsys.readouterr().err)


def check_trainer(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A command of ours takes these arguments, and its config these settings."""
    if arguments == ["--help"]:
        return
    command = arguments[0] if arguments and not arguments[0].startswith("-") else None
    assert command is None or command in COMMANDS
    rest = arguments[1:] if command else arguments
    parser = COMMANDS[command or "train"][0]()
    if not rest and command:
        return  # named, not called
    accepted(parser.parse_args, rest, capsys)
    if (command or "train") == "train":
        options = parser.parse_args(rest)
        if options.config and str(options.config).startswith("configs/"):
            load_config(ROOT / options.config, options.set or [])
        else:
            resolve_config({"data": {"train": "FILE"}}, options.set or [])


@pytest.mark.parametrize(
    ("page", "words"), COMMANDS_SHOWN, ids=lambda part: part if isinstance(part, str) else " ".join(part)[:70]
)
def test_every_command_is_taken(page: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    program, arguments = words[0], words[1:]
    if program == "source":
        assert arguments == [".venv/bin/activate"]
    elif program == "./launch.sh" and arguments[:1] in (["test"], ["check"]):
        check_paths(arguments[1:])
    elif program == "./launch.sh":
        if "--" in arguments:
            cut = arguments.index("--")
            accepted(launch_command_parser().parse_args, [*arguments[:cut], "trainer/main.py"], capsys)
            arguments = arguments[cut + 1 :]
        check_trainer(arguments, capsys)
    elif program == "trainer":
        check_trainer(arguments, capsys)
    elif program == "pytest":
        check_paths(arguments)
    elif words[:3] == ["python", "-m", "trainer"]:
        check_trainer(words[3:], capsys)
    elif words[:2] == ["python", "-m"]:
        assert words[2].startswith("bench.") and exists(words[2])
    elif words[:2] == ["accelerate", "launch"]:
        assert words[2] == "trainer/main.py"
        check_trainer(words[3:], capsys)
    else:
        assert os.access(ROOT / program, os.X_OK), f"{page}: {program} is no command that this test knows"


def check_paths(arguments: list[str]) -> None:
    for argument in arguments:
        if "/" in argument and not argument.startswith("-"):
            assert (ROOT / argument.partition("::")[0]).exists()


class Parsed(Exception):
    """The options were read; nothing else is run."""


def parse_alone(commands: list[list[str]]) -> None:
    """Print a line for each command that does not reach the end of parsing."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, *arguments: Any) -> None:
        parse(self, *arguments)
        raise Parsed

    argparse.ArgumentParser.parse_args = parse_and_stop  # type: ignore[assignment]
    for module, *arguments in commands:
        sys.argv = [module, *arguments]
        try:
            import_module(module).main()
            print(module, "has parsed nothing")
        except Parsed:
            pass
        except BaseException as error:
            print(module, arguments, repr(error))


@pytest.mark.slow
def test_every_measurement_takes_its_options(tmp_path: Path) -> None:
    """`python -m bench...` of every page reaches the end of parsing."""
    commands = [words[2:] for _, words in COMMANDS_SHOWN if words[:2] == ["python", "-m"] and "bench." in words[2]]
    commands.append(["bench.report", "--no-such-option"])  # negative control
    printed = printed_in_a_fork(lambda: parse_alone(commands), tmp_path / "lines")  # they set up their process
    assert printed == "bench.report ['--no-such-option'] SystemExit(2)\n"


@pytest.mark.parametrize(
    ("page", "command"),
    [("trainer/mining/README.md", "build-pairs"), ("trainer/lint/README.md", "lint")],
)
def test_every_option_in_the_text_of_a_commands_page_exists(page: str, command: str) -> None:
    known = COMMANDS[command][0]().format_help()
    others = "".join(make_parser().format_help() for make_parser, _ in COMMANDS.values())
    shown = {option for code in inline_code(TEXTS[page]) for option in re.findall(r"(?:^|\s)(--[a-z-]+)", code)}
    assert shown and not [option for option in shown if option not in known + others]


# ---- run what takes seconds


SMALL = ["--set=loss.dims=[64,16]", "--set=curriculum.epochs=1", "--set=eval.choose_strength=false"]
SMALL += ["--set=train.precision=fp32", "--output-dir=runs/first"]
TICKETS = ["--sizes=20,20,20", "--dev-share=0.2", "--test-share=0.2", "--max-group=10"]
TICKETS += ["--easy-positives=0.55:0.95:same", "--easy-negatives=0:0.2:other", "--medium-positives=0.4:0.95:other"]
TICKETS += ["--medium-negatives=0.05:0.35:same", "--hard-positives=0.35:0.6:same", "--hard-negatives=0.1:0.5:any"]
# As written, and what makes it small; lint may find something serious.
RUN = [
    ("trainer lint --pairs pairs.json --eval held_out.json", [], (0, 1)),
    ("trainer --config configs/itsm_minilm.toml --set model.name=DIR", SMALL, (0,)),
    ("trainer evaluate --model runs/first/model --pairs held_out.json", ["--resamples=100"], (0,)),
    ("trainer report runs/first", [], (0,)),
    ("trainer build-pairs --tickets tickets.csv --output pairs", TICKETS, (0,)),
    ("trainer lint --pairs pairs/train.json --eval pairs/dev.json", [], (0, 1)),
]


def ticket_lines(count: int) -> list[str]:
    """A CSV of tickets about 40 problems, each of seven words of its own, told with five of them and some others."""
    rng = random.Random(0)
    words = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("rt", "ns", "lk", "mp")]
    problems = [rng.sample(words, 7) for _ in range(40)]
    lines = ["number,short_description,description,assignment_group"]
    for number in range(count):
        problem = rng.randrange(len(problems))
        title, body = (" ".join(rng.sample(problems[problem], 5) + rng.sample(words, extra)) for extra in (1, 3))
        lines.append(f"INC{number},{title},{body},team {problem % 3 if rng.random() < 0.7 else rng.randrange(3)}")
    return lines


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[[str], Path]) -> Iterator[Path]:
    """A folder with the files that the pages speak of: a reader's, and a small encoder."""
    folder = tmp_path_factory.mktemp("reader")
    for name, rows, part in (("pairs", 96, "train"), ("held_out", 48, "dev")):
        (folder / f"{name}.json").write_text(json.dumps(generate_pairs(rows, 0, part)))
    (folder / "tickets.csv").write_text("\n".join(ticket_lines(400)))
    shutil.copytree(tiny_model("mpnet"), folder / "DIR")
    shutil.copytree(ROOT / "configs", folder / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("matplotlib.figure.Figure.savefig", lambda self, file, **options: file.write("<svg/>"))  # quick
        yield folder


@pytest.mark.slow
def test_commands_run_as_written(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = [" ".join(words) for _, words in COMMANDS_SHOWN]
    for start, more, codes in RUN:
        command = next((line for line in shown if line.startswith(start)), None)
        assert command is not None, f"no page shows {start}"
        code = cli([*shlex.split(command)[1:], *more])
        assert code in codes, f"{command}: {code}: {capsys.readouterr().err}"
    assert (place / "runs/first/report.html").is_file() and (place / "pairs/report.json").is_file()


@pytest.mark.slow
def test_examples_in_python_run(place: Path, tiny_model: Callable[[str], Path]) -> None:
    if not (place / "runs/first/model").exists():  # where this test runs alone
        shutil.copytree(tiny_model("mpnet"), place / "runs/first/model")
    examples = blocks(TEXTS["trainer/README.md"], "python")
    assert len(examples) >= 6
    namespace: dict[str, object] = {}
    for example in examples:
        exec(compile(example, "trainer/README.md", "exec"), namespace)
