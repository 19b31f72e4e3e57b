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
{{- with .Values.sharedCache -}}
{{- if .enabled -}}
{{- $_ := set $settings "tierRedisUrl" (.url | default (include "hanmaru.redis.url" $)) -}}
{{- $_ := set $settings "tierRedisUser" .user -}}
{{- $_ := set $settings "tierRedisPasswordFile" "/etc/hanmaru/redis/tier-password" -}}
{{- if .url -}}
{{- if .ca.name -}}{{- $_ := set $settings "tierRedisCaFile" "/etc/hanmaru/redis/tier-ca.crt" -}}{{- end -}}
{{- with .serverName -}}{{- $_ := set $settings "tierRedisServerName" . -}}{{- end -}}
{{- else -}}
{{- /* The same Redis, so the same way to it. */ -}}
{{- range $name := list "CaFile" "CertFile" "KeyFile" "ServerName" "SentinelUser" "SentinelPasswordFile" -}}
{{- with get $settings (printf "workerRedis%s" $name) -}}{{- $_ := set $settings (printf "tierRedis%s" $name) . -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $settings -}}
{{- end -}}
