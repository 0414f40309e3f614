"""The bundled teacher model: its weights, networks and pre-training."""
