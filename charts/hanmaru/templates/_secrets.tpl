{{/* A Secret of random words, made once and found again at each upgrade. Takes (dict "root" $ "component" "redis"
"name" … "keys" (list "worker") "characters" 48), and "annotations" where there are some. Without a cluster nothing can
be found: each rendering makes others. */}}
{{- define "hanmaru.secretMadeOnce" -}}
{{- $there := lookup "v1" "Secret" .root.Release.Namespace .name -}}
apiVersion: v1
kind: Secret
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  {{- include "hanmaru.metadata" . | nindent 2 }}
type: Opaque
data:
  {{- range .keys }}
  {{ . }}: {{ dig "data" . "" $there | default (randAlphaNum $.characters | b64enc) | quote }}
  {{- end }}
{{- end -}}
