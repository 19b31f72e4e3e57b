"""Who may use a pool, and whose tenants may be granted a model: the side of those who offer. Pure.

Asked by the plans of deployments and tenants; what the other side asks for is theirs. A selector that cannot be
understood, or a namespace nobody has seen, is a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping

from hanmaru_contracts.crd.schema import LabelRequirement, LabelSelector
from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AllowedNamespaces, NamespacesFrom
from hanmaru_contracts.crd.v1alpha1.model_deployment import Access, AccessFrom

Labels = Mapping[str, str]
NamespaceLabels = Mapping[str, Labels]
"""Every namespace with its labels."""


def may_use_pool(allowed: AllowedNamespaces, namespace: str, namespaces: NamespaceLabels) -> bool:
    """Whether the pool takes deployments of that namespace."""
    match allowed.from_:
        case NamespacesFrom.ALL:
            return True
        case NamespacesFrom.SELECTOR:
            return _selects(allowed.selector, namespaces.get(namespace))
        case NamespacesFrom.NONE:
            return False


def may_be_granted(access: Access, owner: str, tenant: str, namespaces: NamespaceLabels) -> bool:
    """Whether a deployment of namespace `owner` lets Tenants of namespace `tenant` name it; its own always may."""
    if owner == tenant:
        return True
    match access.from_:
        case AccessFrom.ALL:
            return True
        case AccessFrom.SELECTOR:
            return _selects(access.selector, namespaces.get(tenant))
        case AccessFrom.SAME:
            return False


def selects(selector: LabelSelector, labels: Labels) -> bool:
    """Whether everything the selector says holds, as for any Kubernetes label selector; an empty one selects all."""
    return all(labels.get(key) == value for key, value in selector.match_labels.items()) and all(
        _holds(requirement, labels) for requirement in selector.match_expressions
    )


def _selects(selector: LabelSelector | None, labels: Labels | None) -> bool:
    return selector is not None and labels is not None and selects(selector, labels)


def _holds(requirement: LabelRequirement, labels: Labels) -> bool:
    value = labels.get(requirement.key)
    match requirement.operator:
        case "In":
            return value in requirement.values
        case "NotIn":
            return bool(requirement.values) and value not in requirement.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case _:
            return False  # `Gt` and `Lt` are for nodes
