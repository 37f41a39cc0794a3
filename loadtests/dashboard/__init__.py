"""The Grafana dashboard seen with data: its queries, asked of a real Prometheus while the product is under load."""
