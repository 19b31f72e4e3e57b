{{/* One Ingress. Takes (dict "root" $ "route" .Values.gateway.ingress.http "name" … "service" … "port" "http"
"isGrpc" false). */}}
{{- define "hanmaru.gateway.ingress" -}}
{{- $root := .root -}}
{{- $gateway := $root.Values.gateway -}}
{{- $isTls := ne $gateway.tls.existingSecret "" -}}
{{- $annotations := dict -}}
{{- if eq $gateway.ingress.controller "nginx" -}}
{{- $protocol := ternary "GRPC" "HTTP" .isGrpc -}}
{{- /* Nothing is buffered, a stream may be silent as long as an engine may be, and bodies are refused by whoever can
say why: the gateway. */ -}}
{{- $annotations = dict
  "nginx.ingress.kubernetes.io/backend-protocol" (ternary (printf "%sS" $protocol) $protocol $isTls)
  "nginx.ingress.kubernetes.io/proxy-buffering" "off"
  "nginx.ingress.kubernetes.io/proxy-request-buffering" "off"
  "nginx.ingress.kubernetes.io/proxy-body-size" (printf "%d" (int64 $gateway.settings.bodyBytes))
  "nginx.ingress.kubernetes.io/proxy-read-timeout" (printf "%d" (max $gateway.settings.firstTokenTimeoutSeconds $gateway.settings.answerTimeoutSeconds))
  "nginx.ingress.kubernetes.io/proxy-send-timeout" (printf "%d" (max $gateway.settings.firstTokenTimeoutSeconds $gateway.settings.answerTimeoutSeconds))
  "nginx.ingress.kubernetes.io/proxy-next-upstream" "error timeout"
  "nginx.ingress.kubernetes.io/proxy-connect-timeout" "5" -}}
{{- else if eq $gateway.ingress.controller "haproxy" -}}
{{- $annotations = dict "haproxy.org/timeout-server" (printf "%ds" (max $gateway.settings.firstTokenTimeoutSeconds $gateway.settings.answerTimeoutSeconds)) -}}
{{- if .isGrpc -}}{{- $_ := set $annotations "haproxy.org/server-proto" "h2" -}}{{- end -}}
{{- if $isTls -}}{{- $_ := set $annotations "haproxy.org/server-ssl" "true" -}}{{- end -}}
{{- end -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {{ .name }}
  namespace: {{ $root.Release.Namespace }}
  {{- include "hanmaru.metadata" (dict "root" $root "component" "gateway" "annotations" (merge (dict) .route.annotations $annotations)) | nindent 2 }}
spec:
  {{- with .route.className }}
  ingressClassName: {{ . }}
  {{- end }}
  {{- with .route.tls }}
  tls:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  rules:
    {{- range .route.hosts }}
    - host: {{ . | quote }}
      http:
        paths:
          - path: /
            pathType: Prefix
            backend:
              service:
                name: {{ $.service }}
                port: {name: {{ $.port }}}
    {{- end }}
{{- end -}}
