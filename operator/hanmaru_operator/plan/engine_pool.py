"""`EnginePool`: what the planner needs of an AcceleratorPool's spec, in bytes and counts. Pure.

Nodes are not part of it: what a replica looks like must not change when a node is cordoned. Whether the pool's nodes
can hold such a replica is `node_fitness`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from hanmaru_contracts.crd.v1alpha1.accelerator_pool import AcceleratorPoolSpec
from hanmaru_contracts.errors import ErrorCode, HanmaruError
from hanmaru_contracts.wire.engine_spec import Device, EngineType

from hanmaru_operator.quantity import parse_quantity

CPU_RESOURCE = "cpu"
NVIDIA_PREFIX = "nvidia.com/"
_LACKING = {EngineType.FURIOSA_LLM: frozenset({"mtp", "expert-parallel"})}
"""Features that an engine does not have, whatever a pool lists. furiosa-llm 2026.4.0 as published."""


@dataclass(frozen=True, slots=True)
class EnginePool:
    """Devices of one sort and the engine on them."""

    name: str
    resource: str
    device: Device
    device_bytes: int
    """Memory of what one rank computes on: a device, or a whole node of CPUs."""
    ranks_per_node: int
    """Ranks that one node's devices can carry."""
    devices_per_rank: int
    """Of the resource: 1, or all the cores of a node."""
    engine: EngineType
    engine_args: tuple[str, ...]
    dtypes: frozenset[str]
    features: tuple[str, ...]
    """Those that the pool lists and its engine has."""
    max_context_tokens: int

    @classmethod
    def from_spec(cls, name: str, spec: AcceleratorPoolSpec) -> EnginePool:
        """Raises HanmaruError (CONFIGURATION) when the block of `devices.type` is missing."""
        devices = spec.devices
        if devices.resource is None:
            raise HanmaruError(
                ErrorCode.CONFIGURATION, f"pool {name}: devices.resource is absent; name the devices' resource"
            )
        resource = devices.resource.name
        is_cpu = resource == CPU_RESOURCE
        return cls(
            name=name,
            resource=resource,
            device=_device(resource, spec.engine.type),
            device_bytes=int(parse_quantity(devices.memory)),
            ranks_per_node=1 if is_cpu else devices.per_node,
            devices_per_rank=devices.per_node if is_cpu else 1,
            engine=spec.engine.type,
            engine_args=spec.engine.args,
            dtypes=frozenset(spec.capabilities.dtypes),
            features=tuple(f for f in spec.capabilities.features if f not in _LACKING.get(spec.engine.type, ())),
            max_context_tokens=spec.capabilities.max_context_tokens,
        )

    def offers(self, feature: str) -> bool:
        """Whether the pool lists a feature."""
        return feature in self.features

    @property
    def is_cpu(self) -> bool:
        """Whether a rank has a node's cores instead of a device."""
        return self.device is Device.CPU


def _device(resource: str, engine: EngineType) -> Device:
    if resource == CPU_RESOURCE:
        return Device.CPU
    if engine is EngineType.FURIOSA_LLM:
        return Device.NPU
    return Device.CUDA if resource.startswith(NVIDIA_PREFIX) else Device.NPU
