"""The `hanmaru` command. Each subcommand imports its own package when it is called: `--help` costs no engine.

Entry point `hanmaru`; parts that `up` starts come in here too (`python -m hanmaru_cli`). Exit status 2 is a wrong
command line or setting, 1 anything else that went wrong.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import click
from hanmaru_contracts import names
from hanmaru_contracts.errors import ErrorCode, HanmaruError

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "tiny-k-exaone"
"""The one of the source checkout; an installed wheel has none, and says so."""

_PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
"""Programs with a command line of their own get theirs as it stands, `--help` included."""

_PORT = click.IntRange(1, 65_535)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="hanmaru", prog_name="hanmaru")
def cli() -> None:
    """Serve K-EXAONE, and models shaped like it."""


@cli.command()
@click.option("--workers", type=click.IntRange(1, 16), default=1, show_default=True, help="Engines to run.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    default=CHECKPOINT,
    help="Folder of a K-EXAONE-shaped checkpoint.  [default: the tiny one of the source checkout]",
)
@click.option("--http-port", type=_PORT, default=names.GATEWAY_HTTP_PORT, show_default=True, help="REST.")
@click.option("--grpc-port", type=_PORT, default=names.GATEWAY_GRPC_PORT, show_default=True, help="gRPC.")
@click.option("--metrics-port", type=_PORT, default=names.GATEWAY_METRICS_PORT, show_default=True, help="Prometheus.")
@click.option("--redis-port", type=_PORT, default=names.REDIS_PORT, show_default=True, help="Redis.")
@click.option("--ray-port", type=_PORT, default=names.RAY_GCS_PORT, show_default=True, help="Ray's GCS.")
@click.option("--engine-port", type=_PORT, default=names.ENGINE_HTTP_PORT, show_default=True, help="First engine.")
@click.option(
    "--supervisor-port", type=_PORT, default=names.SUPERVISOR_HTTP_PORT, show_default=True, help="First supervisor."
)
@click.option("--otlp-endpoint", metavar="URL", help="OTLP gRPC receiver of traces.  [default: no tracing]")
def up(checkpoint: Path, **ports_and_counts: object) -> None:
    """Run the whole on this machine: Redis, workers and gateway. Ctrl-C ends all of it.

    A port that is taken means the next free one, and it is said.
    """
    from hanmaru_cli import up as program
    from hanmaru_cli.checkpoint import look
    from hanmaru_cli.laptop import Options
    from hanmaru_cli.state import home
    from hanmaru_cli.terminal import Terminal

    def start() -> int:
        options = Options(checkpoint=look(checkpoint), **ports_and_counts)  # type: ignore[arg-type]
        return program.run(options, home(os.environ), os.environ, Terminal(sys.stdout))

    _exit_with(start)


@cli.command()
def down() -> None:
    """End the running `hanmaru up`."""
    from hanmaru_cli import down as program
    from hanmaru_cli.state import home
    from hanmaru_cli.terminal import Terminal

    _exit_with(lambda: program.run(home(os.environ), Terminal(sys.stdout)))


@cli.command(context_settings=_PASSED_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def worker(arguments: tuple[str, ...]) -> None:
    """Run one rank of one engine and its supervisor (settings come by environment)."""
    from hanmaru_worker import launch

    _exit_with(lambda: launch.main(list(arguments)))


@cli.command(context_settings=_PASSED_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def gateway(arguments: tuple[str, ...]) -> None:
    """Run the gateway, a Ray Serve application."""
    from hanmaru_gateway import launch

    _exit_with(lambda: launch.main(list(arguments)))


@cli.command(context_settings=_PASSED_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def key(arguments: tuple[str, ...]) -> None:
    """Make an API key and the hash that a tenant's file holds of it."""
    from hanmaru_cli import key as program

    _exit_with(lambda: program.main(list(arguments)))


@cli.command()
@click.option(
    "-f",
    "files",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="YAML with AcceleratorPools and ModelDeployments, and Nodes if you like; may be given several times.",
)
@click.option(
    "--model-config",
    "configs",
    metavar="[SOURCE=]FILE",
    multiple=True,
    required=True,
    help="A checkpoint's config.json. SOURCE: the repository, claim, image or pool it is for; without: all others.",
)
@click.option("--tokens", type=click.IntRange(1), default=8192, show_default=True, help="Length of a usual request.")
@click.option(
    "-o", "output", type=click.Choice(["table", "yaml", "json"]), default="table", show_default=True,
    help="A table for people, or the engine specs.",
)  # fmt: skip
def plan(files: tuple[Path, ...], configs: tuple[str, ...], tokens: int, output: str) -> None:
    """Show what the operator would plan, and why other layouts lost. Needs no cluster.

    Sizes are calculated, not measured on your devices. Exit status 1: a deployment fits none of its pools.

    \b
    Examples:
      hanmaru plan -f operator/examples/k-exaone-a100-40g.yaml \\
        --model-config operator/examples/models/k-exaone-236b.json
      kubectl get nodes -o yaml | hanmaru plan -f pools.yaml -f deployment.yaml -f /dev/stdin --model-config config.json
    """
    from hanmaru_cli import plan as program

    def show() -> int:
        status = 0
        for line in program.run(files, program.configs_by_source(configs), tokens, output):
            if isinstance(line, int):
                status = line
            else:
                click.echo(line)
        return status

    _exit_with(show)


@cli.command("model-facts")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Folder of a checkpoint.")
@click.option("--repo", metavar="OWNER/NAME", help="Repository of a hub, instead of a folder.")
@click.option("--revision", default="main", show_default=True, help="Branch, tag or commit of it.")
@click.option("--endpoint", metavar="URL", default="https://huggingface.co", show_default=True, help="The hub.")
@click.option("--token-file", type=click.Path(path_type=Path), help="File with a token for the hub.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the line goes.  [default: standard output]")
def model_facts(checkpoint: Path | None, repo: str | None, out: Path | None, **hub: object) -> None:
    """Read a checkpoint's config.json and print what the planner must know of it, as one line of JSON.

    Exit status 2: the file, the name or the rights are wrong; 1: the hub cannot be reached now.
    """
    from hanmaru_cli import model_facts as program

    _exit_with(lambda: program.run(checkpoint, repo, out, **hub))  # type: ignore[arg-type]


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the shell's completion script, for instance: eval "$(hanmaru completion bash)"."""
    from click.shell_completion import get_completion_class

    completer = get_completion_class(shell)
    assert completer is not None, "click knows all three"
    click.echo(completer(cli, {}, "hanmaru", "_HANMARU_COMPLETE").source())


def _exit_with(program: Callable[[], int]) -> None:
    """End with the program's status; what it could not do is said in one line, never as a stack trace."""
    try:
        status = program()
    except HanmaruError as error:
        click.echo(f"hanmaru: {error.message}", err=True)
        status = 2 if error.code is ErrorCode.CONFIGURATION else 1
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def main() -> None:
    """Entry point."""
    cli(prog_name="hanmaru")
