from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner
from hanmaru_cli.main import cli

CLI = [sys.executable, "-m", "hanmaru_cli"]
HELP_S = 0.3


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["up", "--help"], ["down", "--help"]])
def test_words_about_itself_import_nothing_heavy(arguments: list[str]) -> None:
    look = "import sys; from hanmaru_cli.main import cli\n"
    look += f"try: cli({arguments})\nexcept SystemExit: pass\n"
    look += "print([m for m in ('pydantic', 'psutil', 'redis', 'ray', 'torch', 'sglang', 'grpc') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=30, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


def test_help_is_there_at_once() -> None:
    def processor_s() -> float:
        started = time.monotonic()
        subprocess.run([*CLI, "--help"], capture_output=True, timeout=30, check=True)
        return time.monotonic() - started

    assert min(processor_s() for _ in range(5)) < HELP_S


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that is no group, by the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name)


@pytest.mark.parametrize("words", [*commands(cli)], ids=" ".join)
def test_each_command_shows_how_it_is_called(words: tuple[str, ...]) -> None:
    command: click.Command = cli
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    # Those two are called by pods and by `up`, with settings from the environment, and have help of their own.
    assert words in (("worker",), ("gateway",)) or f"hanmaru {' '.join(words)}" in (command.help or "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_completion_script(shell: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell])
    assert result.exit_code == 0
    assert f"_HANMARU_COMPLETE={shell}_complete" in result.output


def test_subcommands_and_options_complete() -> None:
    words = {"COMP_WORDS": "hanmaru up --wo", "COMP_CWORD": "2", "_HANMARU_COMPLETE": "bash_complete"}
    run = subprocess.run(CLI, env=words, capture_output=True, text=True, timeout=30, check=False)
    assert run.stdout.split() == ["plain,--workers"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "--workers", "0"], "0 is not in the range"),
        (["up", "--http-port", "70000"], "70000 is not in the range"),
        (["up", "--checkpoint", "/nowhere"], "/nowhere cannot be served: it has no config.json"),
        (["fly"], "No such command 'fly'"),
    ],
)
def test_a_wrong_command_line_is_said_with_status_2(arguments: list[str], said: str) -> None:
    run = subprocess.run([*CLI, *arguments], capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == 2
    assert said in run.stderr
    assert "Traceback" not in run.stderr


def test_a_command_whose_extra_is_missing_says_which_to_install() -> None:
    blocked = "import sys; sys.modules['httpx2'] = None; sys.argv = ['hanmaru', 'rollout', 'status', 'md/x']\n"
    blocked += "from hanmaru_cli.main import main; main()"
    run = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, timeout=30, check=False)
    assert (run.returncode, run.stdout) == (1, "")
    assert "install the command's extra" in run.stderr
    assert "Traceback" not in run.stderr
