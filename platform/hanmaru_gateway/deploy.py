"""Tells Serve on a running Ray cluster to run the gateway, once; a child of `head`, which has no use for Ray's memory.

What Serve runs already, as after a head's restart, is left alone: a second deployment would restart every replica.
"""

from __future__ import annotations

import socket
import sys
import time

import ray
from hanmaru_contracts.log import configure_logging
from ray import serve
from ray.serve.schema import LoggingConfig

from hanmaru_gateway.deployment import APPLICATION, cluster_application

_RETRY_S = 0.3


def main(address: str) -> int:
    """Deploy to the GCS at `address` (`host:port`), as soon as it listens. The caller bounds the waiting."""
    configure_logging("gateway")
    _wait_for(address)
    ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    serve.start(proxy_location="Disabled", logging_config=LoggingConfig(log_level="WARNING"))
    if APPLICATION not in serve.status().applications:
        serve.run_many(
            [serve.RunTarget(cluster_application(), name=APPLICATION, route_prefix=None)],
            wait_for_ingress_deployment_creation=False,
            # There may be no node yet.
            wait_for_applications_running=False,
        )
    ray.shutdown()
    return 0


def _wait_for(address: str) -> None:
    host, _, port = address.rpartition(":")
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=1.0).close()
        except OSError:
            time.sleep(_RETRY_S)
        else:
            return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
