"""A Grafana dashboard and Prometheus alerts for the metrics of `starpo_trace`."""
