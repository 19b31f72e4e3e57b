{{/* What no schema can refuse: each sentence says what was seen and what to do. All are told at once. A component adds
its own by a template "hanmaru.NAME.faults", one sentence a line; `templates/validate.yaml` asks for all. */}}

{{- define "hanmaru.redis.faults" -}}
{{- $redis := .Values.redis -}}
{{- $external := $redis.external.url -}}
{{- if and $redis.enabled $external }}
redis.enabled is true and redis.external.url is given; set redis.enabled=false to use {{ $external }}
{{- end }}
{{- if not (or $redis.enabled $external) }}
redis.enabled is false and redis.external.url is empty; give the URL of your Redis (docs/redis.md)
{{- end }}
{{- if and (not $redis.enabled) (not $redis.existingSecret) }}
an external Redis needs redis.existingSecret: a Secret with the passwords in the entries worker, gateway and operator
{{- end }}
{{- if and $redis.enabled $redis.tls.enabled (not $redis.tls.existingSecret) }}
redis.tls.enabled needs redis.tls.existingSecret: tls.crt, tls.key and ca.crt for {{ include "hanmaru.names.redis" . }}.{{ .Release.Namespace }}.svc
{{- end }}
{{- if and (not $redis.enabled) $redis.tls.enabled }}
redis.tls is for the chart's own Redis; an external one has TLS when its URL begins with rediss
{{- end }}
{{- if and (not $redis.enabled) $redis.persistence.enabled }}
redis.persistence is for the chart's own Redis; set redis.persistence.enabled=false beside redis.external.url
{{- end }}
{{- range $role, $name := $redis.users }}
{{- if and $redis.enabled (ne $role $name) }}
redis.users.{{ $role }} is {{ $name }}; only an external Redis may have other names of users
{{- end }}
{{- end }}
{{- if and $external (not (hasPrefix "rediss" $external)) (or $redis.external.ca.name $redis.external.clientCertificateSecret) }}
redis.external has certificates, but its URL {{ $external }} has no TLS; begin it with rediss
{{- end }}
{{- if and $external (not (contains "+sentinel:" $external)) (or $redis.external.sentinel.user $redis.external.sentinel.passwordKey) }}
redis.external.sentinel is given, but its URL {{ $external }} names no sentinels; write rediss+sentinel:// or redis+sentinel://
{{- end }}
{{- end -}}

{{- define "hanmaru.sharedCache.faults" -}}
{{- with .Values.sharedCache -}}
{{- if and .enabled .url (not .existingSecret) }}
sharedCache.url needs sharedCache.existingSecret: a Secret with the password of user {{ .user }} in the entry tier
{{- end }}
{{- if and .enabled (not .url) .existingSecret }}
sharedCache.existingSecret goes with sharedCache.url; for the other Redis the password is an entry tier of redis.existingSecret
{{- end }}
{{- if and .enabled (not .url) $.Values.redis.enabled (ne .user "tier") }}
sharedCache.user is {{ .user }}; the chart's own Redis knows it as tier
{{- end }}
{{- if and .enabled (not .url) $.Values.redis.enabled $.Values.redis.persistence.enabled }}
sharedCache on the chart's own Redis goes without redis.persistence: every page would be written to its disk, and a full disk stops registrations and quotas; give sharedCache.url, or set redis.persistence.enabled=false
{{- end }}
{{- if and .enabled (not .url) (or .ca.name .serverName) }}
sharedCache.ca and sharedCache.serverName go with sharedCache.url
{{- end }}
{{- if and .url (not (hasPrefix "rediss" .url)) (or .ca.name .serverName) }}
sharedCache has a certificate or a server name, but its URL {{ .url }} has no TLS; begin it with rediss
{{- end }}
{{- end }}
{{- end -}}

{{- define "hanmaru.operator.faults" -}}
{{- $operator := .Values.operator -}}
{{- if and .Values.tenants $operator.tenantNamespaces (not (has .Release.Namespace $operator.tenantNamespaces)) }}
tenants are made in {{ .Release.Namespace }}, which is not one of operator.tenantNamespaces; add it, or make them elsewhere
{{- end }}
{{- range $name, $pool := .Values.pools }}
{{- $type := dig "engine" "type" "SGLang" $pool }}
{{- if not (or (dig "engine" "image" "" $pool) (get $operator.workerImages $type).repository) }}
pools.{{ $name }} runs {{ $type }}, for which there is no image; give pools.{{ $name }}.engine.image or operator.workerImages.{{ $type }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "hanmaru.collector.faults" -}}
{{- if and .Values.collector.enabled .Values.tracing.endpoint }}
tracing.endpoint and collector.enabled are both given; set collector.enabled=false, or collector.export.endpoint={{ .Values.tracing.endpoint }}
{{- end }}
{{- if and .Values.collector.config .Values.collector.export.endpoint }}
collector.config is the whole configuration, so collector.export.endpoint has no effect; remove one of them
{{- end }}
{{- end -}}

{{- define "hanmaru.reservedLabels.faults" -}}
{{- range $key, $_ := .labels }}
{{- if has $key (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "app.kubernetes.io/part-of" "helm.sh/chart") }}
{{ $.path }}.labels may not set {{ $key }}: the chart finds its own pods by it
{{- end }}
{{- end }}
{{- end -}}

{{/* Of every component that has pods. One that is off may be given whatever it likes. */}}
{{- define "hanmaru.pods.faults" -}}
{{- $ray := .Values.gateway.ray -}}
{{- range $path, $values := dict "operator" .Values.operator "gateway" .Values.gateway "gateway.ray.head" $ray.head "gateway.ray.redis" $ray.redis "redis" .Values.redis "collector" .Values.collector }}
{{- if dig "enabled" true $values }}
{{- if and (not $values.serviceAccount.create) (not $values.serviceAccount.name) }}
{{ $path }}.serviceAccount.create is false: name the account that exists
{{- end }}
{{- include "hanmaru.reservedLabels.faults" (dict "path" $path "labels" $values.labels) }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "hanmaru.global.faults" -}}
{{- include "hanmaru.reservedLabels.faults" (dict "path" "global" "labels" .Values.global.labels) }}
{{- if .Values.global.airGapped }}
{{- range $name, $deployment := .Values.modelDeployments }}
{{- $sources := list $deployment.source }}
{{- range $deployment.pools }}{{- $sources = append $sources (dig "source" (dict) .) }}{{- end }}
{{- range $sources }}
{{- if and (eq (dig "type" "" .) "HuggingFace") (not (dig "huggingFace" "endpoint" "" .)) }}
modelDeployments.{{ $name }} downloads from a model hub, but global.airGapped is true; use a claim, an image, or huggingFace.endpoint
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "hanmaru.faults" -}}
{{- include "hanmaru.global.faults" . }}
{{- include "hanmaru.pods.faults" . }}
{{- include "hanmaru.operator.faults" . }}
{{- include "hanmaru.gateway.faults" . }}
{{- include "hanmaru.redis.faults" . }}
{{- include "hanmaru.sharedCache.faults" . }}
{{- include "hanmaru.collector.faults" . }}
{{- end -}}
