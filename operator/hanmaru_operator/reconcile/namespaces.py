"""What namespaces say of themselves, for those who grant and are granted."""

from __future__ import annotations

from hanmaru_operator import kinds
from hanmaru_operator.objects import Store
from hanmaru_operator.plan.access import NamespaceLabels


def namespace_labels(store: Store) -> NamespaceLabels:
    """Every namespace with its labels."""
    return {entry.key.name: entry.labels for entry in store.of_kind(kinds.NAMESPACES.kind)}
