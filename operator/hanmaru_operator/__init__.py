"""The operator: makes pools, deployments and tenants so, and keeps them so."""
