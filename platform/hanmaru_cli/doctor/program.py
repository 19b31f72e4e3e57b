"""`hanmaru doctor` on a cluster: look, judge, print; called by `main`. Needs the extra `hanmaru[operator]`.

The exit status is 1 when something has to be mended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hanmaru_operator.api_errors import ClusterError

from hanmaru_cli.api_server import ApiServer
from hanmaru_cli.doctor import (
    fetch,
    model_checks,
    namespace_checks,
    platform_checks,
    pod_checks,
    pool_checks,
    report,
    tenant_checks,
)
from hanmaru_cli.doctor.finding import Finding, Mark
from hanmaru_cli.doctor.world import World
from hanmaru_cli.kubeconfig import read_access

Check = Callable[[World], list[Finding]]
CHECKS: tuple[Check, ...] = (
    platform_checks.check_server,
    platform_checks.check_kinds,
    platform_checks.check_release,
    platform_checks.check_leader,
    pool_checks.check_pools,
    model_checks.check_deployments,
    pod_checks.check_pods,
    namespace_checks.check_namespaces,
    tenant_checks.check_tenants,
)
"""In the order in which a person should mend what they find."""


def judge(world: World) -> list[Finding]:
    """Everything there is to say of a cluster."""
    found = [line for check in CHECKS for line in check(world)]
    if world.narrowed_to:
        seen = f"some lists are of namespace {world.narrowed_to} alone"
        to_do = "-n chooses another; the role `view` everywhere shows all"
        found.append(Finding(Mark.UNSEEN, "rights", "", seen, to_do=to_do))
    return list(dict.fromkeys(found))


def cluster(
    environ: Mapping[str, str], login: Mapping[str, str | None], say: Callable[[str], None], *, is_json: bool
) -> int:
    """The cluster of a kubeconfig. Raises HanmaruError (CONFIGURATION) when the kubeconfig cannot be used."""
    access = read_access(environ, **login)
    title = f"cluster {access.server} (context {access.context})"
    try:
        with ApiServer(access) as server:
            findings = judge(fetch.look(server, access.server, access.namespace))
    except ClusterError as error:
        findings = [Finding(Mark.FAIL, "kubernetes", "", error.message, "an answer")]
    return report.show(title, findings, say, is_json=is_json)
