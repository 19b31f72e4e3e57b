{{/* A pool's spec; on an air-gapped cluster no engine asks a model hub for anything. Takes (dict "root" $ "spec" …). */}}
{{- define "hanmaru.pool.spec" -}}
{{- $spec := deepCopy .spec -}}
{{- if .root.Values.global.airGapped -}}
{{- $engine := dig "engine" (dict) $spec -}}
{{- $env := list (dict "name" "HF_HUB_OFFLINE" "value" "1") -}}
{{- range dig "env" (list) $engine -}}
{{- if ne .name "HF_HUB_OFFLINE" -}}{{- $env = append $env . -}}{{- end -}}
{{- end -}}
{{- $_ := set $spec "engine" (merge (dict "env" $env) $engine) -}}
{{- end -}}
{{- toYaml $spec -}}
{{- end -}}
