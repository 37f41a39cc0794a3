"""The one door: auth, limits, routing, retries, jobs, aggregated documents. Knows no model and no tensor library."""
