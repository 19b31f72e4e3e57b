// Parses PromQL with Prometheus' own parser: one JSON string of an expression a line on standard input, one JSON object
// a line on standard output: what is wrong with it, which metrics it selects by which labels, and the labels it groups
// by. Used by hanmaru_testing.promql.
package main

import (
	"bufio"
	"encoding/json"
	"os"

	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
)

type selector struct {
	Metric string   `json:"metric"`
	Labels []string `json:"labels"`
}

type answer struct {
	Error     string     `json:"error"`
	Selectors []selector `json:"selectors"`
	Grouping  []string   `json:"grouping"`
}

func look(expression string) answer {
	found := answer{Selectors: []selector{}, Grouping: []string{}}
	parsed, err := parser.NewParser(parser.Options{}).ParseExpr(expression)
	if err != nil {
		found.Error = err.Error()
		return found
	}
	parser.Inspect(parsed, func(node parser.Node, _ []parser.Node) error {
		switch one := node.(type) {
		case *parser.VectorSelector:
			found.Selectors = append(found.Selectors, selected(one))
		case *parser.AggregateExpr:
			found.Grouping = append(found.Grouping, one.Grouping...)
		}
		return nil
	})
	return found
}

func selected(one *parser.VectorSelector) selector {
	found := selector{Labels: []string{}}
	for _, matcher := range one.LabelMatchers {
		if matcher.Name == labels.MetricName {
			found.Metric = matcher.Value
		} else {
			found.Labels = append(found.Labels, matcher.Name)
		}
	}
	return found
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var expression string
		if err := json.Unmarshal(lines.Bytes(), &expression); err != nil {
			panic(err)
		}
		if err := out.Encode(look(expression)); err != nil {
			panic(err)
		}
	}
}
