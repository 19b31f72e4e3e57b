{{/* Every name of an object, and how its pods are found. Each takes the root context. */}}

{{- define "hanmaru.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* The release's name when it says what this is, else with the chart's; short enough for every suffix below. */}}
{{- define "hanmaru.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "hanmaru.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "hanmaru.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "hanmaru.names.operator" -}}{{ include "hanmaru.fullname" . }}-operator{{- end -}}
{{- define "hanmaru.names.gateway" -}}{{ include "hanmaru.fullname" . }}-gateway{{- end -}}
{{- define "hanmaru.names.rayHead" -}}{{ include "hanmaru.fullname" . }}-ray-head-{{ .Values.gateway.ray.version | replace "." "-" }}{{- end -}}
{{- define "hanmaru.names.rayRedis" -}}{{ include "hanmaru.fullname" . }}-ray-redis{{- end -}}
{{- define "hanmaru.names.redis" -}}{{ include "hanmaru.fullname" . }}-redis{{- end -}}
{{- define "hanmaru.names.collector" -}}{{ include "hanmaru.fullname" . }}-collector{{- end -}}
{{- define "hanmaru.names.workers" -}}{{ include "hanmaru.fullname" . }}-workers{{- end -}}
{{- define "hanmaru.names.test" -}}{{ include "hanmaru.fullname" . }}-test{{- end -}}
{{- define "hanmaru.names.defaultDeny" -}}{{ include "hanmaru.fullname" . }}-default-deny{{- end -}}

{{/* Roles and bindings in tenants' namespaces, and everything of the cluster: two releases may share a name there. */}}
{{- define "hanmaru.names.clusterOperator" -}}
{{- include "hanmaru.names.operator" . -}}{{- if ne .Release.Namespace (include "hanmaru.fullname" .) -}}-{{ .Release.Namespace }}{{- end -}}
{{- end -}}

{{/* Secrets: the chart's own, or those that exist. */}}
{{- define "hanmaru.names.platformSecret" -}}
{{- .Values.platform.existingSecret | default (printf "%s-platform" (include "hanmaru.fullname" .)) -}}
{{- end -}}
{{- define "hanmaru.names.redisSecret" -}}
{{- .Values.redis.existingSecret | default (include "hanmaru.names.redis" .) -}}
{{- end -}}
{{- define "hanmaru.names.rayRedisSecret" -}}
{{- .Values.gateway.ray.redis.existingSecret | default (include "hanmaru.names.rayRedis" .) -}}
{{- end -}}

{{/* A component's ServiceAccount. Takes (dict "root" $ "component" "operator" "values" .Values.operator). */}}
{{- define "hanmaru.names.serviceAccount" -}}
{{- .values.serviceAccount.name | default (printf "%s-%s" (include "hanmaru.fullname" .root) .component) -}}
{{- end -}}
