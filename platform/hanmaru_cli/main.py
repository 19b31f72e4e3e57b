"""The `hanmaru` command. Each subcommand imports its own package when it is called: `--help` costs no engine.

Entry point `hanmaru`; parts that `up` starts come in here too (`python -m hanmaru_cli`). Exit status 2 is a wrong
command line or setting, 1 anything else that went wrong.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

import click
from hanmaru_contracts import names
from hanmaru_contracts.errors import ErrorCode, HanmaruError

from hanmaru_cli.duration import seconds_of
from hanmaru_cli.operator import operator

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "tiny-k-exaone"
"""The one of the source checkout; an installed wheel has none, and says so."""

_PASSED_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
"""Programs with a command line of their own get theirs as it stands, `--help` included."""

_PORT = click.IntRange(1, 65_535)
_CommandT = TypeVar("_CommandT", bound=Callable[..., None])


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="hanmaru", prog_name="hanmaru")
def cli() -> None:
    """Serve K-EXAONE, and models shaped like it."""


cli.add_command(operator)


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

    \b
    Examples:
      hanmaru up
      hanmaru up --workers 2 --http-port 8080
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
    """End the running `hanmaru up`, from any shell.

    \b
    Example:
      hanmaru down
    """
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
    """Make an API key and the hash that a tenant's file holds of it.

    \b
    Examples:
      hanmaru key new
      hanmaru key hash < key.txt
    """
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

    \b
    Examples:
      hanmaru model-facts --checkpoint checkpoints/tiny-k-exaone
      hanmaru model-facts --repo LGAI-EXAONE/K-EXAONE-236B-A23B --token-file token
    """
    from hanmaru_cli import model_facts as program

    _exit_with(lambda: program.run(checkpoint, repo, out, **hub))  # type: ignore[arg-type]


def _on_a_deployment(command: _CommandT) -> _CommandT:
    """What every command needs that acts on a ModelDeployment as its user."""
    for option in (
        click.option("--context", metavar="NAME", help="Context of the kubeconfig.  [default: its current one]"),
        click.option("--kubeconfig", metavar="FILE", help="[default: KUBECONFIG, else ~/.kube/config]"),
        click.option("-n", "--namespace", metavar="NAME", help="[default: the context's]"),
        click.argument("name", metavar="NAME"),
    ):
        command = option(command)
    return command


@cli.group()
def rollout() -> None:
    """Follow, pause, resume or restart a ModelDeployment's rollout.

    Acts on the cluster of your kubeconfig, with your rights. NAME may be written md/NAME or modeldeployment/NAME.

    \b
    Examples:
      hanmaru rollout status k-exaone
      hanmaru rollout restart md/k-exaone -n models
    """


@rollout.command("status")
@_on_a_deployment
@click.option("-w", "--watch/--no-watch", default=True, help="Stay until the rollout ends.  [default: watch]")
@click.option(
    "--timeout", "timeout_s", type=seconds_of, metavar="TIME", default="0", show_default=True,
    help="Give up after that long, such as 90s, 5m or 1h30m; 0: never.",
)  # fmt: skip
@click.option(
    "-o", "output", type=click.Choice(["text", "json"]), default="text", show_default=True,
    help="json: one object a line.",
)  # fmt: skip
def rollout_status(name: str, watch: bool, timeout_s: float, output: str, **login: str | None) -> None:
    """Show how far a rollout is, a line for each change, until it ends.

    Exit status 0: rolled out; 1: it failed, nothing lets it run, or the time was up. With --no-watch, 1 only if failed.

    \b
    Examples:
      hanmaru rollout status k-exaone --timeout 30m
      hanmaru rollout status md/k-exaone -n models --no-watch -o json
    """
    from hanmaru_cli import rollout as program

    voice = program.Voice(say=click.echo, warn=_complain, is_json=output == "json")
    act = partial(program.status, voice=voice, watch=watch, timeout_s=timeout_s)
    _exit_with(lambda: program.on_deployment(os.environ, name, login, act))


@rollout.command("pause")
@_on_a_deployment
def rollout_pause(name: str, **login: str | None) -> None:
    """Replace no further replica for now.

    Sets spec.rollout.paused. Scaling and repairs go on.

    \b
    Example:
      hanmaru rollout pause k-exaone -n models
    """
    from hanmaru_cli import rollout as program

    act = partial(program.set_paused, say=click.echo, paused=True)
    _exit_with(lambda: program.on_deployment(os.environ, name, login, act))


@rollout.command("resume")
@_on_a_deployment
def rollout_resume(name: str, **login: str | None) -> None:
    """Let a paused rollout go on.

    \b
    Example:
      hanmaru rollout resume k-exaone -n models
    """
    from hanmaru_cli import rollout as program

    act = partial(program.set_paused, say=click.echo, paused=False)
    _exit_with(lambda: program.on_deployment(os.environ, name, login, act))


@rollout.command("restart")
@_on_a_deployment
def rollout_restart(name: str, **login: str | None) -> None:
    """Replace every replica, at the rollout's own pace.

    The spec stays as it is. What a status says of DefaultsOutdated is applied by it.

    \b
    Example:
      hanmaru rollout restart k-exaone -n models && hanmaru rollout status k-exaone -n models
    """
    from hanmaru_cli import rollout as program

    act = partial(program.restart, say=click.echo, now=datetime.now(UTC))
    _exit_with(lambda: program.on_deployment(os.environ, name, login, act))


@cli.command()
@click.option("--laptop", is_flag=True, help="Look at this machine, not at a cluster.")
@click.option("--context", metavar="NAME", help="Context of the kubeconfig.  [default: its current one]")
@click.option("--kubeconfig", metavar="FILE", help="[default: KUBECONFIG, else ~/.kube/config]")
@click.option("-n", "--namespace", metavar="NAME", help="Where to look if you may not look everywhere.")
@click.option(
    "-o", "output", type=click.Choice(["text", "json"]), default="text", show_default=True, help="json: one object."
)
def doctor(laptop: bool, output: str, **login: str | None) -> None:
    """Look at a cluster, or at this machine, and name what to mend.

    Reads only, with your own rights; what you may not see is said. Without a kubeconfig it looks at this machine.
    Exit status 0: nothing to mend; 1: lines marked FAIL; 2: no usable kubeconfig or credentials.

    \b
    Examples:
      hanmaru doctor
      hanmaru doctor --context gpu-cluster -o json | jq '.findings[] | select(.mark == "fail")'
      hanmaru doctor --laptop
    """
    from hanmaru_cli.doctor import machine
    from hanmaru_cli.state import home

    def examine() -> int:
        if laptop and any(login.values()):
            raise HanmaruError(ErrorCode.CONFIGURATION, "--laptop takes no kubeconfig, context or namespace")
        is_json = output == "json"
        if laptop or not machine.is_cluster_meant(os.environ, login):
            return machine.laptop(home(os.environ), CHECKPOINT, click.echo, is_json=is_json)
        from hanmaru_cli.doctor import program

        return program.cluster(os.environ, login, click.echo, is_json=is_json)

    _exit_with(examine)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the shell's completion script.

    \b
    Examples:
      eval "$(hanmaru completion bash)"
      hanmaru completion zsh > "${fpath[1]}/_hanmaru"
      hanmaru completion fish > ~/.config/fish/completions/hanmaru.fish
    """
    from click.shell_completion import get_completion_class

    completer = get_completion_class(shell)
    assert completer is not None, "click knows all three"
    click.echo(completer(cli, {}, "hanmaru", "_HANMARU_COMPLETE").source())


def _exit_with(program: Callable[[], int]) -> None:
    """End with the program's status; what it could not do is said in one line, never as a stack trace."""
    try:
        status = program()
    except HanmaruError as error:
        _complain(error.message)
        status = 2 if error.code is ErrorCode.CONFIGURATION else 1
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _complain(message: str) -> None:
    click.echo(f"hanmaru: {message}", err=True)


def main() -> None:
    """Entry point. A command whose extra is not installed says so."""
    try:
        cli(prog_name="hanmaru")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("hanmaru"):
            raise
        extras = "hanmaru[gateway], hanmaru[worker] or hanmaru[operator]"
        _complain(f"`{error.name}` is not installed; install the command's extra: {extras}")
        sys.exit(1)
