{{- define "coatstream.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ required "image.digest or image.tag must be set" .Values.image.tag }}
{{- end -}}
{{- end -}}
