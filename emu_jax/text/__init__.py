"""Prompts to conditioning: tokenizers and frozen text encoders."""
