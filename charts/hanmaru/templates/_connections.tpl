{{/* How programs reach Redis, the collector and the platform secret: environment, mounts and volumes. */}}

{{- define "hanmaru.redis.url" -}}
{{- if .Values.redis.enabled -}}
{{- ternary "rediss" "redis" .Values.redis.tls.enabled }}://{{ include "hanmaru.names.redis" . }}.{{ .Release.Namespace }}.svc:6379/0
{{- else -}}
{{- .Values.redis.external.url -}}
{{- end -}}
{{- end -}}

{{/* Users of the chart's own Redis: JSON. */}}
{{- define "hanmaru.redis.roles" -}}
{{- $tier := and .Values.sharedCache.enabled (not .Values.sharedCache.url) -}}
{{- toJson (concat (list "gateway" "operator" "worker") (ternary (list "tier") list $tier)) -}}
{{- end -}}

{{/* Files below /etc/hanmaru/redis, of which there are some or none: JSON of {file: {secret, key}}. Takes
(dict "root" $ "role" "gateway"). The operator has the workers' password as well, and the shared caches': it hands them to each replica. */}}
{{- define "hanmaru.redis.files" -}}
{{- $redis := .root.Values.redis -}}
{{- $passwords := include "hanmaru.names.redisSecret" .root -}}
{{- $files := dict "password" (dict "secret" $passwords "key" .role) -}}
{{- if eq .role "operator" -}}
{{- $_ := set $files "worker-password" (dict "secret" $passwords "key" "worker") -}}
{{- with .root.Values.sharedCache -}}
{{- if .enabled -}}
{{- $_ := set $files "tier-password" (dict "secret" (.existingSecret | default $passwords) "key" "tier") -}}
{{- if .ca.name -}}{{- $_ := set $files "tier-ca.crt" (dict "secret" .ca.name "key" .ca.key) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if $redis.enabled -}}
{{- if $redis.tls.enabled -}}
{{- $_ := set $files "ca.crt" (dict "secret" $redis.tls.existingSecret "key" "ca.crt") -}}
{{- end -}}
{{- else -}}
{{- with $redis.external -}}
{{- if .ca.name -}}{{- $_ := set $files "ca.crt" (dict "secret" .ca.name "key" .ca.key) -}}{{- end -}}
{{- if .clientCertificateSecret -}}
{{- $_ := set $files "tls.crt" (dict "secret" .clientCertificateSecret "key" "tls.crt") -}}
{{- $_ := set $files "tls.key" (dict "secret" .clientCertificateSecret "key" "tls.key") -}}
{{- end -}}
{{- if .sentinel.passwordKey -}}
{{- $_ := set $files "sentinel-password" (dict "secret" $passwords "key" .sentinel.passwordKey) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $files -}}
{{- end -}}

{{/* Environment of a program that speaks to Redis as a role. Takes the same. */}}
{{- define "hanmaru.redis.env" -}}
{{- $files := include "hanmaru.redis.files" . | fromJson -}}
- name: HANMARU_REDIS_URL
  value: {{ include "hanmaru.redis.url" .root | quote }}
- name: HANMARU_REDIS_USER
  value: {{ get .root.Values.redis.users .role | quote }}
{{- range $file, $variable := dict "password" "PASSWORD_FILE" "ca.crt" "CA_FILE" "tls.crt" "CERT_FILE" "tls.key" "KEY_FILE" "sentinel-password" "SENTINEL_PASSWORD_FILE" }}
{{- if hasKey $files $file }}
- name: HANMARU_REDIS_{{ $variable }}
  value: /etc/hanmaru/redis/{{ $file }}
{{- end }}
{{- end }}
{{- if not .root.Values.redis.enabled }}
{{- with .root.Values.redis.external.serverName }}
- name: HANMARU_REDIS_SERVER_NAME
  value: {{ . | quote }}
{{- end }}
{{- with .root.Values.redis.external.sentinel.user }}
- name: HANMARU_REDIS_SENTINEL_USER
  value: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "hanmaru.redis.volumeMount" -}}
- name: redis-login
  mountPath: /etc/hanmaru/redis
  readOnly: true
{{- end -}}

{{- define "hanmaru.redis.volume" -}}
- name: redis-login
  projected:
    # Owner root, group the pod's: nobody else may read it.
    defaultMode: 0440
    sources:
      {{- range $file, $from := include "hanmaru.redis.files" . | fromJson }}
      - secret:
          name: {{ $from.secret }}
          items:
            - key: {{ $from.key }}
              path: {{ $file }}
      {{- end }}
{{- end -}}

{{/* The platform secret: operator and gateways. */}}
{{- define "hanmaru.platform.env" -}}
- name: HANMARU_PLATFORM_SECRET_FILE
  value: /etc/hanmaru/platform/secret
{{- end -}}
{{- define "hanmaru.platform.volumeMount" -}}
- name: platform-secret
  mountPath: /etc/hanmaru/platform
  readOnly: true
{{- end -}}
{{- define "hanmaru.platform.volume" -}}
- name: platform-secret
  secret:
    secretName: {{ include "hanmaru.names.platformSecret" . }}
    defaultMode: 0440
    items:
      - key: {{ .Values.platform.key }}
        path: secret
{{- end -}}

{{/* Where spans go; empty: nowhere. */}}
{{- define "hanmaru.traceEndpoint" -}}
{{- if .Values.collector.enabled -}}
http://{{ include "hanmaru.names.collector" . }}.{{ .Release.Namespace }}.svc:4317
{{- else -}}
{{- .Values.tracing.endpoint -}}
{{- end -}}
{{- end -}}
{{- define "hanmaru.tracing.env" -}}
{{- with include "hanmaru.traceEndpoint" . -}}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end -}}
{{- end -}}
