"""Routes that the gateway answers itself: jobs, models, health, metrics, Open Inference server metadata."""
