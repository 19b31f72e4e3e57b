"""The values of the chart `hanmaru` as models: one module a component, `values` is the whole.

`tools/generate_chart_*.py` write values.yaml, values.schema.json and the chart's README of them; a docstring is a
value's documentation. What a schema cannot refuse is refused in `charts/hanmaru/templates/_validate.tpl`.
"""
