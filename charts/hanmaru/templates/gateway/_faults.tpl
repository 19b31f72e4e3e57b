{{/* What the gateway's values may not say together; `templates/_validate.tpl` asks. */}}
{{- define "hanmaru.gateway.faults" -}}
{{- $gateway := .Values.gateway -}}
{{- $redis := $gateway.ray.redis -}}
{{- if and $redis.enabled $redis.external.address }}
gateway.ray.redis.enabled is true and gateway.ray.redis.external.address is given; set gateway.ray.redis.enabled=false to use {{ $redis.external.address }}
{{- end }}
{{- if not (or $redis.enabled $redis.external.address) }}
gateway.ray.redis.enabled is false and gateway.ray.redis.external.address is empty; without a Redis a restarted head would end every gateway
{{- end }}
{{- if and (not $redis.enabled) $redis.persistence.enabled }}
gateway.ray.redis.persistence is for the chart's own Redis; set it to false beside gateway.ray.redis.external.address
{{- end }}
{{- if and (not $redis.enabled) $redis.existingSecret }}
gateway.ray.redis.existingSecret is for the chart's own Redis; name the Secret in gateway.ray.redis.external.password
{{- end }}
{{- if and (eq $gateway.ray.mode "kuberay") $gateway.autoscaling.enabled }}
gateway.autoscaling scales a Deployment, and gateway.ray.mode=kuberay has none; set gateway.replicas
{{- end }}
{{- if and (eq $gateway.ray.mode "kuberay") (not (.Capabilities.APIVersions.Has "ray.io/v1")) }}
gateway.ray.mode is kuberay, but the cluster has no ray.io/v1; install the KubeRay operator, or use standalone
{{- end }}
{{- if and $gateway.autoscaling.enabled (gt (int $gateway.autoscaling.minReplicas) (int $gateway.autoscaling.maxReplicas)) }}
gateway.autoscaling.minReplicas is {{ $gateway.autoscaling.minReplicas }}, more than maxReplicas, {{ $gateway.autoscaling.maxReplicas }}
{{- end }}
{{- range $kind, $route := dict "http" $gateway.ingress.http "grpc" $gateway.ingress.grpc }}
{{- if and $route.enabled (not $route.hosts) }}
gateway.ingress.{{ $kind }}.enabled needs gateway.ingress.{{ $kind }}.hosts: the names that lead here
{{- end }}
{{- end }}
{{- range $kind, $route := dict "httpRoute" $gateway.gatewayAPI.httpRoute "grpcRoute" $gateway.gatewayAPI.grpcRoute }}
{{- if and $route.enabled (not $route.parentRefs) }}
gateway.gatewayAPI.{{ $kind }}.enabled needs gateway.gatewayAPI.{{ $kind }}.parentRefs: the Gateways that take it
{{- end }}
{{- end }}
{{- if and $gateway.clients (not .Values.networkPolicies.enabled) }}
gateway.clients has no effect while networkPolicies.enabled is false; remove one of them
{{- end }}
{{- end -}}
