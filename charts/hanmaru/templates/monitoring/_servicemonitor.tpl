{{/* A ServiceMonitor of one component's Service. Takes (dict "root" $ "component" "operator" "port" "http"), and
"scheme" where it may be https: the certificate is then not compared with the pod's address. */}}
{{- define "hanmaru.serviceMonitor" -}}
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  name: {{ include "hanmaru.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  {{- include "hanmaru.metadata" (merge (dict "labels" .root.Values.monitoring.serviceMonitors.labels) .) | nindent 2 }}
spec:
  selector:
    matchLabels:
      {{- include "hanmaru.selectorLabels" . | nindent 6 }}
  endpoints:
    - port: {{ .port }}
      path: /metrics
      {{- with .scheme }}
      scheme: {{ . }}
      {{- if eq . "https" }}
      # The certificate names the Service; pods are asked by their addresses.
      tlsConfig: {insecureSkipVerify: true}
      {{- end }}
      {{- end }}
      interval: {{ .root.Values.monitoring.serviceMonitors.interval }}
{{- end -}}
