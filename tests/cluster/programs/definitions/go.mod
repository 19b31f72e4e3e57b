// The definitions of other projects' kinds that the chart's templates use. Nothing is built: tests read YAML in them.
module hanmaru/tests/cluster/programs/definitions

go 1.26.0

require (
	github.com/prometheus-operator/prometheus-operator v0.85.0
	sigs.k8s.io/gateway-api v1.6.3
)
