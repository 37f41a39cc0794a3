{{/* Names, labels and the pieces that every pod shares. */}}
{{- define "fovea.image" -}}
{{- $root := index . 0 -}}{{- $service := index . 1 -}}
{{- with $root.Values.image.registry }}{{ . }}/{{ end }}fovea-{{ $service }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end }}

{{- define "fovea.release" -}}
app.kubernetes.io/name: fovea
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "fovea.selector" -}}
{{- $root := index . 0 -}}{{- $part := index . 1 -}}
{{ include "fovea.release" $root }}
app.kubernetes.io/component: {{ $part }}
{{- end }}

{{- define "fovea.labels" -}}
{{- $root := index . 0 -}}
{{ include "fovea.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
{{- end }}

{{- define "fovea.redisUrl" -}}
{{- .Values.redis.url | default (printf "redis://%s-redis:6379/0" .Release.Name) -}}
{{- end }}

{{- define "fovea.env" -}}
- {name: FOVEA_REDIS_URL, value: {{ include "fovea.redisUrl" . | quote }}}
{{- range $name, $value := .Values.settings }}
- {name: FOVEA_{{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}

{{- define "fovea.sessionKey" -}}
- name: FOVEA_SESSION_KEY
  valueFrom: {secretKeyRef: {name: {{ .Values.auth.sessionSecret }}, key: session.key, optional: true}}
{{- end }}

{{- define "fovea.podIP" -}}
- name: FOVEA_REPLICA_ADVERTISED_HOST
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- end }}

{{- define "fovea.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "fovea.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "fovea.volumes" -}}
- {name: tmp, emptyDir: {}}
- {name: data, emptyDir: {}}
- name: blobs
  persistentVolumeClaim: {claimName: {{ .Release.Name }}-blobs}
{{- end }}

{{- define "fovea.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: data, mountPath: /data}
- {name: blobs, mountPath: /data/blobs}
{{- end }}
