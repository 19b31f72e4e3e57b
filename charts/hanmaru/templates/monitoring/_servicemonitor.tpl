{{/* A ServiceMonitor of one component's Service. Takes (dict "root" $ "component" "operator" "port" "http"), and
"scheme" where it may be https: the certificate is then not compared with the pod's address. */}}
{{- define "hanmaru.serviceMonitor" -}}
apiVersion: monitoring.coreos.com/v1
kind: ServiceMonitor
metadata:
  name: {{ include "hanmaru.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "hanmaru.labels" . | nindent 4 }}
    {{- with .root.Values.monitoring.serviceMonitors.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .root.Values.global.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
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
      {{- if eq (.scheme | default "http") "https" }}
      scheme: https
      tlsConfig:
        insecureSkipVerify: true
      {{- end }}
{{- end -}}
