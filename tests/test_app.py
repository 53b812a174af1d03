"""The exit status of every way in which a command may end."""

import importlib.util
import runpy
import subprocess
import sys
import types

import pytest
from absl import flags
from absl.testing import flagsaver
from conftest import ROOT
from ml_collections import ConfigDict

from manas_jax import app
from manas_jax.__main__ import COMMANDS
from manas_jax.errors import UserError, check_extra
from manas_jax.runtime import distributed, signals


@pytest.fixture
def exit_status(monkeypatch):
    """A function (error, processes) -> the status that a command ends with that raises it."""

    def leave(status):
        raise SystemExit(status)

    def get(error, processes=1):
        def command(*_):
            raise error

        monkeypatch.setattr(app.jax, "process_count", lambda: processes)
        with pytest.raises(SystemExit) as ended:
            app._run(command, ["command"])
        return ended.value.code

    flags.FLAGS(["command"])
    monkeypatch.setattr(distributed, "exit_process", leave)
    return get


@pytest.mark.parametrize("status", [signals.PREEMPTED, signals.CANCELLED])
def test_signals(exit_status, status):
    assert exit_status(signals.Stopped(status)) == status


def test_second_ctrl_c(exit_status):
    assert exit_status(KeyboardInterrupt()) == signals.CANCELLED


def test_user_error_is_one_line(exit_status):
    assert exit_status(UserError("seed = x: give a number")) == "error: seed = x: give a number"


def test_peer_failure_can_be_resumed(exit_status):
    gone = ValueError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")
    assert exit_status(gone, processes=2) == signals.PREEMPTED


def test_other_errors_end_one_of_several_processes_with_a_traceback(exit_status, capsys):
    assert exit_status(ZeroDivisionError("a bug"), processes=2) == 1
    assert "ZeroDivisionError: a bug" in capsys.readouterr().err


def test_other_errors_of_a_single_process_are_raised():
    def command(*_):
        raise ZeroDivisionError

    flags.FLAGS(["command"])
    with pytest.raises(ZeroDivisionError):
        app._run(command, ["command"])


def test_success_and_unexpected_arguments():
    called = []
    flags.FLAGS(["command"])
    app._run(lambda *arguments: called.append(arguments), ["command"])
    assert called == [(None, None)]
    with pytest.raises(app.app.UsageError, match="unexpected arguments: more"):
        app._run(lambda *_: None, ["command", "more"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:", r", line 1: SyntaxError: invalid syntax"),
        ("\n\ndef get_config():\n    return 1 / 0", ", line 4: ZeroDivisionError: division by"),
        ("def get_config():\n    return x.y", ", line 2: NameError: name 'x' is not defined"),
        ("import nothere", ", line 1: ModuleNotFoundError: No module named 'nothere'"),
        ("raise KeyError('a')", ", line 1: KeyError: 'a'"),
        ("\0", ": source code .*null bytes"),
        ("x = 1", "get_config"),
    ],
)
def test_config_files_that_do_not_run(tmp_path, monkeypatch, content, message):
    file = tmp_path / "mine.py"
    file.write_text(content)
    monkeypatch.setattr(app, "_parse", lambda _: runpy.run_path(str(file))["get_config"]())
    with pytest.raises(SystemExit, match=rf"error: (--config=.*mine\.py|unknown).*{message}"):
        app.parse_flags(["command", f"--config={file}:argument", "--workdir=x"])


@pytest.mark.parametrize(
    ("config", "workdir", "message"),
    [
        (ConfigDict(), "", "error: --workdir= is empty: name a folder"),
        (3, "x", r"error: --config=a\.py: get_config\(\) has to return a ConfigDict"),
    ],
)
def test_values_of_flags(monkeypatch, config, workdir, message):
    monkeypatch.setattr(app, "_parse", lambda _: [])
    monkeypatch.setattr(app, "_CONFIG", types.SimpleNamespace(value=config))
    monkeypatch.setattr(app, "_WORKDIR", types.SimpleNamespace(value=workdir))
    with pytest.raises(SystemExit, match=message):
        app.parse_flags(["command", "--config=a.py", f"--workdir={workdir}"])


@pytest.mark.parametrize(
    ("argument", "file"),
    [
        ("--config=quickstart", "quickstart.py"),
        ("-config=pretrained:general", "pretrained.py:general"),
    ],
)
def test_configs_that_ship_have_names(argument, file):
    assert app._named_configs(["main", argument])[1].endswith(f"/configs/{file}")


@pytest.mark.parametrize(
    "argument",
    [
        "--config=absent",
        "--config=tiny.py",
        "--config=configs/tiny.py",
        "--config.seed=tiny",
        "tiny",
    ],
)
def test_other_arguments_stay(argument):
    assert app._named_configs(["main", argument]) == ["main", argument]


def test_a_named_config_may_be_an_argument_of_its_own():
    assert app._named_configs(["main", "--config", "quickstart", "--seed=1"]) == [
        "main", f"--config={ROOT / 'configs' / 'quickstart.py'}", "--seed=1"
    ]  # fmt: skip


def test_missing_extra_is_named():
    with pytest.raises(UserError, match=r"needs no_such_package; pip install 'manas_jax\[train\]'"):
        check_extra("train", "numpy", "no_such_package")


def test_a_missing_config_file_is_named(tmp_path):
    command = [sys.executable, "-m", "manas_jax.main", "--config=configs/quickstrat.py"]
    finished = subprocess.run(
        [*command, f"--workdir={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 1
    assert finished.stderr == "error: --config=configs/quickstrat.py: no such file\n"


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (
            'config = default(); config.train.steps = "many"; return config', [],
            "--config={}, line 3: TypeError: Could not override field 'steps' (reference). many is "
            "of original type <class 'str'> and cannot be casted to type <class 'int'>",
        ),
        (
            'return default(), int("x")', [],
            "--config={}, line 3: ValueError: invalid literal for int() with base 10: 'x'",
        ),
        (
            "return default()", ["--config.train.steps=abc"],
            "--config.train.steps=abc: invalid literal for int() with base 10: 'abc'; --help lists "
            "the flags",
        ),
        (
            "return default()", ["--config.train.step=3"],
            "unknown config key 'step' (did you mean 'steps'?); see manas_jax/config.py for all of "
            "them",
        ),
        (
            "return default()", ["--confg=abc"],
            "Unknown command line flag 'confg'. Did you mean: config ?; --help lists the flags",
        ),
        (
            "return default()", ["--workdir"],
            "Missing value for flag --workdir; --help lists the flags",
        ),
    ],
)  # fmt: skip
def test_values_that_do_not_parse(tmp_path, monkeypatch, content, arguments, message):
    file = tmp_path / "mine.py"
    file.write_text(f"from manas_jax.config import default\ndef get_config():\n    {content}")
    argv = ["command", f"--config={file}", *arguments]
    monkeypatch.setattr(sys, "argv", argv)  # where config_flags finds the keys
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        app.parse_flags(argv)
    assert ended.value.code == f"error: {message.format(file)}"


def test_a_required_flag_without_a_value():
    command = [sys.executable, "-m", "manas_jax.main", "--config=quickstart"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert finished.stderr == "error: --workdir is missing; --help lists the flags\n"


def test_help_lists_the_flags_of_other_modules():
    command = [sys.executable, "-m", "manas_jax.study", "--help"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0
    assert finished.stdout.startswith("A study: networks from many sources")
    for flag in ("--config", "--workdir", "--import", "--only", "--[no]summarize"):
        assert f"\n  {flag}: " in finished.stdout


def test_commands_with_flags_are_listed():
    """A module that parses a command line is a command."""
    folder = ROOT / "manas_jax"
    found = {
        ".".join(file.relative_to(folder).with_suffix("").parts).removesuffix(".__main__")
        for file in folder.rglob("*.py")
        if file.name == "__main__.py" or '__name__ == "__main__"' in file.read_text()
    }
    assert found - {"__main__"} == COMMANDS.keys()


def test_listed_commands_exist():
    for name in COMMANDS:
        found = importlib.util.find_spec(f"manas_jax.{name}")
        assert found, name
        assert not found.submodule_search_locations or importlib.util.find_spec(
            f"manas_jax.{name}.__main__"
        )
