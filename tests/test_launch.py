"""launch.sh, trainer/launcher.py and .ci/run on a small copy of the project: installs are played by a stand-in for
Python, the trainer by a script of a few lines. Nothing is downloaded."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from trainer import launcher
from trainer.errors import InputError
from trainer.launcher import exit_code, parse_flags, split_flags, start_on_one_device

ROOT = Path(__file__).parents[1]
BASH = shutil.which("bash") or "/bin/bash"
TWO_RANKS = ("--num_processes", "2", "--cpu", "--")

TRAINER = """
import json, os, signal, sys, time

rank = int(os.environ.get("RANK", "0"))
verb, *rest = sys.argv[1:]


def say(text, stream=1):
    os.write(stream, f"{text}\\n".encode())  # whole lines, also from two ranks and inside a signal handler


def stop(signum, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(f"rank {rank} got {signal.Signals(signum).name}")
    time.sleep(rank)
    say(f"rank {rank} saved")
    sys.exit(75)


signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
if verb == "show":
    environment = {name: os.environ.get(name) for name in ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION")}
    say(json.dumps({"arguments": rest, "folder": os.getcwd(), **environment}))
elif verb in ("-h", "--help"):
    say("usage: trainer")
elif verb == "wait" or (len(rest) > 1 and rank != int(rest[1])):  # `exit CODE RANK`: the other ranks go on
    say("ready")
    time.sleep(60)
else:
    say(f"trainer: rank {rank} ends", stream=2)
    sys.exit(int(rest[0]))
"""


def python_stand_in(root: Path, diary: Path) -> str:
    """A Python that notes what it is asked to install and does not do it; for the rest it is the real one.

    It needs no variable, since CI sets none.
    """
    return f"""#!/bin/sh
case "$1 $2" in
  "-m venv") echo venv >>'{diary}'; mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip") echo "$@" >>'{diary}'; echo "$PIP_SAYS"; sleep "${{PIP_SECONDS:-0}}"; exit "${{PIP_CODE:-0}}" ;;
  *) PYTHONPATH='{root}' exec '{sys.executable}' "$@" ;;
esac
"""


MODULES = ("__init__", "errors", "launcher")


def add_script(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script)
    path.chmod(0o755)


class Project:
    """A copy of the project in a folder with a space in its name, on a machine whose one Python is the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a project"
        self.venv = self.root / ".venv"
        self.diary = folder / "diary"
        self.environment = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(folder),
            "CUDA_VISIBLE_DEVICES": "",
        }
        (self.root / "trainer").mkdir(parents=True)
        for name in ("launch.sh", "pyproject.toml", "constraints.txt", *(f"trainer/{m}.py" for m in MODULES)):
            shutil.copy(ROOT / name, self.root / name)
        (self.root / "trainer/main.py").write_text(TRAINER)
        self.bin = folder / "bin"
        self.python = python_stand_in(self.root, self.diary)
        add_script(self.bin / "python3.13", self.python)

    def popen(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        command = [BASH, str(self.root / "launch.sh"), *arguments]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        options = {"cwd": self.root.parent, "env": self.environment | environment, "start_new_session": True}
        return subprocess.Popen(command, text=True, **streams, **options)

    def start(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self._ended(self.popen(*arguments, **environment))

    def launch(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """What launch.sh does last, by accelerate's flags or without them."""
        return self._ended(Forked(self, arguments))

    @staticmethod
    def _ended(process: subprocess.Popen[str] | Forked) -> subprocess.CompletedProcess[str]:
        output, errors = process.communicate(timeout=120)
        assert process.returncode is not None
        return subprocess.CompletedProcess((), process.returncode, output, errors)

    def installs(self) -> list[str]:
        """What was asked of pip and venv since the last look: `venv`, or the extras of an installation."""
        lines = self.diary.read_text().splitlines() if self.diary.exists() else []
        self.diary.unlink(missing_ok=True)
        assert all("--constraint constraints.txt" in line for line in lines if line != "venv")
        return [line if line == "venv" else line.split("--editable ")[1] for line in lines]


class Forked:
    """trainer.launcher in a forked process with the stand-in for the trainer, as `Popen` has its processes: a new one
    would import torch and accelerate for longer than it works."""

    def __init__(self, project: Project, arguments: Sequence[str]) -> None:
        import accelerate.commands.launch  # noqa: F401
        import torch.distributed.run  # noqa: F401  # once for all of them

        outputs, errors = os.pipe(), os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                self._enter(project, outputs[1], errors[1])
                code = launcher.main(list(arguments))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(outputs[1])
        os.close(errors[1])
        self.stdout, self.stderr = os.fdopen(outputs[0]), os.fdopen(errors[0])

    def _enter(self, project: Project, output: int, errors: int) -> None:
        """Be as `Project.popen` starts a process."""
        os.setsid()
        for number, stream in enumerate((os.open(os.devnull, os.O_RDONLY), output, errors)):
            os.dup2(stream, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.environ.clear()
        os.environ.update(project.environment)
        os.chdir(project.root.parent)
        launcher.SCRIPT = str(project.root / "trainer/main.py")

    def send_signal(self, signum: signal.Signals) -> None:
        os.kill(self.pid, signum)

    def communicate(self, timeout: float) -> tuple[str, str]:
        output, errors = self.stdout.read(), self.stderr.read()  # of a few lines each: neither pipe fills
        self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return output, errors


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A project that is installed already, for the tests that only launch."""
    project = Project(tmp_path_factory.mktemp("installed"))
    assert project.start("show").returncode == 0
    project.installs()
    yield project
    assert project.installs() == [], "a later start installed again"


# --- the trainer's exit code, signals and arguments -------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "flags", "rest"),
    [
        ([], [], []),
        (["train", "--set", "a.b=c"], [], ["train", "--set", "a.b=c"]),
        (["--cpu", "--", "train"], ["--cpu"], ["train"]),
        (["--", "train", "--", "x"], [], ["train", "--", "x"]),
        (["--cpu", "--"], ["--cpu"], []),
    ],
)
def test_the_first_double_dash_divides(arguments: list[str], flags: list[str], rest: list[str]) -> None:
    assert split_flags(arguments) == (flags, rest)


@pytest.mark.parametrize(
    ("ranks", "code"),
    [
        ([(3, 10)], 3),
        ([(75, 10), (75, 11)], 75),
        ([(75, 12), (2, 11)], 2),
        ([(1, 11), (-9, 10)], 137),  # killed, and its peer fails after it
        ([(1, 10), (3, 10)], 3),  # the peer is seen first, the rank with the cause counts
        ([(-15, 10)], 143),
    ],
)
def test_the_first_cause_counts(ranks: list[tuple[int, int]], code: int) -> None:
    failures = [
        SimpleNamespace(exitcode=exitcode, timestamp=timestamp, local_rank=rank, signal_name=lambda: "SIG")
        for rank, (exitcode, timestamp) in enumerate(ranks)
    ]
    assert exit_code(failures) == code  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 75])
def test_one_process_hands_on_its_exit_code(installed: Project, code: int) -> None:
    result = installed.start("exit", str(code))
    assert (result.returncode, result.stderr) == (code, "trainer: rank 0 ends\n")


@pytest.mark.slow
def test_accelerate_flags_change_neither_code_nor_output(installed: Project) -> None:
    result = installed.start("--mixed_precision", "no", "--", "exit", "3")
    assert (result.returncode, result.stderr) == (3, "trainer: rank 0 ends\n")


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 75])
def test_two_processes_hand_on_their_exit_code(installed: Project, code: int) -> None:
    result = installed.launch(*TWO_RANKS, "exit", str(code))
    assert result.returncode == code
    assert set(result.stderr.splitlines()) <= {"trainer: rank 0 ends", "trainer: rank 1 ends"}


@pytest.mark.slow
def test_the_rank_that_fails_alone_gives_the_code(installed: Project) -> None:
    result = installed.launch(*TWO_RANKS, "exit", "3", "1")
    assert (result.returncode, result.stderr) == (3, "trainer: rank 1 ends\n")
    assert "rank 0 saved" in result.stdout  # it was told to end, and had the time to


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("flags", [(), pytest.param(TWO_RANKS, marks=pytest.mark.slow)])
def test_a_signal_reaches_every_rank_and_each_may_save(
    installed: Project, flags: tuple[str, ...], signum: signal.Signals
) -> None:
    ranks = 2 if flags else 1
    process = Forked(installed, (*flags, "wait")) if flags else installed.popen("wait")
    assert process.stdout is not None
    for _ in range(ranks):
        assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (75, "")
    expected = {f"rank {rank} {what}" for rank in range(ranks) for what in (f"got {signum.name}", "saved")}
    assert set(output.splitlines()) == expected


@pytest.mark.slow
def test_arguments_and_folder_arrive_unchanged(installed: Project) -> None:
    arguments = ["a b", "", "--set", "x.y='q'", "--", "*"]
    for result in (installed.start("--", "show", *arguments), installed.launch("--cpu", "--", "show", *arguments)):
        shown = json.loads(result.stdout)
        assert shown["arguments"] == arguments
        assert shown["folder"] == str(installed.root.parent)


@pytest.mark.slow
def test_an_accelerate_config_file_is_respected(installed: Project, tmp_path: Path) -> None:
    config = tmp_path / "accelerate config.yaml"
    config.write_text("distributed_type: MULTI_CPU\nnum_processes: 2\nuse_cpu: true\nmixed_precision: bf16\n")
    result = installed.launch("--config_file", str(config), "--", "show")
    assert (result.returncode, result.stderr) == (0, "")
    shown = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(one["WORLD_SIZE"], one["ACCELERATE_MIXED_PRECISION"]) for one in shown] == [("2", "bf16")] * 2


@pytest.mark.slow
def test_a_wrong_flag_is_one_line(installed: Project) -> None:
    result = installed.launch("--config_file", "/missing.yaml", "--", "show")
    assert (result.returncode, result.stdout) == (2, "")
    assert "/missing.yaml" in result.stderr and result.stderr.count("\n") == 1


def test_an_unknown_flag_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_flags(["--num_proceses", "2"], ["show"])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and "--num_proceses" in said and said.count("\n") == 1


@pytest.mark.parametrize(("flags", "named"), [(("show",), "'show'"), (("--num_processes", "2"), "--cpu")])
def test_flags_that_do_not_go_together_are_refused(flags: tuple[str, ...], named: str) -> None:
    with pytest.raises(InputError, match=named):
        args = parse_flags(list(flags), ["show"])
        args.use_cpu = False  # what accelerate finds in no config file
        start_on_one_device(args)


# --- installation -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_first_start_installs_and_the_second_does_not(project: Project) -> None:
    first = project.start("show")
    assert first.returncode == 0, first.stderr
    assert project.installs() == ["venv", ".[mine,report]"]
    assert project.start("show").stderr == ""
    assert project.installs() == []


@pytest.mark.slow
def test_an_installation_follows_extras_and_constraints(project: Project) -> None:
    project.start("show", TRAINER_EXTRAS="real, report")
    assert project.installs() == ["venv", ".[mine,real,report]"]
    project.start("show", TRAINER_EXTRAS="real")
    project.start("show")
    assert project.installs() == [], "what is asked for is there"
    project.start("show", TRAINER_EXTRAS="track")
    assert project.installs() == [".[mine,real,report,track]"], "what was there stays"
    with (project.root / "constraints.txt").open("a") as constraints:
        constraints.write("six==1.17.0\n")
    project.start("show")
    assert project.installs() == [".[mine,real,report,track]"]


def test_an_unknown_extra_is_named(project: Project) -> None:
    result = project.start("show", TRAINER_EXTRAS="real,reprot")
    assert (result.returncode, project.installs()) == (2, [])
    assert "'reprot'" in result.stderr


@pytest.mark.slow
def test_an_active_virtual_environment_is_used(project: Project, tmp_path: Path) -> None:
    add_script(tmp_path / "its own/bin/python", project.python)
    active = {"VIRTUAL_ENV": str(tmp_path / "its own")}
    for _ in range(2):
        assert project.start("show", **active).returncode == 0
    assert project.installs() == [".[mine,report]"]
    assert not project.venv.exists()


@pytest.mark.slow
def test_an_interrupted_installation_is_repaired(project: Project) -> None:
    process = project.popen("show", PIP_SECONDS="60")
    deadline = time.monotonic() + 30
    while not (project.diary.exists() and "pip" in project.diary.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (project.venv / "half a package").touch()
    project.installs()
    assert project.start("show").returncode == 0
    assert project.installs() == ["venv", ".[mine,report]"]
    assert not (project.venv / "half a package").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("flock") is None, reason="this platform has no flock")
def test_of_two_first_starts_one_installs(project: Project) -> None:
    processes = [project.popen("show", PIP_SECONDS="1") for _ in range(2)]
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0, 0]
    assert project.installs() == ["venv", ".[mine,report]"]


FAILURES = [
    ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", 5, "disk space"),
    ("WARNING: Retrying after connection broken by 'NewConnectionError'", 5, "network"),
    ("ERROR: No matching distribution found for torch (from versions: none)", 5, "network"),
    ("ERROR: ResolutionImpossible: peft and torch", 2, "ResolutionImpossible: peft and torch"),
    ("/usr/bin/python3: No module named pip", 2, "ensurepip"),
]


@pytest.mark.slow
def test_a_failed_installation_says_why_and_the_next_start_tries_again(project: Project) -> None:
    for says, code, told in FAILURES:
        result = project.start("show", PIP_CODE="1", PIP_SAYS=says)
        last = result.stderr.splitlines()[-1]
        assert (result.returncode, result.stdout) == (code, "")
        assert told in last
        assert "disk space" in told or "disk space" not in last
        if "ensurepip" not in told:
            assert says in Path(last.split("log: ")[1]).read_text()
    assert project.start("show").returncode == 0


@pytest.mark.slow
def test_what_is_installed_survives_a_network_that_is_down(project: Project) -> None:
    project.start("show")
    failed = project.start("show", TRAINER_EXTRAS="track", PIP_CODE="1", PIP_SAYS="connection broken")
    assert failed.returncode == 5
    project.installs()
    assert project.start("show").returncode == 0
    assert project.installs() == []


def test_no_python_is_one_line(project: Project) -> None:
    old = "#!/bin/sh\ncase $* in *version_info*) echo 3.10.9; exit 1;; esac"
    add_script(project.bin / "python3.13", old)
    for path in ("", str(project.bin)):
        result = project.start("show", PATH=path)
        assert (result.returncode, result.stdout) == (2, "")
        assert "no Python 3.11, 3.12 or 3.13" in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_python_without_venv_is_named(project: Project) -> None:
    script = f"#!/bin/sh\ncase $* in *ensurepip*) exit 1;; esac\nexec '{sys.executable}' \"$@\"\n"
    add_script(project.bin / "python3.13", script)
    result = project.start("show", PATH=str(project.bin))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "python3.13-venv" in result.stderr


# --- help ---------------------------------------------------------------------------------------------------------


def extras_of_the_project() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_before_the_set_up_tells_how_and_installs_nothing(project: Project, flag: str) -> None:
    result = project.start(flag)
    assert (result.returncode, result.stderr, project.installs()) == (0, "", [])
    for text in ("./launch.sh test", "./launch.sh check", "source .venv/bin/activate", "TRAINER_EXTRAS="):
        assert text in result.stdout
    assert set(re.findall(r"^  ([a-z]+)  ", result.stdout, flags=re.MULTILINE)) == extras_of_the_project()
    assert "usage: trainer" not in result.stdout


@pytest.mark.slow
def test_help_ends_with_the_help_of_the_trainer(installed: Project) -> None:
    result = installed.start("--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert "source .venv/bin/activate" in result.stdout
    assert result.stdout.splitlines()[-1] == "usage: trainer"
    of_a_command = installed.start("show", "--help")
    assert json.loads(of_a_command.stdout)["arguments"] == ["--help"], "a command's help is the trainer's alone"


# --- the project's own checks -------------------------------------------------------------------------------------


@pytest.fixture
def checked(project: Project) -> Project:
    """A project whose checks pass: one module, two tests."""
    (project.root / "trainer/main.py").unlink()
    (project.root / "trainer/launcher.py").write_text('print("the example ran")\n')
    for folder in (".ci", "tests"):
        (project.root / folder).mkdir()
    shutil.copy(ROOT / ".ci/run", project.root / ".ci/run")
    tests = "import pytest\n\n\ndef test_word() -> None:\n    assert 'a' + 'b' == 'ab'\n\n\n"
    tests = tests.replace("'", '"') + "@pytest.mark.numbers\ndef test_sum() -> None:\n    assert 1 + 1 == 2\n"
    (project.root / "tests/test_small.py").write_text(tests)
    (project.root / "bench/reliability").mkdir(parents=True)
    for package in ("bench", "bench/reliability"):
        (project.root / package / "__init__.py").touch()
    (project.root / "bench/reliability/chaos.py").write_text('print("the campaign ran")\n')
    return project


def run_ci(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [BASH, str(root / ".ci/run"), *arguments]
    return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_ci_installs_and_ends_with_the_summary_of_pytest(checked: Project) -> None:
    result = run_ci(checked.root, "-p", "no:cacheprovider", **checked.environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert checked.installs() == ["venv", ".[mine,report]", ".[mine,report,test]"]
    assert "the example ran" in result.stdout and "the campaign ran" in result.stdout
    assert result.stdout.count(" 1 passed, 1 deselected") == 4  # each pass of `numbers`: its own line, and the summary
    assert " 2 passed" in result.stdout.splitlines()[-1]


@pytest.mark.slow
def test_check_finds_each_kind_of_fault(checked: Project) -> None:
    (checked.root / "trainer/bad.py").write_text('import os\nx  =  1\ny: int = "1"\n')
    result = checked.start("check")
    assert (result.returncode, checked.installs()) == (1, ["venv", ".[mine,report,test]"])
    for named in ("F401", "reformatted", "assignment"):
        assert named in result.stdout


@pytest.mark.slow
def test_each_check_can_fail_alone_and_pytest_runs_in_the_project_from_any_folder(project: Project) -> None:
    """Behind a Python that plays the tools."""
    played = 'ruff* | mypy*) echo "$2 $3"; case "$2 $3" in "$FAILS"*) exit 1 ;; esac; exit 0 ;;'
    played = f'case "$2 $3" in {played} pytest*) pwd; shift 2; printf "%s\\n" "$@"; exit 5 ;; esac\n'
    add_script(project.bin / "python3.13", project.python.replace("case", played + "case", 1))
    for failing in ("ruff check", "ruff format", "mypy", "none of them"):
        result = project.start("check", FAILS=failing)
        assert result.returncode == (failing != "none of them")
        assert result.stdout.splitlines()[-3:] == ["ruff check", "ruff format", "mypy "]
    assert project.installs() == ["venv", ".[mine,report,test]"]
    result = project.start("test", "tests/a b.py", "-x")
    assert (result.returncode, result.stdout.splitlines()) == (5, [str(project.root.resolve()), "tests/a b.py", "-x"])
    assert project.installs() == []


def commands_of_the_readme() -> list[str]:
    """What its first block of commands says, without the comments."""
    block = re.search(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert block is not None
    return [line.partition("#")[0].strip() for line in block[1].splitlines()]


class Ci:
    """.ci/run beside a launch.sh and a Python that note how they are called and end as they are told."""

    LESSER = ("ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2", "TRAINER_ONEDNN=off")

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        self.calls_file = folder / "calls"
        (self.root / ".ci").mkdir(parents=True)
        shutil.copy(ROOT / ".ci/run", self.root / ".ci/run")
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}

    def run(self, ends: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`ends` is the body of the stand-in: shell that ends call number $call with some exit code."""
        note = f"{{ echo \"$0 $*\"; env; echo; }} >>'{self.calls_file}'\ncall=$(grep -c '^$' '{self.calls_file}')\n"
        summary = 'echo "== 7 passed in call $call =="\n'
        (self.root / ".venv/bin").mkdir(parents=True, exist_ok=True)
        for name in ("launch.sh", ".venv/bin/python"):
            add_script(self.root / name, f"#!{BASH}\n{note}{summary}{ends}\n")
        return run_ci(self.root, *arguments, **self.environment, **environment)

    def calls(self) -> list[tuple[str, dict[str, str]]]:
        """Of each call since the last look: the command line, and the variables it was given."""
        blocks = self.calls_file.read_text().strip().split("\n\n")
        self.calls_file.unlink()
        of_the_shell = {"PWD", "OLDPWD", "SHLVL", "_"}
        called = []
        for block in blocks:
            command, *lines = block.splitlines()
            variables = dict(line.split("=", 1) for line in lines)
            called.append((command, {name: variables[name] for name in variables.keys() - of_the_shell}))
        return called


@pytest.fixture
def ci(tmp_path: Path) -> Ci:
    return Ci(tmp_path)


def test_ci_begins_with_the_commands_of_the_readme_and_sets_nothing(ci: Ci) -> None:
    for_pip = {"PIP_INDEX_URL": "https://packages.example/simple", "https_proxy": "http://proxy.example:3128"}
    for_pip |= {"SSL_CERT_FILE": "/certificates.pem", "TMPDIR": str(ci.root.parent)}
    others = {"TRAINER_EXTRAS": "real", "PYTHONPATH": "/elsewhere", "VIRTUAL_ENV": "/elsewhere", "OMP_NUM_THREADS": "3"}
    result = ci.run("", **for_pip, **others)
    assert (result.returncode, result.stderr) == (0, "")
    calls = ci.calls()
    readme = commands_of_the_readme()
    assert readme == ["./launch.sh", "./launch.sh test"]
    assert [command.strip() for command, _ in calls[:2]] == readme
    assert all(variables == ci.environment | for_pip for _, variables in calls[:3])
    lesser = [dict(pair.split("=") for pair in variables.split()) for variables in ci.LESSER]
    assert [command for command, _ in calls[2:5]] == ["./launch.sh check", *["./launch.sh test -m numbers"] * 2]
    assert calls[5][0].startswith(".venv/bin/python -m bench.reliability.chaos --kills 25 ")
    assert [variables for _, variables in calls[3:5]] == [ci.environment | for_pip | added for added in lesser]


def test_a_command_that_needs_an_undeclared_variable_fails_ci(ci: Ci) -> None:
    needs = '[[ -n $%s ]] || { echo "%s is not set"; exit 3; }'
    kept = ci.run(needs % (("PIP_INDEX_URL",) * 2), PIP_INDEX_URL="https://packages.example/simple")
    assert kept.returncode == 0
    lost = ci.run(needs % (("TRAINER_EXTRAS",) * 2), TRAINER_EXTRAS="report")
    assert lost.returncode == 3
    assert "TRAINER_EXTRAS is not set" in lost.stdout


@pytest.mark.parametrize(
    ("call", "step"),
    [
        (1, "./launch.sh"),
        (2, "./launch.sh test"),
        (3, "./launch.sh check"),
        (4, f"numbers with {Ci.LESSER[0]}"),
        (5, f"numbers with {Ci.LESSER[1]}"),
        (6, "bench.reliability.chaos"),
    ],
)
def test_each_step_can_fail_ci_and_the_tests_come_last(ci: Ci, call: int, step: str) -> None:
    result = ci.run(f'((call != {call})) || {{ echo "FAILED tests/test_x.py"; echo "1 failed"; exit 1; }}')
    assert result.returncode == 1
    assert len(ci.calls()) == 6, "the other steps are run all the same"
    lines = result.stdout.splitlines()
    summary = lines[lines.index("== Summary") :]
    assert f"FAILED with exit code 1: {step}" in summary
    assert ("FAILED tests/test_x.py" in summary) == (call in (2, 4, 5))
    assert summary[-1] == ("1 failed" if call == 2 else "== 7 passed in call 2 ==")


def test_ci_ends_where_no_test_can_run(ci: Ci) -> None:
    result = ci.run('((call != 2)) || { echo "launch.sh: no package index within reach" >&2; exit 5; }')
    assert (result.returncode, len(ci.calls())) == (5, 2)
    assert result.stderr.splitlines()[-1] == "launch.sh: no package index within reach"


def test_arguments_of_ci_go_to_pytest(ci: Ci) -> None:
    without_tests = "((call <= 3 || call == 6)) || exit 5"  # pytest's code where it found none
    assert ci.run(without_tests).returncode == 5, "a mark that no test bears is an error"
    ci.calls()
    assert ci.run(without_tests, "tests/test_a b.py", "-x").returncode == 0
    tested = [command for command, _ in ci.calls() if "test" in command.split()]
    given = "./launch.sh test tests/test_a b.py -x"
    assert tested == [given, *[f"{given} -m numbers"] * 2]


def test_the_readme_tells_how_to_get_each_extra() -> None:
    start = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ")[1]
    named = re.findall(r"^\| (`[a-z`, ]+`) \|", start, flags=re.MULTILINE)
    assert sorted(re.findall("[a-z]+", " ".join(named))) == sorted(extras_of_the_project())
    for text in ("source .venv/bin/activate", "TRAINER_EXTRAS=", "./launch.sh --help"):
        assert text in start


@pytest.mark.parametrize(
    ("arguments", "alone"),
    [(["index", "--tickets", "t.csv"], True), (["train"], False), (["--set", "train.seed=1"], False), ([], False)],
)
def test_only_training_is_started_as_accelerate_was_configured(arguments, alone, tmp_path, monkeypatch):
    """Another command would run once for each process, on one folder."""
    config = tmp_path / "default_config.yaml"
    config.write_text("num_processes: 2")
    started = []
    monkeypatch.setattr(launcher, "machine_config", lambda: config)
    monkeypatch.setattr(launcher, "launch", lambda args: started.append("by accelerate") or 0)
    monkeypatch.setattr(launcher.os, "execv", lambda program, command: started.append("alone") or sys.exit(0))
    monkeypatch.setattr(launcher, "parse_flags", lambda flags, rest: None)
    monkeypatch.setattr(launcher.logging, "disable", lambda level: None)
    with contextlib.suppress(SystemExit):
        launcher.main(arguments)
    assert started == ["alone" if alone else "by accelerate"]
