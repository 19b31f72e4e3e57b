{{/* Who may come in. */}}

{{/* A list with one rule: the namespaces that fetch metrics, to a port; `[]` where none may. Takes (dict "root" $ "port"
9080). */}}
{{- define "hanmaru.netpol.fromMetrics" -}}
{{- if .root.Values.monitoring.namespaceLabels -}}
- from:
    - namespaceSelector:
        matchLabels:
          {{- toYaml .root.Values.monitoring.namespaceLabels | nindent 10 }}
  ports:
    - port: {{ .port }}
      protocol: TCP
{{- else -}}
[]
{{- end -}}
{{- end -}}

{{/* Peers: pods of a component of this release. Takes (dict "root" $ "component" "gateway"). */}}
{{- define "hanmaru.netpol.component" -}}
- podSelector:
    matchLabels:
      {{- include "hanmaru.selectorLabels" . | nindent 6 }}
{{- end -}}

{{/* Peers: workers, in whatever namespace their deployment is. */}}
{{- define "hanmaru.netpol.workers" -}}
- namespaceSelector: {}
  podSelector:
    matchLabels:
      app.kubernetes.io/managed-by: hanmaru
      app.kubernetes.io/component: worker
{{- end -}}
