"""What is kept on disk: training state, exported models, safetensors, fingerprints."""
