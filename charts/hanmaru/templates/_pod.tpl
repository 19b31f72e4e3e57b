{{/* What pods of all components have in common, as small pieces. "values" is a component's values (PodValues in
tools/hanmaru_chart/globals.py). */}}

{{/* An image's reference. Takes (dict "root" $ "image" .Values.operator.image). */}}
{{- define "hanmaru.image" -}}
{{- $global := .root.Values.global -}}
{{- $registry := .image.registry | default $global.imageRegistry -}}
{{- if and .image.registry $global.mirrorRegistry -}}{{- $registry = $global.mirrorRegistry -}}{{- end -}}
{{- $registry }}/{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion -}}
{{- with .image.digest }}@{{ . }}{{- end -}}
{{- end -}}

{{/* `image` and `imagePullPolicy` of a container. Takes the same. */}}
{{- define "hanmaru.container.image" -}}
image: {{ include "hanmaru.image" . }}
{{- with .image.pullPolicy | default .root.Values.global.imagePullPolicy }}
imagePullPolicy: {{ . }}
{{- end }}
{{- end -}}

{{/* Of what a ConfigMap holds, for an annotation of the pods that read it; its labels, and so the chart's version, do
not count. Takes (dict "root" $ "path" "/redis/configmap.yaml"). */}}
{{- define "hanmaru.checksum" -}}
{{- (include (print .root.Template.BasePath .path) .root | fromYaml).data | toJson | sha256sum -}}
{{- end -}}

{{/* Pod Security "restricted". The number is that of our images; others run with any. */}}
{{- define "hanmaru.pod.security" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "hanmaru.container.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* The pod's spec but its containers and volumes. Takes (dict "root" $ "component" "operator" "values"
.Values.operator). Who needs a token of the API sets automountServiceAccountToken on the ServiceAccount and passes
"token" true. */}}
{{- define "hanmaru.pod.spec" -}}
serviceAccountName: {{ include "hanmaru.names.serviceAccount" . }}
automountServiceAccountToken: {{ .token | default false }}
enableServiceLinks: false
{{- with .root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
securityContext:
  {{- include "hanmaru.pod.security" . | nindent 2 }}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
affinity:
{{- if .values.affinity }}
  {{- toYaml .values.affinity | nindent 2 }}
{{- else }}
  # Not a spread constraint: beside one, nodes without a zone would be left out of every scoring.
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 50
        podAffinityTerm:
          topologyKey: topology.kubernetes.io/zone
          labelSelector:
            matchLabels:
              {{- include "hanmaru.selectorLabels" . | nindent 14 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
topologySpreadConstraints:
{{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
{{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    # The pods that are being replaced do not count.
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels:
        {{- include "hanmaru.selectorLabels" . | nindent 8 }}
{{- end }}
{{- end -}}

{{/* The ServiceAccount of a component. Takes the same. */}}
{{- define "hanmaru.serviceAccount" -}}
{{- if .values.serviceAccount.create -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "hanmaru.names.serviceAccount" . }}
  namespace: {{ .root.Release.Namespace }}
  {{- include "hanmaru.metadata" (dict "root" .root "component" .component "annotations" .values.serviceAccount.annotations) | nindent 2 }}
automountServiceAccountToken: false
{{- end -}}
{{- end -}}

{{/* The PodDisruptionBudget of a component. Takes the same. */}}
{{- define "hanmaru.podDisruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "hanmaru.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  {{- include "hanmaru.metadata" . | nindent 2 }}
spec:
  maxUnavailable: {{ .values.podDisruptionBudget.maxUnavailable }}
  # A pod that does not get ready anyway keeps no node from being drained.
  unhealthyPodEvictionPolicy: AlwaysAllow
  selector:
    matchLabels:
      {{- include "hanmaru.selectorLabels" . | nindent 6 }}
{{- end -}}
