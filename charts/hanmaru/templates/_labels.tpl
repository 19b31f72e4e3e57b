{{/* Labels. Each takes (dict "root" $ "component" "operator"). */}}

{{/* What selects a component's pods; never changes in a release's life. */}}
{{- define "hanmaru.selectorLabels" -}}
app.kubernetes.io/name: {{ include "hanmaru.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "hanmaru.labels" -}}
{{ include "hanmaru.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: hanmaru
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.global.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The head of an object's metadata but its name: labels, and annotations where there are any ("labels" and
"annotations", dicts, add some; theirs count where ours have the same name). */}}
{{- define "hanmaru.metadata" -}}
labels:
  {{- merge (dict) (.labels | default dict) (include "hanmaru.labels" . | fromYaml) | toYaml | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) .root.Values.global.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Labels and annotations of a component's pods. Takes (dict "root" $ "component" … "values" .Values.operator
"annotations" (dict …)). The version is left out of the pods' labels: a pod changes when its image does. */}}
{{- define "hanmaru.podMetadata" -}}
labels:
  {{- include "hanmaru.selectorLabels" . | nindent 2 }}
  app.kubernetes.io/part-of: hanmaru
  {{- with merge (dict) .values.labels .root.Values.global.labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) .values.annotations .root.Values.global.annotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
