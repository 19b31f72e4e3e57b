"""`hanmaru operator …`: hands on to the operator's own program, imported only when it runs."""

from __future__ import annotations

import sys

import click


@click.group()
def operator() -> None:
    """Make pools, deployments and tenants on a Kubernetes cluster be as they are described."""


@operator.command()
def run() -> None:
    """Run the operator until SIGTERM.

    Settings come by environment: KUBECONFIG (or a pod's ServiceAccount), POD_NAMESPACE, HANMARU_PLATFORM_SECRET_FILE,
    HANMARU_REDIS_URL, and HANMARU_OPERATOR_SETTINGS_FILE, a YAML file of everything else. Several may run: one leads.

    \b
    Example:
      POD_NAMESPACE=hanmaru HANMARU_PLATFORM_SECRET_FILE=platform.secret hanmaru operator run
    """
    from hanmaru_operator import main

    sys.exit(main.main())
