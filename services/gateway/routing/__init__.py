"""Which replica answers: route table, model routing, replica registry, static upstreams."""
