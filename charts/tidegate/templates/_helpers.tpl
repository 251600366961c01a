{{- define "tidegate.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tidegate.selector" -}}
app.kubernetes.io/name: tidegate
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{/* Room for what a StatefulSet adds to the names of its pods and of their revisions. */}}
{{- define "tidegate.feedback" -}}
{{- printf "%s-feedback" (include "tidegate.fullname" . | trunc 43 | trimSuffix "-") -}}
{{- end -}}

{{- define "tidegate.ledger" -}}
{{- printf "%s-ledger" (include "tidegate.fullname" . | trunc 56 | trimSuffix "-") -}}
{{- end -}}

{{- define "tidegate.feedbackSelector" -}}
app.kubernetes.io/name: tidegate
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: feedback
{{- end -}}

{{/* Labels of everything here. The version is left out of what must not change from release to release. */}}
{{- define "tidegate.labels" -}}
app.kubernetes.io/name: tidegate
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: tidegate
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "tidegate.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "tidegate.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* What the operator does in the namespaces that it looks after. */}}
{{- define "tidegate.namespacedRules" -}}
# What people ask for.
- apiGroups: [tidegate.dev]
  resources: [modeldeployments]
  verbs: [get, list, watch]
# What came of it. Nothing else of what people wrote is ever changed.
- apiGroups: [tidegate.dev]
  resources: [modeldeployments/status, modelversions/status]
  verbs: [patch]
# The record of each version: made once, deleted when the history has become too long.
- apiGroups: [tidegate.dev]
  resources: [modelversions]
  verbs: [list, watch, create, patch, delete]
# The Route that splits the traffic. Deletion is left to garbage collection, when its ModelDeployment goes.
- apiGroups: [serving.knative.dev]
  resources: [routes]
  verbs: [get, list, watch, create, patch]
# What runs the pods of a version that is an image.
- apiGroups: [serving.knative.dev]
  resources: [configurations]
  verbs: [list, watch, create, patch, delete]
# What runs the pods of a version that is a model in a store.
- apiGroups: [serving.kserve.io]
  resources: [inferenceservices]
  verbs: [list, watch, create, patch, delete]
# Replicas are set on Revisions, which Knative makes and deletes.
- apiGroups: [serving.knative.dev]
  resources: [revisions]
  verbs: [list, watch, patch]
# Which server can serve a model's format.
- apiGroups: [serving.kserve.io]
  resources: [servingruntimes]
  verbs: [list, watch]
# Pods of the versions, to see crashes: Knative itself notices one at start after ten minutes only.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# Whether Knative is changing what the gateway does: its probes would be counted as requests meanwhile.
- apiGroups: [networking.internal.knative.dev]
  resources: [ingresses]
  verbs: [list]
# Events on transitions. They are written once and never read.
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end -}}
