"""Pictures from mean-shifted noise: pipelines, shots, sampling, the chat model."""
