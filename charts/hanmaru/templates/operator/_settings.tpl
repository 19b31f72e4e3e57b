{{/* The operator's settings file: what values decide, and what the chart knows. */}}
{{- define "hanmaru.operator.settings" -}}
{{- $operator := .Values.operator -}}
{{- $files := include "hanmaru.redis.files" (dict "root" $ "role" "operator") | fromJson -}}
{{- $images := dict -}}
{{- range $engine, $image := $operator.workerImages -}}
{{- if $image.repository -}}
{{- $_ := set $images $engine (include "hanmaru.image" (dict "root" $ "image" $image)) -}}
{{- end -}}
{{- end -}}
{{- $settings := omit $operator.settings "sharedDomains" -}}
{{- $domains := dict -}}
{{- range $name, $tenants := $operator.settings.sharedDomains -}}
{{- $_ := set $domains $name (ternary nil $tenants (has "*" $tenants)) -}}
{{- end -}}
{{- $settings = merge (dict
  "host" "0.0.0.0"
  "httpPort" 9080
  "lease" (dict "name" (include "hanmaru.names.operator" $))
  "sharedDomains" $domains
  "workerImages" $images
  "operatorImage" (include "hanmaru.image" (dict "root" $ "image" $operator.image))
  "workerRedisUser" .Values.redis.users.worker
  "workerRedisPasswordFile" "/etc/hanmaru/redis/worker-password"
  "gatewayPodLabels" (include "hanmaru.selectorLabels" (dict "root" $ "component" "gateway") | fromYaml)
  "metricsNamespaceLabels" .Values.monitoring.namespaceLabels
  "imagePullPolicy" .Values.global.imagePullPolicy
  "imagePullSecrets" .Values.global.imagePullSecrets
) $settings -}}
{{- with $operator.tenantNamespaces -}}{{- $_ := set $settings "tenantNamespaces" . -}}{{- end -}}
{{- with include "hanmaru.traceEndpoint" $ -}}{{- $_ := set $settings "traceEndpoint" . -}}{{- end -}}
{{- /* What workers need beyond a URL, they get from the operator's own files. */ -}}
{{- range $file, $setting := dict "ca.crt" "workerRedisCaFile" "tls.crt" "workerRedisCertFile" "tls.key" "workerRedisKeyFile" "sentinel-password" "workerRedisSentinelPasswordFile" -}}
{{- if hasKey $files $file -}}{{- $_ := set $settings $setting (printf "/etc/hanmaru/redis/%s" $file) -}}{{- end -}}
{{- end -}}
{{- if not .Values.redis.enabled -}}
{{- with .Values.redis.external.serverName -}}{{- $_ := set $settings "workerRedisServerName" . -}}{{- end -}}
{{- with .Values.redis.external.sentinel.user -}}{{- $_ := set $settings "workerRedisSentinelUser" . -}}{{- end -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}
