"""A Grafana dashboard over the metrics and the recording rules of `headrace rules`. Pure."""

from __future__ import annotations

import json
from typing import Any

from headrace.monitoring.grafana_panels import panels
from headrace.monitoring.rules import RuleOptions

__all__ = ["grafana_json"]


def grafana_json(options: RuleOptions) -> str:
    """For Grafana 10 and newer: Dashboards, New, Import."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    made: list[dict[str, Any]] = []
    top = 0
    for row, members in panels(options):
        made.append(
            {
                "type": "row",
                "title": row,
                "collapsed": False,
                "panels": [],
                "gridPos": {"h": 1, "w": 24, "x": 0, "y": top},
            }
        )
        top += 1
        width, height, across = (6, 5, 4) if members[0].kind == "stat" else (12, 8, 2)
        for n, panel in enumerate(members):
            made.append(
                {
                    "type": panel.kind,
                    "title": panel.title,
                    "description": panel.description,
                    "datasource": source,
                    "gridPos": {
                        "h": height,
                        "w": width,
                        "x": n % across * width,
                        "y": top + n // across * height,
                    },
                    "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                    "options": _options(panel.kind),
                    "targets": [
                        {
                            "refId": chr(ord("A") + i),
                            "datasource": source,
                            "expr": query.expression,
                            "legendFormat": query.legend,
                        }
                        for i, query in enumerate(panel.queries)
                    ],
                }
            )
        top += -(-len(members) // across) * height
    for number, one in enumerate(made):
        one["id"] = number + 1
    document = {
        "title": "Headrace",
        "uid": "headrace",
        "tags": ["headrace", "inference"],
        "schemaVersion": 38,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                _variable(
                    "instance", f'label_values(headrace_ready{{job="{options.job}"}}, instance)'
                ),
                _variable(
                    "model",
                    f'label_values(headrace_model_state{{job="{options.job}"}}, model)',
                ),
            ]
        },
        "panels": made,
    }
    return json.dumps(document, indent=2)


def _options(kind: str) -> dict[str, Any]:
    if kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none"}
    return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}


def _variable(name: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }
