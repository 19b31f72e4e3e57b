{{/* What the objects of the gateway share. */}}

{{- define "hanmaru.gateway.scheme" -}}
{{- ternary "https" "http" (ne .Values.gateway.tls.existingSecret "") -}}
{{- end -}}

{{- define "hanmaru.gateway.isStandalone" -}}
{{- if eq .Values.gateway.ray.mode "standalone" -}}true{{- end -}}
{{- end -}}

{{/* The chart's own Redis of Ray runs in either mode. */}}
{{- define "hanmaru.gateway.rayRedisAddress" -}}
{{- $redis := .Values.gateway.ray.redis -}}
{{- if $redis.enabled -}}
redis://{{ include "hanmaru.names.rayRedis" . }}.{{ .Release.Namespace }}.svc:6379
{{- else -}}
{{- $redis.external.address -}}
{{- end -}}
{{- end -}}

{{- define "hanmaru.gateway.rayRedisUser" -}}
{{- ternary "ray" .Values.gateway.ray.redis.external.user .Values.gateway.ray.redis.enabled -}}
{{- end -}}

{{/* The Secret entry with the password of Ray's Redis, as JSON {name, key}; the name is empty when there is none. */}}
{{- define "hanmaru.gateway.rayRedisPassword" -}}
{{- if .Values.gateway.ray.redis.enabled -}}
{{- dict "name" (include "hanmaru.names.rayRedisSecret" .) "key" "password" | toJson -}}
{{- else -}}
{{- .Values.gateway.ray.redis.external.password | toJson -}}
{{- end -}}
{{- end -}}

{{- define "hanmaru.gateway.tokenSecret" -}}
{{- .Values.gateway.ray.tokenSecret.name | default (printf "%s-ray-token" (include "hanmaru.fullname" .)) -}}
{{- end -}}

{{/* What selects the head's pod: of another version of Ray it is another head. */}}
{{- define "hanmaru.gateway.headSelector" -}}
{{ include "hanmaru.selectorLabels" (dict "root" . "component" "ray-head") }}
serving.hanmaru.dev/ray: {{ .Values.gateway.ray.version | quote }}
{{- end -}}

{{/* What a pod is granted to end: what `hanmaru gateway node` waits for, and Ray's end. */}}
{{- define "hanmaru.gateway.graceSeconds" -}}
{{- with .Values.gateway.settings -}}
{{- add .leaveDelaySeconds .shutdownTimeoutSeconds 45 -}}
{{- end -}}
{{- end -}}

{{/* Environment of whatever runs Ray. */}}
{{- define "hanmaru.gateway.rayEnv" -}}
- name: HOME
  value: /tmp
- name: POD_IP
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: RAY_AUTH_MODE
  value: token
- name: RAY_AUTH_TOKEN_PATH
  value: /etc/hanmaru/ray/token
{{- end -}}

{{- define "hanmaru.gateway.rayVolumeMounts" -}}
- name: ray-token
  mountPath: /etc/hanmaru/ray
  readOnly: true
- name: tmp
  mountPath: /tmp
- name: shm
  mountPath: /dev/shm
{{- end -}}

{{- define "hanmaru.gateway.rayVolumes" -}}
- name: ray-token
  secret:
    secretName: {{ include "hanmaru.gateway.tokenSecret" . }}
    defaultMode: 0440
    items:
      - {key: {{ .Values.gateway.ray.tokenSecret.key }}, path: token}
- name: tmp
  emptyDir: {}
# Ray's object store, of the smallest size there is: 80 MB.
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: 128Mi
{{- end -}}

{{/* The environment by which a replica knows its settings. Serve is told none of them: a change replaces pods. */}}
{{- define "hanmaru.gateway.env" -}}
{{- $settings := .Values.gateway.settings -}}
- name: HANMARU_GATEWAY_HOST
  value: 0.0.0.0
- name: HANMARU_GATEWAY_LEAVE_DELAY_S
  value: {{ $settings.leaveDelaySeconds | quote }}
- name: HANMARU_GATEWAY_SHUTDOWN_TIMEOUT_S
  value: {{ $settings.shutdownTimeoutSeconds | quote }}
- name: HANMARU_GATEWAY_BODY_BYTES
  value: {{ $settings.bodyBytes | int64 | quote }}
- name: HANMARU_GATEWAY_DEFAULT_OUTPUT_TOKENS
  value: {{ $settings.defaultOutputTokens | int64 | quote }}
- name: HANMARU_GATEWAY_KEEP_ALIVE_S
  value: {{ $settings.keepAliveSeconds | quote }}
- name: HANMARU_GATEWAY_FIRST_TOKEN_TIMEOUT_S
  value: {{ $settings.firstTokenTimeoutSeconds | quote }}
- name: HANMARU_GATEWAY_STALL_TIMEOUT_S
  value: {{ $settings.stallTimeoutSeconds | quote }}
- name: HANMARU_GATEWAY_ANSWER_TIMEOUT_S
  value: {{ $settings.answerTimeoutSeconds | quote }}
{{- if .Values.gateway.tls.existingSecret }}
- name: HANMARU_TLS_CERT_FILE
  value: /etc/hanmaru/tls/tls.crt
- name: HANMARU_TLS_KEY_FILE
  value: /etc/hanmaru/tls/tls.key
{{- end }}
{{ include "hanmaru.platform.env" . }}
{{ include "hanmaru.redis.env" (dict "root" . "role" "gateway") }}
{{- with include "hanmaru.tracing.env" . }}
{{ . }}
{{- end }}
{{- with .Values.gateway.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The pod of a node, in either mode: all but labels, command and what KubeRay adds. Takes (dict "root" $ "values"
.Values.gateway "component" "gateway" "container" "gateway"); "args" and "lifecycle" where there are some. */}}
{{- define "hanmaru.gateway.podSpec" -}}
{{- $root := .root -}}
{{ include "hanmaru.pod.spec" . }}
terminationGracePeriodSeconds: {{ include "hanmaru.gateway.graceSeconds" $root }}
containers:
  - name: {{ .container }}
    {{- include "hanmaru.container.image" (dict "root" $root "image" .values.image) | nindent 4 }}
    {{- with .args }}
    args:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with .lifecycle }}
    lifecycle:
      {{- toYaml . | nindent 6 }}
    {{- end }}
    securityContext:
      {{- include "hanmaru.container.security" $root | nindent 6 }}
    env:
      {{- include "hanmaru.gateway.rayEnv" $root | nindent 6 }}
      {{- with .env }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
      {{- include "hanmaru.gateway.env" $root | nindent 6 }}
    ports:
      - {name: http, containerPort: 8000}
      - {name: grpc, containerPort: 9000}
      - {name: metrics, containerPort: 9090}
      # The first of those that Ray uses.
      - {name: ray, containerPort: 6381}
    # The listener is the replica's, which Serve starts: a head that comes late is waited for.
    startupProbe:
      httpGet: {path: /health, port: http, scheme: {{ include "hanmaru.gateway.scheme" $root | upper }}}
      periodSeconds: 2
      timeoutSeconds: 5
      failureThreshold: 450
    # Long enough for Serve to replace a replica that hangs; what is left then is a node without one.
    livenessProbe:
      httpGet: {path: /health, port: http, scheme: {{ include "hanmaru.gateway.scheme" $root | upper }}}
      periodSeconds: 10
      timeoutSeconds: 5
      failureThreshold: 12
    readinessProbe:
      httpGet: {path: /ready, port: http, scheme: {{ include "hanmaru.gateway.scheme" $root | upper }}}
      periodSeconds: 2
      timeoutSeconds: 3
    resources:
      {{- toYaml .values.resources | nindent 6 }}
    volumeMounts:
      {{- include "hanmaru.gateway.rayVolumeMounts" $root | nindent 6 }}
      {{- include "hanmaru.platform.volumeMount" $root | nindent 6 }}
      {{- include "hanmaru.redis.volumeMount" $root | nindent 6 }}
      {{- if .values.tls.existingSecret }}
      - name: tls
        mountPath: /etc/hanmaru/tls
        readOnly: true
      {{- end }}
      {{- with .values.extraVolumeMounts }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
volumes:
  {{- include "hanmaru.gateway.rayVolumes" $root | nindent 2 }}
  {{- include "hanmaru.platform.volume" $root | nindent 2 }}
  {{- include "hanmaru.redis.volume" (dict "root" $root "role" "gateway") | nindent 2 }}
  {{- if .values.tls.existingSecret }}
  - name: tls
    secret:
      secretName: {{ .values.tls.existingSecret }}
      defaultMode: 0440
  {{- end }}
  {{- with .values.extraVolumes }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}
