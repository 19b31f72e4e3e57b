"""What a RayService of KubeRay names as its application (`serveConfigV2`'s `import_path`); nothing else imports it."""

from __future__ import annotations

from hanmaru_gateway.deployment import cluster_application

application = cluster_application()
