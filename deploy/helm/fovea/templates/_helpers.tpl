{{/* Names, labels and the pieces that every pod shares. */}}
{{- define "fovea.image" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $own := index . 2 | default dict -}}
{{- $version := dict -}}{{- if gt (len .) 3 }}{{ $version = index . 3 }}{{ end -}}
{{- $registry := $root.Values.image.registry -}}
{{- $repository := $own.repository | default (join "/" (compact (list $registry (printf "fovea-%s" $name)))) -}}
{{- $digest := $version.digest | default (ternary "" $own.digest (not (empty $version.tag))) -}}
{{- if $digest -}}
{{ $repository }}@{{ $digest }}
{{- else -}}
{{ $repository }}:{{ $version.tag | default $own.tag | default $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Pods that so many replicas take: several share the GPU of a pod where each has a part of it. */}}
{{- define "fovea.pods" -}}
{{- $gpus := float64 (index . 1) -}}
{{- if and (gt $gpus 0.0) (lt $gpus 1.0) }}{{ ceil (divf (index . 0) (floor (divf 1 $gpus))) }}{{ else }}{{ index . 0 }}{{ end -}}
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

{{/* Settings that the chart writes itself: twice in a pod, one of them would win by chance. */}}
{{- define "fovea.ownSettings" -}}
[REDIS_URL, REDIS_PASSWORD, REDIS_CA_FILE, OBJECT_STORE, REPLICA_SECRET, METRICS_PORT, AUTH, KEYS_FILE, SHUTDOWN_GRACE_S,
 TRAFFIC, ON_DEMAND_SERVICES, SESSION_KEY, JUDGE_BASE_URL, JUDGE_API_KEY, REPLICA_ADVERTISED_HOST, SERVICE_VERSION
 {{- if not (or .Values.objectStore.url .Values.objectStore.volume.enabled) }}, JOB_INLINE_MAX_BYTES{{ end }}]
{{- end }}

{{/* A setting as text: YAML makes a float of each number, and a large one would be written with an exponent. */}}
{{- define "fovea.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}{{ else }}{{ . }}{{ end -}}
{{- end }}

{{/* Refuses a least number above the most: a cluster does, once half of the release is there. */}}
{{- define "fovea.requireOrder" -}}
{{- $least := index . 1 -}}{{- $most := index . 3 -}}
{{- if gt (int $least) (int $most) -}}
{{- fail (printf "%s is %v, above %s, which is %v" (index . 0) $least (index . 2) $most) -}}
{{- end -}}
{{- end }}

{{/* Name of a RayService; KubeRay refuses a longer one, by an event that nobody reads. */}}
{{- define "fovea.rayService" -}}
{{- $name := join "-" (compact .) -}}
{{- if gt (len $name) 47 -}}
{{- fail (printf "%s has %d characters and KubeRay takes 47: choose a shorter name of the release or the version" $name (len $name)) -}}
{{- end -}}
{{- $name -}}
{{- end }}

{{/* What the pods of a part get of the values: labels and annotations beyond ours. */}}
{{- define "fovea.podMetadata" -}}
{{- $root := index . 0 -}}{{- $part := index . 1 -}}{{- $values := index . 2 -}}
labels:
  {{- include "fovea.selector" (list $root $part) | nindent 2 }}
  {{- if gt (len .) 3 }}
  fovea.dev/version: {{ index . 3 | default "stable" }}
  {{- end }}
  {{- with $values.podLabels }}{{ toYaml . | nindent 2 }}{{ end }}
{{- with $values.podAnnotations }}
annotations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Where the pods of a part may run, and before which others. */}}
{{- define "fovea.placement" -}}
{{- range $field := list "nodeSelector" "affinity" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" }}
{{- with index $.values $field }}
{{ $field }}: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
{{- if or .values.tolerations .usesGPU }}
tolerations:
  {{- if .usesGPU }}
  - {key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}
  {{- end }}
  {{- with .values.tolerations }}{{ toYaml . | nindent 2 }}{{ end }}
{{- end }}
{{- end }}

{{/* Whether Redis is somebody else's. */}}
{{- define "fovea.hasOutsideRedis" -}}
{{- if or .Values.redis.url .Values.redis.urlSecret.name }}true{{ end }}
{{- end }}

{{- define "fovea.env" -}}
{{- if .Values.redis.urlSecret.name }}
- name: FOVEA_REDIS_URL
  valueFrom: {secretKeyRef: {name: {{ .Values.redis.urlSecret.name }}, key: {{ .Values.redis.urlSecret.key }}}}
{{- else }}
- {name: FOVEA_REDIS_URL, value: {{ .Values.redis.url | default (printf "redis://%s-redis:6379/0" .Release.Name) | quote }}}
{{- end }}
{{- with .Values.redis.passwordSecret }}
- name: FOVEA_REDIS_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ . }}, key: password}}
{{- end }}
{{- if .Values.redis.caSecret }}
- {name: FOVEA_REDIS_CA_FILE, value: /redis/ca.crt}
{{- end }}
{{- if .Values.objectStore.url }}
- {name: FOVEA_OBJECT_STORE, value: {{ .Values.objectStore.url | quote }}}
{{- else if .Values.objectStore.volume.enabled }}
- {name: FOVEA_OBJECT_STORE, value: "file:///store"}
{{- else }}
- {name: FOVEA_JOB_INLINE_MAX_BYTES, value: "1073741824"}
{{- end }}
- name: FOVEA_REPLICA_SECRET
  valueFrom: {secretKeyRef: {name: {{ .Values.auth.replicaSecret }}, key: replica-secret, optional: true}}
{{- range $name, $value := .Values.settings }}
{{- if has $name (include "fovea.ownSettings" $ | fromYamlArray) }}
{{- fail (printf "settings.%s can't be set: the chart writes FOVEA_%s itself, from its other values" $name $name) }}
{{- end }}
- {name: FOVEA_{{ $name }}, value: {{ include "fovea.text" $value | quote }}}
{{- end }}
- {name: FOVEA_METRICS_PORT, value: "9464"}
{{- with .Values.tracing }}
{{- if .endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ .endpoint | quote }}}
- {name: OTEL_TRACES_SAMPLER, value: parentbased_traceidratio}
- {name: OTEL_TRACES_SAMPLER_ARG, value: {{ .sampleRatio | quote }}}
{{- with .headersSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom: {secretKeyRef: {name: {{ . }}, key: headers}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The cloud's own variables for the object store. */}}
{{- define "fovea.envFrom" -}}
{{- with .Values.objectStore.credentialsSecret }}
envFrom: [{secretRef: {name: {{ . }}}}]
{{- end }}
{{- end }}

{{/* The account of pods that use the object store; none of them asks Kubernetes for anything. */}}
{{- define "fovea.account" -}}
automountServiceAccountToken: false
{{- with .Values.objectStore.serviceAccount }}
serviceAccountName: {{ . }}
{{- end }}
{{- end }}

{{/* What replicas and workers of a service know beyond `fovea.env`. */}}
{{- define "fovea.serviceEnv" -}}
{{- $root := index . 0 -}}{{- $service := index . 1 -}}
{{ include "fovea.env" $root }}
- name: FOVEA_SESSION_KEY
  valueFrom: {secretKeyRef: {name: {{ $root.Values.auth.sessionSecret }}, key: session.key, optional: true}}
{{- if eq $service "relevance-judge" }}
- {name: FOVEA_JUDGE_BASE_URL, value: "http://{{ $root.Release.Name }}-gateway"}
- name: FOVEA_JUDGE_API_KEY
  valueFrom: {secretKeyRef: {name: {{ $root.Values.auth.judgeSecret }}, key: api-key, optional: true}}
{{- end }}
{{- end }}

{{/* Variables of a container: a list may hold a name once, and those of the values win over ours. */}}
{{- define "fovea.joinEnv" -}}
{{- $own := index . 1 | default list -}}{{- $names := list -}}{{- $kept := list -}}
{{- range $own }}{{ $names = append $names .name }}{{ end -}}
{{- range index . 0 | fromYamlArray }}{{ if not (has .name $names) }}{{ $kept = append $kept . }}{{ end }}{{ end -}}
{{ concat $kept $own | toYaml }}
{{- end }}

{{- define "fovea.workerEnv" -}}
{{ include "fovea.env" (index . 0) }}
- {name: FOVEA_SHUTDOWN_GRACE_S, value: {{ (index . 1).worker.graceSeconds | quote }}}
{{- end }}

{{- define "fovea.replicaEnv" -}}
{{- $root := index . 0 -}}{{- $service := index . 1 -}}{{- $values := index . 2 -}}{{- $version := index . 3 -}}
{{ include "fovea.serviceEnv" (list $root $service) }}
{{ include "fovea.podIP" $root }}
# A replica that reserves no GPU of Ray's still sees what its pod has, such as a slice of one.
- {name: RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO, value: "0"}
# As `shared.serving.ray` sets them where it starts Ray: no lower priority, and one guard of memory.
- {name: RAY_worker_niceness, value: "0"}
- {name: RAY_memory_monitor_refresh_ms, value: "0"}
- {name: FOVEA_SHUTDOWN_GRACE_S, value: {{ $values.replicas.graceSeconds | quote }}}
{{- if not $values.worker.enabled }}
- {name: FOVEA_JOBS_IN_REPLICA, value: "1"}
{{- end }}
{{- if and $values.gpus (include "fovea.hasVolume" $root) }}
# Compiled kernels outlive pods.
- {name: TRITON_CACHE_DIR, value: /store/cache/triton}
{{- end }}
{{- if and (eq $service "llm-longctx") (gt (int $values.gpus) 1) }}
# A process per GPU, all in this pod, hold the model together.
- {name: FOVEA_LLM_TENSOR_PARALLEL, value: {{ $values.gpus | quote }}}
{{- end }}
{{- with $version.name }}
- {name: FOVEA_SERVICE_VERSION, value: {{ . | quote }}}
{{- end }}
{{- end }}

{{- define "fovea.podIP" -}}
- name: FOVEA_REPLICA_ADVERTISED_HOST
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
{{- end }}

{{- define "fovea.podSecurity" -}}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
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
{{- if .Values.redis.caSecret }}
- {name: redis-ca, secret: {secretName: {{ .Values.redis.caSecret }}}}
{{- end }}
{{- if include "fovea.hasVolume" . }}
- name: store
  persistentVolumeClaim: {claimName: {{ .Release.Name }}-store}
{{- end }}
{{- end }}

{{- define "fovea.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: data, mountPath: /data}
{{- if .Values.redis.caSecret }}
- {name: redis-ca, mountPath: /redis, readOnly: true}
{{- end }}
{{- if include "fovea.hasVolume" . }}
- {name: store, mountPath: /store}
{{- end }}
{{- end }}

{{/* Whether all pods share a volume. */}}
{{- define "fovea.hasVolume" -}}
{{- if and .Values.objectStore.volume.enabled (not .Values.objectStore.url) }}true{{ end }}
{{- end }}

{{/* Limits of a container that runs models. */}}
{{- define "fovea.modelResources" -}}
requests: {{- toYaml .resources.requests | nindent 2 }}
limits:
  {{- toYaml .resources.limits | nindent 2 }}
  {{- if .gpus }}
  nvidia.com/gpu: {{ ceil .gpus }}
  {{- end }}
{{- end }}

{{/* Where a pod that runs models may go: to nodes with a GPU or a part of one, where it has that. */}}
{{- define "fovea.modelNodes" -}}
{{- $usesGPU := .gpus -}}
{{- range $resource, $_ := .resources.limits }}{{ if hasPrefix "nvidia.com/" $resource }}{{ $usesGPU = true }}{{ end }}{{ end -}}
{{- include "fovea.placement" (dict "values" . "usesGPU" $usesGPU) -}}
{{- end }}

{{/* Where the heads of Ray keep their state. */}}
{{- define "fovea.faultTolerance" -}}
{{- $tolerance := .Values.ray.faultTolerance -}}
{{- $place := urlParse (.Values.redis.url | default (printf "redis://%s-redis:6379/0" .Release.Name)) -}}
{{- if contains ":" $place.userinfo -}}
{{- fail "redis.url holds a password, which every pod would show in clear: put it into redis.passwordSecret, or the whole URL into redis.urlSecret" -}}
{{- end -}}
{{- $host := ternary $place.host (printf "%s:6379" $place.host) (regexMatch ":[0-9]+$" $place.host) -}}
{{- $address := $tolerance.redisAddress | default (printf "%s://%s" $place.scheme $host) -}}
{{- if and (or .Values.redis.urlSecret.name (contains "sentinel" .Values.redis.url)) (not $tolerance.redisAddress) -}}
{{- fail "Ray can't tell the address of Redis from redis.urlSecret or a Sentinel: set ray.faultTolerance.redisAddress (and passwordSecret), or ray.faultTolerance.enabled=false" -}}
{{- end -}}
gcsFaultToleranceOptions:
  redisAddress: {{ $address }}
  {{- with $place.userinfo }}
  redisUsername: {value: {{ . | quote }}}
  {{- end }}
  {{- with $tolerance.passwordSecret | default .Values.redis.passwordSecret }}
  redisPassword: {valueFrom: {secretKeyRef: {name: {{ . }}, key: password}}}
  {{- end }}
{{- end }}

{{- /* Services that there are, with commas between. */}}
{{- define "fovea.enabled" -}}
{{- $names := list -}}
{{- range $service, $values := .Values.services }}{{ if $values.enabled }}{{ $names = append $names $service }}{{ end }}{{ end -}}
{{- join "," $names -}}
{{- end }}

{{- /* Services that may have no replica until somebody asks, with commas between. */}}
{{- define "fovea.onDemand" -}}
{{- $names := list -}}
{{- range $service, $values := .Values.services -}}
{{- if and $values.enabled (not $values.replicas.min) }}{{ $names = append $names $service }}{{ end -}}
{{- end -}}
{{- join "," $names -}}
{{- end }}

{{- /* Traffic plans of services with versions, as the setting `traffic` takes them; empty where there are none. */}}
{{- define "fovea.traffic" -}}
{{- $plans := dict -}}
{{- range $service, $values := .Values.services -}}
{{- if and $values.enabled $values.versions -}}
{{- $plan := dict "percent" dict -}}
{{- range $version := $values.versions -}}
{{- if $version.shadowPercent -}}
{{- $_ := set $plan "shadow" $version.name -}}{{- $_ := set $plan "shadow_percent" $version.shadowPercent -}}
{{- else -}}
{{- $_ := set $plan.percent $version.name ($version.percent | default 0) -}}
{{- end -}}
{{- end -}}
{{- $_ := set $plans $service $plan -}}
{{- end -}}
{{- end -}}
{{- if $plans }}{{ toJson $plans }}{{ end -}}
{{- end }}
