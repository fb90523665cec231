"""How a run is told: metrics.jsonl always, Weights & Biases when asked."""
